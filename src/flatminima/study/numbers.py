"""Numbers with as many digits as their error leaves meaningful."""

from __future__ import annotations

import math
from collections.abc import Sequence

NONE = "-"


def with_error(mean: float | None, interval: Sequence[float] | None, scale: float = 1.0) -> str:
    """`mean ± half-width`: two significant digits of the half-width decide those of the mean.

    Args:
        mean: The value; None is a hyphen.
        interval: Its two ends, or None.
        scale: What both are multiplied with, 100 for percent.
    """
    if mean is None:
        return NONE
    mean *= scale
    half = 0.0 if interval is None else scale * (interval[1] - interval[0]) / 2
    # What is equal in all runs, but for rounding, has no error worth printing.
    if half <= 1e-9 * abs(mean):
        return plain(mean)
    if max(abs(mean), half) < 1e-3 or max(abs(mean), half) >= 1e6:
        exponent = math.floor(math.log10(max(abs(mean), half)))
        mean, half = mean / 10.0**exponent, half / 10.0**exponent
        digits = _decimals(half)
        return f"({mean:.{digits}f} ± {half:.{digits}f})e{exponent:+03d}"
    digits = _decimals(half)
    return f"{mean:,.{digits}f} ± {half:,.{digits}f}"


def difference(value: float, interval: Sequence[float] | None, scale: float = 1.0) -> str:
    """`+value [low, high]`, signed, with two significant digits of the half-width.

    Args:
        value: The difference.
        interval: Its two ends, or None.
        scale: What all are multiplied with, 100 for points of a percentage.
    """
    if interval is None:
        return f"{scale * value:+.2g}"
    low, high = scale * interval[0], scale * interval[1]
    width = max(high - low, 1e-9 * abs(low))
    digits = _decimals(width / 2) if width > 0 else 2
    numbers = (_signed(number, digits) for number in (scale * value, low, high))
    return "{} [{}, {}]".format(*numbers)


def p_value(p: float) -> str:
    """`p = 0.031`, or `p < 0.001`.

    Args:
        p: The p-value.
    """
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def plain(value: float) -> str:
    """Four significant digits, or a whole number in full.

    Args:
        value: The number.
    """
    if value == int(value) and abs(value) < 1e12:
        return f"{int(value):,}"
    if 1e-3 <= abs(value) < 1e6:
        return f"{value:,.{max(0, 3 - math.floor(math.log10(abs(value))))}f}"
    return f"{value:.3e}"


def _decimals(half: float) -> int:
    return min(6, max(0, 1 - math.floor(math.log10(half))))


def _signed(value: float, digits: int) -> str:
    text = f"{value:+.{digits}f}"
    # A rounded zero has no sign.
    return text if float(text) else text[1:]
