"""What users give to functions, methods and estimators, and what is said of what cannot be."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from flatminima.errors import InputError, unknown


def between(name: str, value: Any, low: float, high: float = math.inf) -> float:
    """A finite number from `low` to `high`, both of them included, or an `InputError`."""
    open_ended = high == math.inf
    bound = f"finite number {low:g} or above" if open_ended else f"number from {low:g} to {high:g}"
    return _checked(name, value, _is_finite(value) and low <= value <= high, bound)


def below(name: str, value: Any, low: float, high: float) -> float:
    """A number of a range without its upper end, or an `InputError`."""
    fits = _is_finite(value) and low <= value < high
    return _checked(name, value, fits, f"finite number in [{low:g}, {high:g})")


def above(name: str, value: Any, low: float = 0, high: float = math.inf) -> float:
    """A finite number of a range without its lower end, or an `InputError`."""
    most = "" if high == math.inf else f" and not above {high:g}"
    fits = _is_finite(value) and low < value <= high
    return _checked(name, value, fits, f"finite number above {low:g}{most}")


def finite(name: str, value: Any) -> float:
    """Any finite number, or an `InputError`."""
    return _checked(name, value, _is_finite(value), "finite number")


def whole(name: str, value: Any, least: int = 1, of: str = "") -> int:
    """A whole number of `least` or above, or an `InputError`; `of` is what it counts."""
    good = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not good or value < least:
        kind = f"of {of}, {least} or above" if of else f"of {least} or above"
        raise InputError(f"{name} is {value!r}: give a whole number {kind}")
    return int(value)


def truth(name: str, value: Any) -> bool:
    """What is true or false, or an `InputError`: a word such as "no" would count as true."""
    if not isinstance(value, bool):
        raise InputError(f"{name} is {value!r}: give true or false")
    return value


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


def _is_finite(value: Any) -> bool:
    # A truth value is a number to Python, and so would be 1.
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return number and math.isfinite(value)


def _checked(name: str, value: Any, fits: bool, bound: str) -> float:
    if not fits:
        raise InputError(f"{name} is {value!r}: give a {bound}")
    return float(value)
