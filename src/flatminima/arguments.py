"""What users give to functions and estimators, and what is said of what cannot be."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from flatminima.errors import InputError, unknown


def whole(name: str, value: Any, least: int) -> int:
    """A whole number of `least` or above, or an `InputError`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise InputError(f"{name} is {value!r}: give a whole number of {least} or above")
    return int(value)


def number(
    name: str,
    value: Any,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    with_low: bool = False,
) -> float:
    """A finite number in (low, high], and with `with_low` low itself, or an `InputError`."""
    real = not isinstance(value, bool) and isinstance(value, int | float | np.number)
    inside = real and math.isfinite(value) and (low < value or (with_low and value == low))
    if not inside or value > high:
        above = f" of {low:g} or above" if with_low else f" above {low:g}"
        finite, above = ("", above) if math.isfinite(low) else ("finite ", "")
        most = "" if high == math.inf else f" and not above {high:g}"
        raise InputError(f"{name} is {value!r}: give a {finite}number{above}{most}")
    return float(value)


def chosen(kind: str, name: Any, known: Iterable[str]) -> Any:
    """A name that is known, or an `InputError` with the nearest."""
    names = list(known)
    if not isinstance(name, str) or name not in names:
        raise unknown(kind, name, names)
    return name


def network(given: Any) -> nn.Module:
    """A network, or an `InputError`."""
    if not isinstance(given, nn.Module):
        raise InputError(f"the model is {kind_of(given)}: give a torch.nn.Module")
    return given


def function(name: str, given: Any) -> Any:
    """Something to call, or an `InputError`."""
    if not callable(given):
        raise InputError(f"{name} is {kind_of(given)}: give a function")
    return given


def tensor(name: str, given: Any) -> Tensor:
    """A tensor, or an `InputError`."""
    if not isinstance(given, Tensor):
        mend = "torch.from_numpy makes one" if isinstance(given, np.ndarray) else "give one"
        raise InputError(f"{name} must be a tensor and is {kind_of(given)}: {mend}")
    return given


def floats(name: str, values: Any) -> NDArray[np.float64]:
    """Numbers as a float64 array, of tensors too, or an `InputError`."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    elif hasattr(values, "toarray"):
        values = values.toarray()
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} is {kind_of(values)} that makes no array of numbers") from error


def kind_of(given: Any) -> str:
    """What something is, for people: itself if it is short, else its type."""
    if isinstance(given, type):
        return f"the class {given.__name__}"
    plain = given is None or isinstance(given, str | int | float)
    return repr(given) if plain else f"a {type(given).__name__}"
