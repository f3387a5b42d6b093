"""Rows of all processes side by side, with gradients that find their way home."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed
from torch.autograd import Function
from torch.autograd.function import once_differentiable


def gathered(rows: Tensor) -> tuple[Tensor, int]:
    """The rows of all processes, and where one's own begin among them.

    Backward, the gradients that all processes have of one's own rows are added. So where process r
    minimizes $L_r$ of its own samples and all rows, and gradients are averaged over processes as
    by DistributedDataParallel, the gradient is that of the mean of the $L_r$, exactly.

    Cost: the counts of the processes, which each waits for, one all-gather, and one all-reduce of
    the gathered gradient backward. It can be differentiated once.

    Args:
        rows: Shape (n, d), n of each process its own, d the same.

    Returns:
        Shape (sum of n, d), in the order of ranks, and the place of the own first row; `rows` and 0
        without a process group.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return rows, 0
    world, rank = distributed.get_world_size(), distributed.get_rank()
    if world == 1:
        return rows, 0
    own = torch.tensor([len(rows)], device=rows.device)
    every = [torch.empty_like(own) for _ in range(world)]
    distributed.all_gather(every, own)
    counts = torch.cat(every).tolist()
    together: Tensor = _Gather.apply(rows, counts, rank)  # type: ignore[no-untyped-call]
    return together, sum(counts[:rank])


class _Gather(Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int], rank: int) -> Tensor:
        ctx.own = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
        # Ranks may hold one sample more or less, and all_gather wants as many of each.
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        distributed.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        total = gradient.contiguous().clone()
        distributed.all_reduce(total)
        return total[ctx.own], None, None
