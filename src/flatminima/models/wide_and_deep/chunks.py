"""Kernels a few rows at a time, in the memory there is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from flatminima.arguments import whole
from flatminima.errors import InputError
from flatminima.measure.memory import free_bytes, words
from flatminima.progress import Progress

BYTES = 8
"""Of a float64."""

COPIES = 10
"""Arrays of the size of a chunk while its layers are computed."""

UNKNOWN = 2 * 2**30
"""Bytes to go by where a device does not tell what is free."""

CACHE = 2**18
"""Entries of a chunk on a CPU: more fit in memory, but not in a cache."""


@dataclass(frozen=True)
class Chunks:
    """How kernels are cut into rows.

    Attributes:
        device: Where they are computed.
        budget: Bytes they may take.
        rows: Rows of a chunk as asked for; None takes what fits.
    """

    device: torch.device
    budget: int
    rows: int | None

    @classmethod
    def of(cls, device: str | None, max_bytes: int | None, rows: int | None) -> Chunks:
        """As an estimator's arguments mean: without them a GPU if any, half of what is free.

        Raises:
            InputError: an argument out of its range; a device that is not there.
        """
        try:
            where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
            torch.empty(1, dtype=torch.float64, device=where)
        except (RuntimeError, TypeError, AssertionError) as error:
            raise InputError(
                f"the device {device!r} cannot hold float64 numbers here: {error}"
            ) from error
        if max_bytes is None:
            free = free_bytes(where)
            max_bytes = UNKNOWN if free is None else free // 2
        whole("max_bytes", max_bytes, 1)
        return cls(where, max_bytes, None if rows is None else whole("chunk", rows, 1))

    def size(self, columns: int, beside: int = 0) -> int:
        """Rows of a chunk.

        Args:
            columns: Of the kernel: the training samples.
            beside: Bytes that are taken by then.

        Raises:
            InputError: the chunk asked for does not fit, or not one row does.
        """
        row = columns * BYTES * COPIES
        fits = max(0, self.budget - beside) // row
        if fits < 1:
            raise InputError(
                f"one row of a kernel of {columns} training samples takes {words(row)} beside "
                f"{words(beside)}, and {words(self.budget)} may be used: train on fewer samples, "
                "or raise max_bytes"
            )
        if self.rows is None:
            return max(1, min(fits, CACHE // columns)) if self.device.type == "cpu" else fits
        if self.rows > fits:
            raise InputError(
                f"chunk={self.rows} rows of a kernel of {columns} training samples take "
                f"{words(self.rows * row + beside)}, and {words(self.budget)} may be used: "
                f"chunk={fits} fits"
            )
        return self.rows

    def gaps(
        self, left: Tensor, right: Tensor, stage: str, progress: Progress, beside: int = 0
    ) -> Iterator[tuple[slice, Tensor]]:
        """(rows, 1 - t) of unit vectors, 1 - t = |x - x'|^2 / 2 without cancellation.

        Args:
            left: Shape (m, d).
            right: Shape (n, d).
            stage: What progress calls it.
            progress: Called after each chunk.
            beside: Bytes that are taken by then.
        """
        for rows, distances in self.distances(left, right, stage, progress, beside):
            yield rows, distances.square_().mul_(0.5).clamp_(max=1)

    def distances(
        self, left: Tensor, right: Tensor, stage: str, progress: Progress, beside: int = 0
    ) -> Iterator[tuple[slice, Tensor]]:
        """(rows, |x - x'|), by differences."""
        size = self.size(len(right), beside)
        for start in range(0, len(left), size):
            rows = slice(start, min(start + size, len(left)))
            yield (
                rows,
                torch.cdist(left[rows], right, compute_mode="donot_use_mm_for_euclid_dist"),
            )
            progress(stage, rows.stop, len(left))

    def refuse_matrix(self, samples: int) -> None:
        """Say before it is computed that a kernel of all pairs does not fit, and what does.

        Raises:
            InputError: it does not.
        """
        # The matrix, its factor, and a chunk.
        wanted = 2 * samples**2 * BYTES + samples * BYTES * COPIES
        if wanted > self.budget:
            fits = self.budget // (samples * BYTES * COPIES)
            raise InputError(
                f"the kernel of {samples} training samples and its factor take {words(wanted)}, "
                f"and {words(self.budget)} may be used: take solver='cg' or kind='limit', which "
                f"hold a chunk of its rows only (chunk={fits} fits), or raise max_bytes"
            )


def nearest_two(points: Tensor, chunks: Chunks, progress: Progress) -> tuple[Tensor, Tensor]:
    """Distances of each point to its nearest and second nearest among different ones.

    Args:
        points: Shape (n, d), no two alike, n at least 3.
        chunks: How the distances are cut up.
        progress: Called after each chunk.
    """
    first, second = [], []
    for _, distances in chunks.distances(points, points, "distances", progress):
        # The point itself is the nearest.
        found = distances.topk(3, dim=1, largest=False).values
        first.append(found[:, 1])
        second.append(found[:, 2])
    return torch.cat(first), torch.cat(second)


def intrinsic_dimension(first: Tensor, second: Tensor) -> float:
    r"""The dimension of data, $d = (n - 1) / \sum \log (r_2 / r_1)$.

    Source: Facco, d'Errico, Rodriguez, Laio, Estimating the intrinsic dimension of datasets by a
    minimal neighborhood information, 2017, arXiv 1803.06992; the likelihood's estimate, corrected
    for its bias, in place of their fit of a line.

    Args:
        first: Distances to nearest neighbours, shape (n,), above 0.
        second: To second nearest, at least as large.
    """
    total = float((second / first).log().sum())
    return (len(first) - 1) / total if total > 0 else float(first.numel())
