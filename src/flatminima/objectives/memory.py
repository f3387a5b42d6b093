"""A row of numbers for each training sample, changed once a step whatever its passes saw."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from flatminima.arguments import whole
from flatminima.errors import InputError, unknown

DTYPES = {"float16": torch.float16, "float32": torch.float32, "float64": torch.float64}
PLACES = ("memory", "disk")


class Memory(nn.Module):
    """Rows in a buffer, all zeros at first: those of samples that were not seen yet.

    What passes see is noted, and counts once the step is over: it is gathered from all processes,
    and what several passes saw of a sample, or one that met it twice, is averaged. So the order of
    samples, how many processes there are and which of them meets a sample do not matter; each
    process keeps all rows. The buffer is part of the state, wherever it lies.

    Attributes:
        rows: Shape (samples, width).

    Args:
        samples: Of the training set.
        width: Numbers of a row.
        dtype: "float16", "float32" or "float64", of which a number takes 2, 4 or 8 bytes.
        place: "memory", on the device the module is moved to; or "disk", in a file without a name
            that is gone when the process is. Each process has a file of its own.
        folder: Of the file; default: the system's for temporary files, which may lie in memory.

    Raises:
        InputError: a size that is no positive whole number; an unknown dtype or place; a folder
            that is not there or has not the room.
    """

    rows: Tensor

    def __init__(
        self,
        samples: int,
        width: int,
        dtype: str = "float32",
        place: str = "memory",
        folder: str | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("num_examples", samples), ("num_classes", width)):
            whole(name, size)
        check_storage(dtype, place, folder)
        self.place = place
        shape, kind = (samples, width), DTYPES[dtype]
        on_disk = place == "disk"
        found = _on_disk(shape, kind, folder) if on_disk else torch.zeros(shape, dtype=kind)
        self.register_buffer("rows", found)
        self._noted: list[tuple[Tensor, Tensor]] = []

    @property
    def bytes(self) -> int:
        """The size of the rows."""
        return self.rows.numel() * self.rows.element_size()

    def read(self, index: Tensor) -> Tensor:
        """The rows of some samples, on the device of `index`, in single precision at least.

        Args:
            index: Places in the training set, int64, shape (n,).

        Returns:
            Shape (n, width).

        Raises:
            InputError: `index` is of another type or shape, or of samples that there are not.
        """
        samples = len(self.rows)
        if index.dtype != torch.int64 or index.dim() != 1:
            raise InputError(
                f"the index is {index.dtype} of shape {tuple(index.shape)}: give each sample's "
                "place in the training set, int64 of shape (samples,)"
            )
        if not len(index):
            return self._nothing().to(index.device)
        least, most = int(index.min()), int(index.max())
        if least < 0 or most >= samples:
            raise InputError(
                f"the index goes from {least} to {most}, and {samples} samples are remembered, "
                "from 0: give each sample's place in the training set, and the set's size"
            )
        return in_full(self.rows[index.to(self.rows.device)].to(index.device))

    def note(self, index: Tensor, values: Tensor) -> None:
        """Keep what a pass saw until the step is over.

        Args:
            index: As for `read`.
            values: Shape (n, width), kept without their graph.
        """
        self._noted.append((index.detach(), values.detach()))

    def noted(self) -> tuple[Tensor, Tensor]:
        """What all passes of all processes saw since the last time, and forget it.

        Called by all processes or none. Rows that are not finite are of a pass that went wrong,
        and are not remembered.

        Returns:
            Which samples, ascending, each once; and the means of what was seen of them.
        """
        index = torch.cat([i for i, _ in self._noted]) if self._noted else self._nothing().long()
        values = torch.cat([v for _, v in self._noted]) if self._noted else self._nothing()
        self.forget()
        finite = values.isfinite().all(dim=1)
        index, values = index[finite], values[finite]
        return mean_by(of_all_processes(index.flatten()), of_all_processes(values))

    def write(self, index: Tensor, values: Tensor) -> None:
        """Replace the rows of some samples, each named once."""
        self.rows[index.to(self.rows.device)] = values.to(self.rows)

    def forget(self) -> None:
        """Drop what was noted."""
        self._noted.clear()

    def _nothing(self) -> Tensor:
        return in_full(self.rows.new_zeros(0, self.rows.shape[1]))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # Rows on the disk stay there when the module is moved to a device.
        if self.place == "disk":
            return self
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]


def check_storage(dtype: str, place: str, folder: str | None) -> None:
    """Refuse what rows cannot be kept as.

    Raises:
        InputError: an unknown dtype or place; a folder for rows that are not on the disk.
    """
    if dtype not in DTYPES:
        raise unknown("dtype of a memory", dtype, DTYPES)
    if place not in PLACES:
        raise unknown("place of a memory", place, PLACES)
    if folder is not None and place != "disk":
        raise InputError(f"folder is {folder!r}, and the memory is not on the disk: set place=disk")


def mean_by(index: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of the rows of each index, added in the order they stand in.

    Args:
        index: int64, shape (n,).
        values: Shape (n, width).

    Returns:
        The indices, ascending, each once, shape (m,); and the means, shape (m, width).
    """
    order = index.argsort(stable=True)
    own, group, counts = torch.unique_consecutive(
        index[order], return_inverse=True, return_counts=True
    )
    values = values[order]
    # index_add_ adds in any order on a GPU, and then processes would remember different bits.
    turn = torch.arange(len(group), device=group.device) - (counts.cumsum(0) - counts)[group]
    sums = values.new_zeros(len(own), values.shape[1])
    for number in range(int(counts.max()) if len(counts) else 0):
        at = turn == number
        sums[group[at]] += values[at]
    return own, sums / counts.unsqueeze(1)


def of_all_processes(rows: Tensor) -> Tensor:
    """The rows of all processes in the order of their ranks, however many each has."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return rows
    world = distributed.get_world_size()
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(world)]
    distributed.all_gather(counts, torch.full_like(counts[0], len(rows)))
    longest = max(int(count) for count in counts)
    padded = rows.new_zeros(longest, *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in range(world)]
    distributed.all_gather(parts, padded)
    return torch.cat([part[: int(n)] for part, n in zip(parts, counts, strict=True)])


def in_full(values: Tensor) -> Tensor:
    """In single precision at least."""
    half = values.dtype in (torch.float16, torch.bfloat16)
    return values.float() if half else values


def _on_disk(shape: tuple[int, int], dtype: torch.dtype, folder: str | None) -> Tensor:
    place = Path(folder or tempfile.gettempdir()).expanduser()
    if not place.is_dir():
        raise InputError(f"{place} is no folder: make it, or name another for the memory on disk")
    size = shape[0] * shape[1] * dtype.itemsize
    free = shutil.disk_usage(place).free
    if free < size:
        raise InputError(
            f"remembering {shape[0]} samples of {shape[1]} numbers takes {size / 1e9:.1f} GB, and "
            f"{place} has {free / 1e9:.1f} GB free: name another folder, or set dtype=float16"
        )
    with tempfile.NamedTemporaryFile(dir=place, prefix="flatminima-memory-") as file:
        if hasattr(os, "posix_fallocate"):
            # A disk that turns out to be full when a mapped page is written kills the process.
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
        rows = torch.from_file(file.name, shared=True, size=shape[0] * shape[1], dtype=dtype)
    return rows.view(shape)
