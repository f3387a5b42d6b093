"""Noise added to weights on a CPU: in pieces that stay in its cache, several tensors at once.

torch fills a tensor with Gaussians on one thread, and on a CPU that is most of what a step costs
beside its gradients. Draws are addressed, so it does not matter which thread makes one, or when;
and a generator that fills a tensor piece by piece gives what it gives in one go. So the weights
come out bit for bit as if noise were drawn in full, one tensor after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from flatminima.perturb.noise import SMALL, Noise
from flatminima.perturb.shards import is_sharded

WORTH_THREADS = 1 << 18
"""Fewer numbers than this are drawn before a thread has started."""

SHORTEST = 16
"""torch draws fewer Gaussians than this in another way, so no last piece is shorter."""


@dataclass(frozen=True)
class Draw:
    """Noise for one tensor, not yet drawn.

    Attributes:
        noise: Its distribution.
        seed: Of its generator.
        factor: Standard deviation, or minus it.
    """

    noise: Noise
    seed: int
    factor: float

    def add_to(self, tensor: Tensor) -> None:
        """Add it to a tensor in place; the memory of one piece."""
        generator = torch.Generator().manual_seed(self.seed)
        flat, piece = tensor.view(-1), self.noise.piece
        total = flat.numel()
        room = torch.empty(min(total, piece + SHORTEST), dtype=tensor.dtype, device=tensor.device)
        start = 0
        while start < total:
            stop = total if total - start < piece + SHORTEST else start + piece
            z = self.noise.sample(room[: stop - start], generator)
            flat[start:stop].add_(z.mul_(self.factor))
            start = stop


def in_pieces(tensor: Tensor, noise: Noise) -> bool:
    """Whether noise can be added to a tensor in pieces."""
    return (
        noise.piece > 0
        and not is_sharded(tensor)
        and tensor.device.type == "cpu"
        and tensor.dtype in (torch.float32, torch.float64)
        and tensor.is_contiguous()
    )


@torch.no_grad()
def add_all(tensors: Sequence[Tensor], draws: Sequence[Draw | None]) -> None:
    """Add noise to each tensor in place; None leaves one alone.

    Args:
        tensors: Such that `in_pieces` holds.
        draws: Their noise.
    """
    work = [(t, draw) for t, draw in zip(tensors, draws, strict=True) if draw is not None]
    threads = min(torch.get_num_threads(), len(work))
    small = all(draw.noise.piece == SMALL for _, draw in work)
    if threads < 2 or not small or sum(t.numel() for t, _ in work) < WORTH_THREADS:
        for tensor, draw in work:
            draw.add_to(tensor)
        return
    work.sort(key=lambda pair: pair[0].numel(), reverse=True)
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(_add, draw, tensor) for tensor, draw in work]:
            done.result()


@torch.no_grad()
def _add(draw: Draw, tensor: Tensor) -> None:
    draw.add_to(tensor)
