"""What is added coordinate by coordinate: an L1 penalty and bounds."""

from __future__ import annotations

from typing import Any

import numpy as np

from flatminima.errors import InputError
from flatminima.optim.block_coordinate.matrices import Array, Block, numbers

Bounds = tuple[Any, Any] | None


class Separable:
    r"""$\psi(x) = \sum_i \lambda_i |x_i|$, infinite outside $l_i \le x_i \le u_i$.

    Args:
        size: The number of variables.
        dtype: Theirs.
        l1: lambda, 0 or above, a number or one for each variable.
        bounds: (lower, upper), each None (no bound), a number or one for each variable.

    Raises:
        InputError: a penalty below 0; a lower bound above its upper one.
    """

    def __init__(self, size: int, dtype: Any, l1: Any = 0.0, bounds: Bounds = None) -> None:
        penalty = numbers("l1", l1, dtype)
        if penalty.shape not in ((), (size,)) or (penalty < 0).any():
            raise InputError(f"l1 must be 0 or above, a number or {size} of them, not {l1!r}")
        self.l1 = np.broadcast_to(penalty, (size,))
        if bounds is not None and len(bounds) != 2:
            raise InputError(f"bounds is {bounds!r}: give (lower, upper), None for no bound")
        lower, upper = bounds or (None, None)
        self.lower = _bound("lower bound", lower, -np.inf, size, dtype)
        self.upper = _bound("upper bound", upper, np.inf, size, dtype)
        if (self.lower > self.upper).any():
            i = int(np.argmax(self.lower > self.upper))
            raise InputError(
                f"the bounds are infeasible: variable {i} must be at least {self.lower[i]:g} and "
                f"at most {self.upper[i]:g}"
            )
        self.trivial = bool(
            not self.l1.any() and np.isneginf(self.lower).all() and np.isposinf(self.upper).all()
        )

    def value(self, x: Array) -> float:
        """The penalty; x is within its bounds."""
        return float(self.l1 @ np.abs(x))

    def project(self, x: Array) -> Array:
        """x brought within its bounds."""
        return np.clip(x, self.lower, self.upper)

    def step(self, x: Array, g: Array, curvature: Array, block: Any = slice(None)) -> Array:
        """d that minimizes g d + curvature d^2 / 2 + psi(x + d), each coordinate by itself."""
        if self.trivial:
            return np.asarray(-g / curvature)
        target = x - g / curvature
        shrunk = np.sign(target) * np.maximum(np.abs(target) - self.l1[block] / curvature, 0)
        return np.asarray(np.clip(shrunk, self.lower[block], self.upper[block]) - x)

    def land(self, x: Array, change: Array, block: Block) -> Array:
        """x + change, within the bounds, and on one that rounding alone keeps it from."""
        moved = x + change
        if self.trivial:
            return np.asarray(moved)
        reach = 4 * np.finfo(x.dtype).eps * (np.abs(x) + np.abs(change))
        low, high = self.lower[block], self.upper[block]
        moved = np.where(moved <= low + reach, low, moved)
        return np.asarray(np.where(moved >= high - reach, high, moved))

    def decrease(self, x: Array, g: Array, curvature: Array) -> Array:
        """What that model falls by, each coordinate; g^2 / (2 curvature) where psi is 0."""
        if self.trivial:
            return np.asarray(0.5 * g * g / curvature)
        d = self.step(x, g, curvature)
        added = self.l1 * (np.abs(x + d) - np.abs(x))
        return np.asarray(np.maximum(-(g * d + 0.5 * curvature * d * d + added), 0))

    def violation(self, x: Array, g: Array, curvature: Array) -> float:
        """How far x is from a solution: the largest |curvature d|, max |g_i| where psi is 0."""
        return float(np.abs(curvature * self.step(x, g, curvature)).max())

    def pinned(self, x: Array, block: Any = slice(None)) -> Array:
        """Where x is on a bound, or on the kink of its penalty."""
        on_kink = (x == 0) & (self.l1[block] > 0)
        return np.asarray(on_kink | (x == self.lower[block]) | (x == self.upper[block]))

    def slopes(self, x: Array) -> tuple[Array, Array]:
        """The two ends of the subdifferential of psi at each coordinate; infinite on bounds."""
        low = np.where(x == self.lower, -np.inf, np.where(x <= 0, -self.l1, self.l1))
        high = np.where(x == self.upper, np.inf, np.where(x >= 0, self.l1, -self.l1))
        return low, high

    def orthant(self, x: Array, g: Array, block: Any) -> tuple[Array, Array, Array]:
        """Where psi is linear, on the side that x may leave to: its slope, and that side's box.

        A coordinate on its kink that should stay there gets the box [0, 0].
        """
        l1 = self.l1[block]
        toward = np.where(np.abs(g) > l1, -np.sign(g), 0)
        side = np.where(x != 0, np.sign(x), toward)
        free = l1 == 0
        low = np.where(free | (side < 0), -np.inf, 0)
        high = np.where(free | (side > 0), np.inf, 0)
        low, high = np.maximum(low, self.lower[block]), np.minimum(high, self.upper[block])
        return np.asarray(l1 * side), low, high


def _bound(name: str, given: Any, missing: float, size: int, dtype: Any) -> Array:
    if given is None:
        return np.full(size, missing, dtype=dtype)
    array = np.asarray(given.detach().cpu() if hasattr(given, "detach") else given)
    if array.dtype.kind not in "biuf" or np.isnan(array).any():
        raise InputError(f"the {name} must be numbers, without nan, not {given!r}")
    if array.shape not in ((), (size,)):
        raise InputError(f"the {name} has the shape {array.shape}, and there are {size} variables")
    if (array == -missing).any():
        raise InputError(f"the {name} is {-missing:g}, so no value is left")
    return np.broadcast_to(array.astype(dtype), (size,))
