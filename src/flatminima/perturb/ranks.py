"""Which of how many processes this is."""

from __future__ import annotations

import torch


def rank() -> int:
    """This process's rank; 0 where torch.distributed is not running."""
    return torch.distributed.get_rank() if _distributed() else 0


def world_size() -> int:
    """The number of processes; 1 where torch.distributed is not running."""
    return torch.distributed.get_world_size() if _distributed() else 1


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
