"""The points of a slice, and the order in which they are taken: coarse first."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from flatminima.errors import InputError


def axis_values(low: float, high: float, points: int, unit: bool = False) -> tuple[float, ...]:
    """Equally spaced values, of which 0 is one (and 1, with `unit`) exactly.

    The ends move by up to half a step for that; with an odd number about 0 they do not.

    Args:
        low: About where to begin, at most 0.
        high: About where to end, above `low` and at least 0.
        points: How many.
        unit: Whether 1 must be one of them.

    Raises:
        InputError: the ends are not such, or the points too few.
    """
    if not -1e300 < low <= 0 <= high < 1e300 or low == high:
        raise InputError(f"an axis goes from {low} to {high}: let it go from below 0 to above 0")
    if points < 3:
        raise InputError(f"points is {points}: give at least 3, such as 25")
    if unit:
        per_unit = max(1, round((points - 1) / (high - low)))
        first = round(low * per_unit)
        if not first <= 0 < per_unit < first + points:
            raise InputError(
                f"{points} points from {low:g} to {high:g} do not reach 0 and 1: give more "
                "points, or a smaller radius"
            )
        return tuple(i / per_unit for i in range(first, first + points))
    step = (high - low) / (points - 1)
    # int, not round: half-way ties would go to even, and differ between grids.
    first = -int(-low / step + 0.5)
    return tuple(i * step for i in range(first, first + points))


def strides(shape: tuple[int, ...]) -> list[int]:
    """The strides of the levels, from a level of about five points along an axis to all points."""
    levels = [1]
    while 8 * levels[-1] < max(shape):
        levels.append(2 * levels[-1])
    return levels[::-1]


def level(shape: tuple[int, ...], zero: tuple[int, ...], stride: int) -> list[range]:
    """The indices along each axis of the points of a level, of which the origin is one."""
    return [range(z % stride, n, stride) for n, z in zip(shape, zero, strict=True)]


def coarse_to_fine(shape: tuple[int, ...], zero: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Every index of a grid once: the origin, then level by level.

    Args:
        shape: The grid's.
        zero: The index of the origin.
    """
    seen = {zero}
    yield zero
    for stride in strides(shape):
        for index in itertools.product(*level(shape, zero, stride)):
            if index not in seen:
                seen.add(index)
                yield index
