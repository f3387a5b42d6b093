"""How the options of objectives and reparametrizations are checked: numbers are finite numbers."""

from __future__ import annotations

import math
import numbers
from typing import Any

from flatminima.errors import InputError


def between(name: str, value: Any, low: float, high: float = math.inf) -> float:
    """A number from `low` to `high`, both of them included.

    Raises:
        InputError: it is none, or not finite.
    """
    open_ended = high == math.inf
    bound = f"finite number {low:g} or above" if open_ended else f"number from {low:g} to {high:g}"
    return _checked(name, value, _is_finite(value) and low <= value <= high, bound)


def below(name: str, value: Any, low: float, high: float) -> float:
    """A number of a range without its upper end.

    Raises:
        InputError: it is none, or not finite.
    """
    fits = _is_finite(value) and low <= value < high
    return _checked(name, value, fits, f"finite number in [{low:g}, {high:g})")


def above(name: str, value: Any, low: float = 0) -> float:
    """A number above a bound.

    Raises:
        InputError: it is none, or not finite.
    """
    fits = _is_finite(value) and value > low
    return _checked(name, value, fits, f"finite number above {low:g}")


def finite(name: str, value: Any) -> float:
    """Any number.

    Raises:
        InputError: it is none, or not finite.
    """
    return _checked(name, value, _is_finite(value), "finite number")


def whole(name: str, value: Any, least: int = 1, of: str = "") -> int:
    """A whole number.

    Args:
        name: How a user calls it.
        value: As it was given.
        least: The smallest that will do.
        of: What it counts, for the message.

    Raises:
        InputError: it is none, or less than `least`.
    """
    good = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not good or value < least:
        kind = f"of {of}, {least} or above" if of else f"of at least {least}"
        raise InputError(f"{name} is {value!r}: give a whole number {kind}")
    return int(value)


def truth(name: str, value: Any) -> bool:
    """What is true or false.

    Raises:
        InputError: it is neither; a word such as "no" would count as true.
    """
    if not isinstance(value, bool):
        raise InputError(f"{name} is {value!r}: give true or false")
    return value


def _is_finite(value: Any) -> bool:
    # A truth value is a number to Python, and so would be 1.
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return number and math.isfinite(value)


def _checked(name: str, value: Any, fits: bool, bound: str) -> float:
    if not fits:
        raise InputError(f"{name} is {value!r}: give a {bound}")
    return float(value)
