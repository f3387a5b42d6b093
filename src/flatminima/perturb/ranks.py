"""Which of how many processes this is, and when they average their gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def rank() -> int:
    """This process's rank; 0 where torch.distributed is not running."""
    return torch.distributed.get_rank() if _distributed() else 0


def world_size() -> int:
    """The number of processes; 1 where torch.distributed is not running."""
    return torch.distributed.get_world_size() if _distributed() else 1


@contextmanager
def averaging(model: nn.Module, *, always: bool, never: bool) -> Iterator[None]:
    """Whether forward and backward within average gradients over processes.

    Args:
        model: A `DistributedDataParallel`; any other module is left alone.
        always: Even within a `no_sync()` around.
        never: As within `no_sync()`, unless always.
    """
    if not isinstance(model, DistributedDataParallel):
        yield
        return
    before = model.require_backward_grad_sync
    model.require_backward_grad_sync = always or (before and not never)
    try:
        yield
    finally:
        model.require_backward_grad_sync = before


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
