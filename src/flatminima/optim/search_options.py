"""What the options of `GNS` may be."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import Any

from flatminima.errors import InputError, unknown

FORMS = ("full", "diagonal", "low-rank")


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse what cannot be.

    Raises:
        InputError: an option out of its range.
    """
    if options["form"] not in FORMS:
        raise unknown("form of curvature", options["form"], FORMS)
    for name in ("gamma", "rtol"):
        _above(name, options[name], least=0, strict=True)
    _above("tol", options["tol"], least=0)
    if len(options["gamma_range"]) != 2:
        raise InputError(f"gamma_range is {options['gamma_range']!r}: give (least, most)")
    low, high = options["gamma_range"]
    _above("gamma_range[0]", low, least=0, strict=True)
    _above("gamma_range[1]", high, least=low)
    if options["rtol"] >= 1:
        raise InputError(f"rtol is {options['rtol']!r}: give a number below 1")
    for name in ("max_search", "max_iter", "products", "rank"):
        _above(name, options[name], least=1, whole=True)
    _above("seed", options["seed"], least=0, whole=True)


def _above(
    name: str, value: Any, *, least: float, strict: bool = False, whole: bool = False
) -> None:
    kind = numbers.Integral if whole else numbers.Real
    good = isinstance(value, kind) and not isinstance(value, bool)
    if not good or not (value > least if strict else value >= least) or value == math.inf:
        what = "whole" if whole else "finite"
        bound = f"above {least:g}" if strict else f"of {least:g} or above"
        raise InputError(f"{name} is {value!r}: give a {what} number {bound}")
