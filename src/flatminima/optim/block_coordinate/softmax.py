"""Multi-class logistic regression."""

from __future__ import annotations

from typing import Any

import numpy as np

from flatminima.errors import InputError
from flatminima.optim.block_coordinate.linear import ridge, targets
from flatminima.optim.block_coordinate.matrices import (
    Array,
    Block,
    data_matrix,
    gram,
    scaled_rows,
    squared_norms,
)
from flatminima.optim.block_coordinate.smooth import Smooth


class Softmax(Smooth):
    r"""$\sum_n \log \sum_c e^{a_n w_c} - a_n w_{y_n} + \frac12 \sum_i \lambda_i x_i^2$.

    x is W, (p, k), row by row: variable j k + c is the weight of feature j in class c. A block may
    hold any of them. Its Hessian is below $\frac12 (I - 11^\top/(m+1)) \circ A_b^\top A_b$, m the
    classes in the block if they are not all k: the classes that it leaves alone act as one.
    (Böhning, 1992, has the bound for m + 1 = k.)

    Args:
        A: (n, p), a numpy array, a tensor or a scipy.sparse matrix.
        y: (n,), whole numbers from 0 to classes - 1.
        classes: k, at least 2; the largest of y and 1 by default.
        l2: The ridge, a number or one for each of the p k variables, 0 or above.

    Raises:
        InputError: shapes that do not fit; numbers that are not finite; classes out of range.
    """

    def __init__(self, A: Any, y: Any, classes: int | None = None, l2: Any = 0.0) -> None:
        self.given, self.A = A, data_matrix("A", A)
        self.dtype = self.A.dtype
        labels = targets(y, self.A)
        self.y = labels.astype(np.intp)
        self.classes = int(classes or max(self.y.max() + 1, 2))
        if (labels != self.y).any() or self.y.min() < 0 or self.y.max() >= self.classes > 1:
            raise InputError(f"y must be whole numbers from 0 to {self.classes - 1}")
        if self.classes < 2:
            raise InputError(f"classes is {classes!r}: give 2 or more")
        self.shape = (self.A.shape[1], self.classes)
        self.size = self.shape[0] * self.classes
        self.l2 = ridge(l2, self.size, self.dtype)
        self._taken: tuple[Block, Any] | None = None

    def columns(self, block: Block) -> Any:
        """The column of A of each variable of a block; kept until another block is asked for."""
        if self._taken is None or self._taken[0] is not block:
            self._taken = (block, self.A[:, block // self.classes])
        return self._taken[1]

    def margins(self, x: Array) -> Array:
        """A W, (n, k)."""
        return np.asarray(self.A @ x.reshape(self.shape))

    def shift(self, block: Block, change: Array) -> Array:
        """The change of A W, (n, k)."""
        into = np.zeros((block.size, self.classes), dtype=self.dtype)
        into[np.arange(block.size), block % self.classes] = change
        return np.asarray(self.columns(block) @ into)

    def value(self, x: Array, z: Array) -> float:
        """The loss and the ridge."""
        highest = z.max(1)
        normalizers = highest + np.log(np.exp(z - highest[:, None]).sum(1))
        loss = (normalizers - z[np.arange(len(z)), self.y]).sum()
        return float(loss + 0.5 * (self.l2 * x) @ x)

    def gradient(self, x: Array, z: Array) -> Array:
        """A^T (P - Y) + l2 W."""
        return np.asarray(np.asarray(self.A.T @ self._errors(z)).ravel() + self.l2 * x)

    def gradient_at(self, x: Array, z: Array, block: Block) -> Array:
        """The same on a block."""
        features, where = np.unique(block // self.classes, return_inverse=True)
        rows = np.asarray(self.A[:, features].T @ self._errors(z))
        return np.asarray(rows[where, block % self.classes] + self.l2[block] * x[block])

    def hessian(self, x: Array, z: Array, block: Block) -> Array:
        """sum_n a_ns a_nt p_c (1[c = c'] - p_c'), c and c' the classes of s and t."""
        columns, classes = self.columns(block), block % self.classes
        weighted = scaled_rows(columns, _probabilities(z)[:, classes])
        whole = np.equal.outer(classes, classes) * gram(columns, weighted)
        return np.asarray(whole - gram(weighted, weighted) + np.diag(self.l2[block]))

    def bound(self, block: Block) -> Array:
        """The bound of the class, and l2."""
        columns, classes = self.columns(block), block % self.classes
        together = min(self.classes, np.unique(classes).size + 1)
        between = np.equal.outer(classes, classes) - 1 / together
        whole = 0.5 * between.astype(self.dtype) * gram(columns, columns)
        return np.asarray(whole + np.diag(self.l2[block]))

    def bound_times(self, direction: Array) -> Array:
        """1/2 (I - 11^T / k) (x) A^T A d, and l2 d."""
        rows = direction.reshape(self.shape)
        rows = 0.5 * (rows - rows.mean(1, keepdims=True))
        return np.asarray(np.asarray(self.A.T @ (self.A @ rows)).ravel() + self.l2 * direction)

    def coordinate_bounds(self) -> Array:
        """||a_j||^2 / 4 + l2."""
        return np.repeat(0.25 * squared_norms(self.A), self.classes) + self.l2

    def _errors(self, z: Array) -> Array:
        errors = _probabilities(z)
        errors[np.arange(len(z)), self.y] -= 1
        return errors


def _probabilities(z: Array) -> Array:
    exponentials = np.exp(z - z.max(1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(1, keepdims=True))
