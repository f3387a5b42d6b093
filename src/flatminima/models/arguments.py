"""Numbers that users give to estimators, and what is said of bad ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from flatminima.errors import InputError


def whole(name: str, value: Any, least: int) -> int:
    """A whole number of `least` or above, or an `InputError`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise InputError(f"{name} is {value!r}: give a whole number of {least} or above")
    return int(value)


def number(name: str, value: Any, low: float, high: float, *, with_low: bool = False) -> float:
    """A finite number in (low, high], and with `with_low` low itself, or an `InputError`."""
    good = not isinstance(value, bool) and isinstance(value, int | float | np.number)
    inside = good and (low < value <= high or (with_low and value == low))
    if not inside or value == float("inf"):
        above = f"of {low:g} or above" if with_low else f"above {low:g}"
        most = "" if high == float("inf") else f" and not above {high:g}"
        raise InputError(f"{name} is {value!r}: give a number {above}{most}")
    return float(value)
