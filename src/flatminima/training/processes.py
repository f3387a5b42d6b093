"""The processes that `torchrun` started, for work that is no training."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed


@contextmanager
def process_group() -> Iterator[bool]:
    """A process group where there are several processes; whether this is the first of them.

    It only carries numbers to the CPU, so it is gloo's on any machine.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield True
        return
    distributed.init_process_group("gloo")
    try:
        yield distributed.get_rank() == 0
    finally:
        distributed.destroy_process_group()


def own_device() -> torch.device:
    """The device of this process."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")
