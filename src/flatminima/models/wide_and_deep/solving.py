"""Interpolation: the coefficients by which a kernel meets the labels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flatminima.errors import InputError
from flatminima.models.wide_and_deep.chunks import Chunks
from flatminima.progress import Progress

ALIKE = """the kernel of the training samples is {what} in float64: they are too much alike at \
depth {depth}; {mend}"""

TOLERANCE = 1e-10
"""Relative, of conjugate gradients' residuals."""

MOST_ITERATIONS = 500
"""Of conjugate gradients."""

Kernel = Callable[[Tensor], Tensor]
"""From 1 - t to the kernel."""


def cholesky(
    points: Tensor, targets: Tensor, kernel: Kernel, chunks: Chunks, progress: Progress
) -> Tensor | None:
    """Solve K a = y with all of K in memory; None where it is not positive definite.

    Args:
        points: Shape (n, d), of length 1, no two alike.
        targets: Shape (n, c).
        kernel: Of 1 - t; 1 at 0.
        chunks: How K is cut up while it is computed.
        progress: Called after each chunk.

    Raises:
        InputError: K does not fit.
    """
    chunks.refuse_matrix(len(points))
    matrix = points.new_empty(len(points), len(points))
    for rows, gaps in chunks.gaps(points, points, "kernel", progress, matrix.nbytes):
        matrix[rows] = kernel(gaps)
    # Rounding must not be on the diagonal, where depth would multiply it.
    matrix.fill_diagonal_(1)
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if failed.item():
        return None
    found = torch.cholesky_solve(targets, factor)
    return found if found.isfinite().all() else None


def conjugate_gradients(
    points: Tensor, targets: Tensor, kernel: Kernel, chunks: Chunks, progress: Progress
) -> Tensor | None:
    """Solve K a = y with a chunk of K in memory, computed anew in each iteration.

    None where it has not converged in 500. A deep singular kernel is near the identity, and takes
    a few.

    Args:
        points: Shape (n, d), of length 1, no two alike.
        targets: Shape (n, c).
        kernel: Of 1 - t; 1 at 0.
        chunks: How K is cut up.
        progress: Called after each chunk.
    """

    def product(vectors: Tensor) -> Tensor:
        found = torch.empty_like(vectors)
        for rows, gaps in chunks.gaps(points, points, "kernel", progress):
            found[rows] = kernel(gaps) @ vectors
        return found

    solution, residual = torch.zeros_like(targets), targets.clone()
    direction, size = residual.clone(), residual.square().sum(0)
    goal = TOLERANCE**2 * size
    for _ in range(MOST_ITERATIONS):
        if (size <= goal).all():
            return solution
        image = product(direction)
        bend = (direction * image).sum(0)
        # A column that is solved stays where it is.
        step = torch.where(size > goal, size / bend, 0.0)
        if not step.isfinite().all() or (step < 0).any():
            return None
        solution = solution + step * direction
        residual = residual - step * image
        following = residual.square().sum(0)
        ratio = torch.where(size > goal, following / size, 0.0)
        direction, size = residual + ratio * direction, following
    return None


def solve(
    solver: str,
    points: Tensor,
    targets: Tensor,
    kernel: Kernel,
    chunks: Chunks,
    progress: Progress,
    *,
    depth: int,
    enough: int | None,
) -> Tensor:
    """Coefficients, shape (n, c), by "cholesky" or "cg".

    Raises:
        InputError: the samples are too much alike at this depth, or K does not fit.
    """
    way, what = {
        "cholesky": (cholesky, "not positive definite"),
        "cg": (conjugate_gradients, "too near a singular matrix for conjugate gradients"),
    }[solver]
    found = way(points, targets, kernel, chunks, progress)
    if found is None:
        mend = "take a deeper one, or kind='limit'"
        if enough is not None and depth < enough:
            mend = f"depth={enough} is enough for the closest pair, and kind='limit' for any"
        raise InputError(ALIKE.format(what=what, depth=depth, mend=mend))
    return found
