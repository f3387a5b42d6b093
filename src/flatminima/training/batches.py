"""Which samples make up each step, so that any step of any run can be found again."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


class Epoch(Sampler[list[int]]):
    """The batches of one epoch: a permutation drawn from (seed, epoch), cut into batches.

    The order does not depend on the number of processes: each takes its share of every batch, so
    together they see what one process would.

    Args:
        samples: Size of the data set.
        batch_size: Samples in a batch, all processes together; the last batch may be smaller.
        seed: Of the run.
        epoch: Which epoch, from 0.
        start: Batches already done, to continue in the middle.
        rank: This process.
        world_size: How many processes.
        shuffled: False leaves a batch of all samples in their order, which costs no copying; a
            mean does not depend on it.
    """

    def __init__(
        self,
        samples: int,
        batch_size: int,
        *,
        seed: int,
        epoch: int,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shuffled: bool = True,
    ) -> None:
        generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
        order = torch.randperm(samples, generator=generator).tolist()
        if not shuffled and batch_size >= samples:
            order = list(range(samples))
        batches = [order[i : i + batch_size] for i in range(0, samples, batch_size)]
        self.batches = [b for b in batches if len(b) >= world_size][start:]
        self.rank, self.world_size = rank, world_size

    def __iter__(self) -> Iterator[list[int]]:
        """This process's share of each batch."""
        for batch in self.batches:
            yield batch[self.rank :: self.world_size]

    def __len__(self) -> int:
        return len(self.batches)


def batches_per_epoch(samples: int, batch_size: int, world_size: int = 1) -> int:
    """How many batches an epoch has; a last one too small for every process is left out."""
    whole, rest = divmod(samples, batch_size)
    return whole + (1 if rest >= world_size else 0)
