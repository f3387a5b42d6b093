"""Losses of a linear model: least squares and logistic regression."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np

from flatminima.errors import InputError
from flatminima.optim.block_coordinate.matrices import (
    Array,
    Block,
    data_matrix,
    gram,
    numbers,
    scaled_rows,
    squared_norms,
)
from flatminima.optim.block_coordinate.smooth import Smooth


class Linear(Smooth):
    """sum_n phi(a_n x, y_n) + 1/2 sum_i l2_i x_i^2, the margins z = A x.

    Attributes:
        steepest: The largest second derivative of phi.
    """

    steepest: float

    def __init__(self, A: Any, y: Any, l2: Any = 0.0) -> None:
        self.given, self.A = A, data_matrix("A", A)
        self.dtype, self.size = self.A.dtype, self.A.shape[1]
        self.shape = (self.size,)
        self.y = targets(y, self.A)
        self.l2 = ridge(l2, self.size, self.dtype)
        self._taken: tuple[Block, Any] | None = None

    def columns(self, block: Block) -> Any:
        """A_b; kept until another block is asked for."""
        if self._taken is None or self._taken[0] is not block:
            self._taken = (block, self.A[:, block])
        return self._taken[1]

    def margins(self, x: Array) -> Array:
        """A x."""
        return np.asarray(self.A @ x)

    def shift(self, block: Block, change: Array) -> Array:
        """A_b d."""
        return np.asarray(self.columns(block) @ change)

    def value(self, x: Array, z: Array) -> float:
        """The loss and the ridge."""
        return float(self.loss(z) + 0.5 * (self.l2 * x) @ x)

    def gradient(self, x: Array, z: Array) -> Array:
        """A^T phi' + l2 x."""
        return np.asarray(np.asarray(self.A.T @ self.slope(z)) + self.l2 * x)

    def gradient_at(self, x: Array, z: Array, block: Block) -> Array:
        """A_b^T phi' + l2 x_b."""
        return np.asarray(
            np.asarray(self.columns(block).T @ self.slope(z)) + self.l2[block] * x[block]
        )

    def hessian(self, x: Array, z: Array, block: Block) -> Array:
        """A_b^T diag(phi'') A_b + l2."""
        columns = self.columns(block)
        whole = gram(columns, scaled_rows(columns, self.curvature(z)))
        return np.asarray(whole + np.diag(self.l2[block]))

    def bound(self, block: Block) -> Array:
        """max phi'' A_b^T A_b + l2."""
        columns = self.columns(block)
        return np.asarray(self.steepest * gram(columns, columns) + np.diag(self.l2[block]))

    def bound_times(self, direction: Array) -> Array:
        """max phi'' A^T A d + l2 d."""
        return np.asarray(
            self.steepest * np.asarray(self.A.T @ (self.A @ direction)) + self.l2 * direction
        )

    def coordinate_bounds(self) -> Array:
        """max phi'' ||a_i||^2 + l2."""
        return self.steepest * squared_norms(self.A) + self.l2

    @abstractmethod
    def loss(self, z: Array) -> float:
        """The sum of phi."""

    @abstractmethod
    def slope(self, z: Array) -> Array:
        """phi' of each sample."""

    @abstractmethod
    def curvature(self, z: Array) -> Array:
        """phi'' of each sample."""


class LeastSquares(Linear):
    r"""$\frac12 \lVert A x - y \rVert^2 + \frac12 \sum_i \lambda_i x_i^2$, a sum, not a mean.

    Args:
        A: (n, p), a numpy array, a tensor or a scipy.sparse matrix.
        y: (n,).
        l2: The ridge, a number or one for each variable, 0 or above.

    Raises:
        InputError: shapes that do not fit; numbers that are not finite; a ridge below 0.
    """

    steepest = 1.0

    def loss(self, z: Array) -> float:
        """Half the squared residual."""
        residual = z - self.y
        return float(0.5 * residual @ residual)

    def slope(self, z: Array) -> Array:
        """The residual."""
        return z - self.y

    def curvature(self, z: Array) -> Array:
        """1."""
        return np.ones_like(z)


class Logistic(Linear):
    r"""$\sum_n \log(1 + e^{-y_n a_n x}) + \frac12 \sum_i \lambda_i x_i^2$, a sum, not a mean.

    Args:
        A: (n, p), a numpy array, a tensor or a scipy.sparse matrix.
        y: (n,), -1 or 1.
        l2: The ridge, a number or one for each variable, 0 or above.

    Raises:
        InputError: as of `LeastSquares`; targets that are not -1 and 1.
    """

    steepest = 0.25

    def __init__(self, A: Any, y: Any, l2: Any = 0.0) -> None:
        super().__init__(A, y, l2)
        if not np.isin(self.y, (-1, 1)).all():
            raise InputError(f"logistic targets are -1 and 1, not {np.unique(self.y)[:5].tolist()}")

    def loss(self, z: Array) -> float:
        """The sum of log(1 + exp(-y z))."""
        return float(np.logaddexp(0, -self.y * z).sum())

    def slope(self, z: Array) -> Array:
        """-y sigma(-y z)."""
        return -self.y * sigmoid(-self.y * z)

    def curvature(self, z: Array) -> Array:
        """sigma(z) sigma(-z)."""
        return sigmoid(z) * sigmoid(-z)


def sigmoid(z: Array) -> Array:
    """1 / (1 + exp(-z)), without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * z)))


def targets(y: Any, A: Any) -> Array:
    """One number a row.

    Raises:
        InputError: another number of targets than rows.
    """
    array = numbers("y", y, A.dtype)
    if array.shape != (A.shape[0],):
        raise InputError(f"y has the shape {array.shape}, and A has {A.shape[0]} rows")
    return array


def ridge(l2: Any, size: int, dtype: Any) -> Array:
    """A ridge for each variable.

    Raises:
        InputError: below 0, or of another size.
    """
    array = numbers("l2", l2, dtype)
    if array.shape not in ((), (size,)) or (array < 0).any():
        raise InputError(f"l2 must be 0 or above, a number or {size} of them, not {l2!r}")
    return np.broadcast_to(array, (size,))
