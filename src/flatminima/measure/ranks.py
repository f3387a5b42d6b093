"""Data-parallel processes that share a product: each multiplies with its own batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed

from flatminima.errors import InputError


class Ranks:
    """The processes of the default group, as `torchrun` starts them.

    A product is summed over them by one all-reduce, and with it, in the same buffer, what each rank
    has to tell the others: a row of numbers per rank, of which the others hold zeros. A process
    that fails tells that too, so none waits for it.

    Raises:
        InputError: there is no process group.
    """

    def __init__(self) -> None:
        if not (distributed.is_available() and distributed.is_initialized()):
            raise InputError(
                "data_parallel=True and there is no process group: start with torchrun and call "
                "torch.distributed.init_process_group, or leave data_parallel out"
            )
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()

    def room(self, numbers: int) -> int:
        """How many elements of a buffer the rows of `numbers` numbers take."""
        return 2 * numbers * self.size

    def add_up(self, buffer: Tensor, own: Sequence[float]) -> Tensor:
        """Sum a buffer over the ranks, whose end is room for their numbers.

        Args:
            buffer: One-dimensional; its last `room(len(own))` elements are overwritten.
            own: This rank's numbers, finite.

        Returns:
            The numbers of all ranks, shape (ranks, numbers), float64 on the CPU.
        """
        # Two elements each, since float32 alone cannot count above 2^24.
        whole = torch.tensor(own, dtype=torch.float64)
        high = whole.to(buffer.dtype)
        low = (whole - high.double()).to(buffer.dtype)
        tail = buffer[len(buffer) - self.room(len(own)) :].view(self.size, 2, len(own))
        tail.zero_()
        tail[self.rank] = torch.stack([high, low]).to(buffer.device)
        distributed.all_reduce(buffer)
        return tail.cpu().double().sum(1)

    def gather(self, own: Any) -> list[Any]:
        """What each rank has, in the order of ranks."""
        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, own)
        return found

    def check(self, failed: Tensor, weights: Tensor, vectors: Tensor, scale: float) -> None:
        """Refuse ranks that failed or that do not multiply the same matrix by the same vectors.

        Args:
            failed: Of each rank, shape (ranks,): whether it has no products.
            weights: A number that tells weights apart.
            vectors: A number that tells vectors apart.
            scale: How large differences of `vectors` would be, were they others.

        Raises:
            InputError: there is such a rank.
        """
        bad = failed.nonzero().flatten().tolist()
        if bad:
            raise InputError(f"rank {bad[0]} of {self.size} failed: see its message")
        for name, numbers, size in (
            ("weights", weights, abs(weights[0].item())),
            ("vectors", vectors, scale),
        ):
            other = (numbers - numbers[0]).abs() > 1e-6 * size
            if other.any():
                rank = int(other.nonzero()[0])
                raise InputError(
                    f"rank {rank} has other {name} than rank 0: data_parallel=True needs the same "
                    "model and the same seed on every rank, and other batches only"
                )


def fingerprint(parts: Sequence[Tensor]) -> float:
    """The squared norm of tensors, 0 if it is not finite."""
    norms = [torch.linalg.vector_norm(p.detach().double()).square().cpu() for p in parts]
    found = torch.stack(norms).sum().item()
    return found if math.isfinite(found) else 0.0
