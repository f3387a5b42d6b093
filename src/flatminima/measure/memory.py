"""How much memory a measurement will take, told before it takes it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import torch
from torch import Tensor

from flatminima.errors import InputError

GROUP = Path("/sys/fs/cgroup")
"""Where Linux says what a container may use."""


def free_bytes(device: torch.device) -> int | None:
    """How much memory is left on a device; None where it cannot be told.

    On CUDA what the driver has free and what torch holds without using it; on the CPU of a Linux
    machine what the kernel calls available, or what is left of the container's limit if that is
    less. Elsewhere None.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + unused)
    if device.type != "cpu":
        return None
    known = [size for size in (_available(), _left_in_container()) if size is not None]
    return min(known, default=None)


class SavedBytes(AbstractContextManager["SavedBytes"]):
    """Counts what a forward pass keeps for the backward pass, parameters and buffers left out.

    Args:
        known: Tensors that are there anyway.
        most: Stop the pass by an `InputError` when there is more; None lets it run.
    """

    def __init__(self, known: Iterable[Tensor], most: float | None = None) -> None:
        self._known = {t.untyped_storage().data_ptr() for t in known}
        self._most = most
        self._sizes: dict[int, int] = {}
        self._stack = ExitStack()
        self.bytes = 0

    def __enter__(self) -> SavedBytes:
        hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)
        self._stack.enter_context(hooks)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _pack(self, tensor: Tensor) -> Tensor:
        if tensor.layout == torch.strided:
            storage = tensor.untyped_storage()
            where = storage.data_ptr()
            if where not in self._known and where not in self._sizes:
                self._sizes[where] = storage.nbytes()
                self.bytes += storage.nbytes()
        if self._most is not None and self.bytes > self._most:
            raise Full
        # The tensor itself would keep its own graph alive; torch gives it its place back.
        return tensor.detach()


class Full(Exception):
    """A forward pass keeps more than it may."""


def words(size: float) -> str:
    """A number of bytes, readable."""
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def refuse(
    kept: float, times: float, vectors: float, free: float, device: torch.device, *, more: bool
) -> InputError:
    """An error for a measurement that cannot fit.

    Args:
        kept: What the forward pass keeps, in bytes.
        times: How many times that a product needs.
        vectors: The vectors and their products, in bytes.
        free: What is free, in bytes.
        device: Where.
        more: Whether `kept` is only what was seen when the pass was stopped.
    """
    atleast = "at least" if more else "about"
    return InputError(
        f"a product needs {atleast} {words(times * kept + vectors)} of memory on {device}, and "
        f"{words(free)} are free: {words(vectors)} for the vectors, and for the graph "
        f"{times:g} times the {words(kept)} that the forward pass of the first batch keeps. "
        "Give smaller batches, fewer vectors at once, or Hessian(..., backend='differences'), "
        "which needs the memory of a training step"
    )


def _available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found = next(line for line in lines if line.startswith("MemAvailable:"))
        return 1024 * int(found.split()[1])
    except (OSError, StopIteration, ValueError):
        return None


def _left_in_container() -> int | None:
    """What is left of a memory limit, the file cache counted as free."""
    try:
        limit, used = (int((GROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
        stat = dict(line.split() for line in (GROUP / "memory.stat").read_text().splitlines())
        return max(0, limit - used + int(stat["inactive_file"]))
    except (OSError, KeyError, ValueError):
        return None
