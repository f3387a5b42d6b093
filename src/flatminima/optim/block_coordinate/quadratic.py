"""Quadratics with a sparse matrix, such as label propagation on a graph."""

from __future__ import annotations

from typing import Any

import numpy as np

from flatminima.errors import InputError
from flatminima.optim.block_coordinate.linear import ridge
from flatminima.optim.block_coordinate.matrices import (
    Array,
    Block,
    data_matrix,
    is_sparse,
    numbers,
)
from flatminima.optim.block_coordinate.smooth import Smooth


class Quadratic(Smooth):
    r"""$\frac12 x^\top M x - c^\top x$ with M symmetric and positive semi-definite; z = M x.

    Args:
        M: (p, p), a numpy array, a tensor or a scipy.sparse matrix. That it is positive
            semi-definite is seen on the blocks only.
        c: (p,).
        l2: Added to the diagonal of M, a number or one for each variable, 0 or above.

    Raises:
        InputError: M not square or symmetric, or with a diagonal below 0; another shape of c.
    """

    def __init__(self, M: Any, c: Any, l2: Any = 0.0) -> None:
        self.given, self.M = M, data_matrix("M", M)
        self.dtype, self.size = self.M.dtype, self.M.shape[0]
        self.shape = (self.size,)
        if self.M.shape[0] != self.M.shape[1]:
            raise InputError(f"M must be square, not {self.M.shape}")
        if abs(self.M - self.M.T).max() > 1e-6 * abs(self.M).max():
            raise InputError("M is not symmetric: give (M + M.T) / 2")
        self.l2 = ridge(l2, self.size, self.dtype)
        self.diagonal = np.asarray(self.M.diagonal()) + self.l2
        if (self.diagonal < 0).any():
            raise InputError("M has a diagonal entry below 0: it is not positive semi-definite")
        self.c = numbers("c", c, self.dtype)
        if self.c.shape != self.shape:
            raise InputError(f"c has the shape {self.c.shape}, and M is {self.M.shape}")

    def margins(self, x: Array) -> Array:
        """M x."""
        return np.asarray(np.asarray(self.M @ x) + self.l2 * x)

    def shift(self, block: Block, change: Array) -> Array:
        """M[:, b] d; O(p + non-zeros of the block)."""
        moved = np.asarray(self.M[:, block] @ change)
        moved[block] += self.l2[block] * change
        return moved

    def value(self, x: Array, z: Array) -> float:
        """1/2 x z - c x."""
        return float(0.5 * x @ z - self.c @ x)

    def gradient(self, x: Array, z: Array) -> Array:
        """z - c, no product needed."""
        return z - self.c

    def gradient_at(self, x: Array, z: Array, block: Block) -> Array:
        """z_b - c_b."""
        return np.asarray(z[block] - self.c[block])

    def hessian(self, x: Array, z: Array, block: Block) -> Array:
        """M_bb."""
        return self.bound(block)

    def bound(self, block: Block) -> Array:
        """M_bb, exact."""
        part = self.M[:, block][block]
        dense = part.toarray() if is_sparse(part) else part
        return np.asarray(np.asarray(dense) + np.diag(self.l2[block]))

    def bound_times(self, direction: Array) -> Array:
        """M d."""
        return self.margins(direction)

    def coordinate_bounds(self) -> Array:
        """The diagonal of M."""
        return self.diagonal


class LabelPropagation(Quadratic):
    r"""$\frac12 \sum_{ij} \frac{w_{ij}}{2} (x_i - x_j)^2$ over the nodes without a label.

    With the labels in their places this is $\frac12 x_u^\top L_{uu} x_u - (W_{ul} y_l)^\top x_u$
    and a constant, L the Laplacian D - W. The solution is harmonic: at each node without a label
    the weighted mean of its neighbours.

    Source: Zhu, Ghahramani, Lafferty, Semi-Supervised Learning Using Gaussian Fields and Harmonic
    Functions, ICML 2003.

    Args:
        W: (nodes, nodes) weights, symmetric, 0 or above; the diagonal does not matter.
        labels: (nodes,), any real numbers; nan where a node has none.

    Raises:
        InputError: weights below 0 or not symmetric; no label or nothing but labels; nodes without
            a label that no path leads from to one.
    """

    def __init__(self, W: Any, labels: Any) -> None:
        weights = data_matrix("W", W)
        if weights.shape[0] != weights.shape[1]:
            raise InputError(f"W must be square, not {weights.shape}")
        if weights.min() < 0:
            raise InputError("W has a weight below 0")
        if abs(weights - weights.T).max() > 1e-6 * abs(weights).max():
            raise InputError("W is not symmetric: give (W + W.T) / 2")
        values = np.asarray(labels.detach().cpu() if hasattr(labels, "detach") else labels, float)
        if values.shape != (weights.shape[0],):
            raise InputError(f"labels has the shape {values.shape}, and W is {weights.shape}")
        self.unlabelled: Block = np.flatnonzero(np.isnan(values))
        labelled = np.flatnonzero(~np.isnan(values))
        if not self.unlabelled.size or not labelled.size:
            raise InputError("labels must have some numbers, and nan at the nodes without a label")
        toward = weights[:, labelled][self.unlabelled]
        inside = weights[:, self.unlabelled][self.unlabelled]
        degrees = np.asarray(toward.sum(1)).ravel() + np.asarray(inside.sum(1)).ravel()
        if not _reached(inside, np.asarray(toward.sum(1)).ravel() > 0).all():
            raise InputError("some nodes have no path to a label: give them one, or leave them out")
        if is_sparse(inside):
            laplacian = -inside
            laplacian.setdiag(degrees - inside.diagonal())
        else:
            laplacian = np.diag(degrees) - inside
        super().__init__(laplacian, np.asarray(toward @ values[labelled]))
        self.given = W


def _reached(weights: Any, start: Array) -> Array:
    reached, edge = start, start
    while edge.any():
        edge = np.asarray((weights.T @ edge.astype(float)) > 0).ravel() & ~reached
        reached = reached | edge
    return reached
