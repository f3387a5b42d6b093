"""As many threads as a model can use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

SMALL = 1_000_000


@contextmanager
def fitting_threads(model: nn.Module) -> Iterator[None]:
    """One thread for a small model: its operations end sooner than threads meet.

    The 64-64-64-10 network took ten times as long a step with two threads as with one.

    Args:
        model: Small if it has less than a million parameters.
    """
    before = torch.get_num_threads()
    if sum(parameter.numel() for parameter in model.parameters()) < SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
