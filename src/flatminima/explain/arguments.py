"""What users give to explanations, and what is said of what cannot be."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from flatminima.errors import InputError, unknown


def model(given: Any) -> nn.Module:
    """A network, or an `InputError`."""
    if not isinstance(given, nn.Module):
        raise InputError(f"the model is {_kind(given)}: give a torch.nn.Module")
    return given


def function(name: str, given: Any) -> Any:
    """Something to call, or an `InputError`."""
    if not callable(given):
        raise InputError(f"{name} is {_kind(given)}: give a function")
    return given


def chosen(kind: str, name: Any, known: Iterable[str]) -> Any:
    """A name that is known, or an `InputError` with the nearest."""
    names = list(known)
    if not isinstance(name, str) or name not in names:
        raise unknown(kind, name, names)
    return name


def whole(name: str, value: Any, least: int) -> int:
    """A whole number of `least` or above, or an `InputError`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise InputError(f"{name} is {value!r}: give a whole number of {least} or above")
    return int(value)


def number(name: str, value: Any, least: float = -math.inf) -> float:
    """A finite number of `least` or above, or an `InputError`."""
    good = not isinstance(value, bool) and isinstance(value, int | float | np.number)
    if not good or not math.isfinite(value) or value < least:
        above = f" of {least:g} or above" if math.isfinite(least) else ""
        raise InputError(f"{name} is {value!r}: give a finite number{above}")
    return float(value)


def floats(name: str, values: Any) -> NDArray[np.float64]:
    """Numbers as a float64 array, of tensors too, or an `InputError`."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    elif hasattr(values, "toarray"):
        values = values.toarray()
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} is {_kind(values)} that makes no array of numbers") from error


def _kind(given: Any) -> str:
    if isinstance(given, type):
        return f"the class {given.__name__}"
    plain = given is None or isinstance(given, str | int | float)
    return repr(given) if plain else f"a {type(given).__name__}"
