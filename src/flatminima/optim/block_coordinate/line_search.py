"""Armijo's rule, with steps from interpolation."""

from __future__ import annotations

import math
from collections.abc import Callable

SUFFICIENT = 1e-10
"""The part of the promised decrease that is asked for."""


def enough(value: float, start: float, promised: float, eps: float) -> bool:
    """Whether a value fell by as much as promised, up to the rounding of values with this eps."""
    return value <= start + promised + 4 * eps * max(abs(start), abs(value))


def armijo(along: Callable[[float], float], start: float, slope: float, eps: float) -> float:
    """A step that falls enough; 0 if none of 30 does.

    From 1 down: the first new step is at the minimum of the parabola through what is known, the
    next ones at that of the cubic, kept within a tenth and a half of the one before.

    Args:
        along: The value at a step.
        start: The value at 0.
        slope: The derivative there, below 0.
        eps: Of the numbers that values are computed in.
    """
    step, value = 1.0, along(1.0)
    before: tuple[float, float] | None = None
    for _ in range(30):
        if enough(value, start, SUFFICIENT * step * slope, eps):
            return step
        wanted = _smallest(step, value, before, start, slope)
        before = step, value
        step = min(max(wanted, 0.1 * step), 0.5 * step)
        value = along(step)
    return 0.0


def _smallest(
    step: float, value: float, before: tuple[float, float] | None, start: float, slope: float
) -> float:
    if not math.isfinite(value):
        return 0.0
    excess = value - start - slope * step
    parabola = -slope * step * step / (2 * excess) if excess > 0 else 0.5 * step
    if before is None or not math.isfinite(before[1]):
        return parabola
    last, there = before
    first, second = excess / step**2, (there - start - slope * last) / last**2
    cubic = (first - second) / (step - last)
    square = first - cubic * step
    root = square * square - 3 * cubic * slope
    if abs(cubic) < 1e-30 or root < 0:
        return parabola
    return (math.sqrt(root) - square) / (3 * cubic)
