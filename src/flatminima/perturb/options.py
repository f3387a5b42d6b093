"""The options that every method takes, and how options are checked."""

from __future__ import annotations

import math
import numbers
from typing import Any, TypedDict

import torch
from torch import nn

from flatminima.errors import InputError
from flatminima.perturb.schedules import Schedule


class Options(TypedDict, total=False):
    """What every method takes beside its own options; see `engine.Perturbed`."""

    schedule: Schedule | None
    interval: int
    seed: int | None
    share_masks: bool
    model: nn.Module | None
    scaler: torch.amp.GradScaler | None
    max_grad_norm: float | None


def strength(name: str, value: Any) -> float:
    """A strength as a float.

    Raises:
        InputError: it is negative or not finite.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InputError(f"{name} must be a number, not {value!r}")
    if not math.isfinite(value) or value < 0:
        raise InputError(f"{name} must be finite and at least 0, not {value!r}")
    return float(value)


def whole(name: str, value: Any, least: int = 1) -> int:
    """An option that counts something.

    Raises:
        InputError: it is no integer or less than `least`.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise InputError(f"{name} must be an integer, not {value!r}")
    if value < least:
        raise InputError(f"{name} must be at least {least}, not {value}")
    return int(value)


def truth(name: str, value: Any) -> bool:
    """An option that is true or false.

    Raises:
        InputError: it is neither.
    """
    if not isinstance(value, bool):
        raise InputError(f"{name} must be True or False, not {value!r}")
    return value


def between(name: str, value: Any, low: float, high: float) -> float:
    """An option that lies in a range.

    Raises:
        InputError: it is no number or outside.
    """
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not low <= value <= high or not math.isfinite(value):
        bound = f"at least {low} and finite" if high == math.inf else f"in [{low}, {high}]"
        raise InputError(f"{name} must be a number {bound}, not {value!r}")
    return float(value)
