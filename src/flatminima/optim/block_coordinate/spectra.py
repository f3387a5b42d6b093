"""Small symmetric matrices by their eigenvalues."""

from __future__ import annotations

import numpy as np

from flatminima.errors import InputError
from flatminima.optim.block_coordinate.matrices import Array


def eigen(matrix: Array, scale: float = 0.0) -> tuple[Array, Array]:
    """Eigenvalues, those below 0 by rounding set to 0, and eigenvectors.

    Args:
        matrix: Symmetric.
        scale: Of the numbers that it is a difference of, where they are larger than it.

    Raises:
        InputError: an eigenvalue below 0 beyond rounding: the objective is not convex.
    """
    values, vectors = np.linalg.eigh(matrix)
    if values[0] < -100 * cutoff(matrix) * max(abs(float(values[-1])), scale):
        raise InputError(
            f"a block's matrix has the eigenvalue {values[0]:.3g}: the objective must be convex"
        )
    return np.maximum(values, 0), vectors


def largest(matrix: Array) -> float:
    """The largest eigenvalue; 1 for a matrix of zeros, where any step does nothing."""
    if matrix.shape[0] == 1:
        return float(matrix[0, 0]) or 1.0
    return float(eigen(matrix)[0][-1]) or 1.0


def inverse_root(matrix: Array) -> Array:
    """R with R^T R the pseudo-inverse; rows of zeros where an eigenvalue counts as 0."""
    values, vectors = eigen(matrix)
    kept = values > cutoff(matrix) * values[-1]
    scale = np.where(kept, 1 / np.sqrt(np.where(kept, values, 1)), 0)
    return np.asarray(scale[:, None] * vectors.T)


def solve(matrix: Array, right: Array, floor: float = 0.0, scale: float = 0.0) -> Array:
    """The pseudo-inverse times a vector.

    With a floor, eigenvalues below it, in parts of the largest, count as it: directions without
    curvature, along which a linear term still wants to move, get a long step rather than none.
    """
    values, vectors = eigen(matrix, scale)
    coefficients = vectors.T @ right
    if floor:
        least = floor * values[-1]
        inverse = 1 / np.maximum(values, least) if least else np.ones_like(values)
    else:
        kept = values > cutoff(matrix) * values[-1]
        inverse = np.where(kept, 1 / np.where(kept, values, 1), 0)
    return np.asarray(vectors @ (inverse * coefficients))


def cutoff(matrix: Array) -> float:
    """Eigenvalues below so much of the largest count as 0."""
    return float(10 * matrix.shape[0] * np.finfo(matrix.dtype).eps)
