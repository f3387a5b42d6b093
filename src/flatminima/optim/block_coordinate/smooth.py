"""What the solver asks of a smooth convex function."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any

import numpy as np

from flatminima.optim.block_coordinate.matrices import Array, Block, like


class Smooth(ABC):
    """f of x in R^p, with its margins z: what is kept along so that a step on a block is cheap.

    Margins are linear in x (A x, or M x). All arrays are numpy, of `dtype`; x is flat.

    Attributes:
        size: p, the number of variables.
        shape: How a user sees x.
        dtype: Of all that is computed: that of the data, float32 or float64.
        given: The data as it came; what a user gets back is of its kind.
    """

    size: int
    shape: tuple[int, ...]
    dtype: Any
    given: Any

    @abstractmethod
    def margins(self, x: Array) -> Array:
        """z of x; O(non-zeros)."""

    @abstractmethod
    def shift(self, block: Block, change: Array) -> Array:
        """How much z moves when x_b does."""

    @abstractmethod
    def value(self, x: Array, z: Array) -> float:
        """f(x)."""

    @abstractmethod
    def gradient(self, x: Array, z: Array) -> Array:
        """The gradient, (p,); O(non-zeros)."""

    @abstractmethod
    def gradient_at(self, x: Array, z: Array, block: Block) -> Array:
        """The gradient on a block; O(its non-zeros)."""

    @abstractmethod
    def hessian(self, x: Array, z: Array, block: Block) -> Array:
        """The Hessian on a block at x, dense (|b|, |b|)."""

    @abstractmethod
    def bound(self, block: Block) -> Array:
        """H_b, above the Hessian on a block at every x, dense (|b|, |b|)."""

    @abstractmethod
    def bound_times(self, direction: Array) -> Array:
        """H d, H above the whole Hessian at every x; O(non-zeros)."""

    @abstractmethod
    def coordinate_bounds(self) -> Array:
        """The diagonal of H: a Lipschitz constant of each partial derivative, (p,)."""

    @cached_property
    def lipschitz(self) -> Array:
        """L_i above 0: where the function does not depend on x_i, eps times the largest."""
        bounds = self.coordinate_bounds()
        largest = float(bounds.max())
        least = np.finfo(self.dtype).eps * largest if largest else 1.0
        return np.maximum(bounds, least)

    @cached_property
    def largest_scaled_curvature(self) -> float:
        """The largest eigenvalue of D^-1/2 H D^-1/2, D = diag(L_i): power iteration, and 1 %."""
        root = np.sqrt(self.lipschitz)
        vector = np.random.default_rng(0).standard_normal(self.size).astype(self.dtype)
        found = 0.0
        for _ in range(100):
            vector /= max(float(np.linalg.norm(vector)), float(np.finfo(self.dtype).tiny))
            vector = self.bound_times(vector / root) / root
            before, found = found, float(np.linalg.norm(vector))
            if abs(found - before) <= 1e-4 * found:
                break
        return 1.01 * found or 1.0

    def give_back(self, x: Array) -> Any:
        """x in its shape and as the data came: numpy, or a tensor on the data's device."""
        return like(self.given, x.reshape(self.shape))
