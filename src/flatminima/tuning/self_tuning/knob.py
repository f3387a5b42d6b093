"""One hyperparameter: its bounds, and the unconstrained number that stands for it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from flatminima.errors import InputError


@dataclass(frozen=True)
class Knob:
    r"""A hyperparameter with a value r(u) for each real number u.

    | low | high | r(u) |
    |---|---|---|
    | finite | finite | $l + (h - l)\,\mathrm{sigmoid}(u)$ |
    | finite | infinite | $l + \mathrm{softplus}(u)$ |
    | -infinite | infinite | $u$ |
    | finite, log | finite | $l\,(h / l)^{\mathrm{sigmoid}(u)}$ |
    | 0, log | infinite | $e^u$ |

    A whole knob is $\lfloor r(u) \rfloor$: from `low` up to below `high`. Gates are given u, so
    that a whole knob is tuned as any other.

    Attributes:
        start: Where it begins, between the bounds and on neither.
        low: Its lower bound, never reached.
        high: Its upper bound, never reached.
        log: Whether it lives on a scale of ratios, as penalties and sigma do.
        whole: Whether only whole numbers make sense.
        scale: The first standard deviation of the draws of u around where the knob stands.
        shared: Whether the samples of a batch share one draw, as they must where the knob acts on
            the weights and not on samples.

    Raises:
        InputError: bounds between which there is nothing, a start outside them, a scale not above
            0.
    """

    start: float
    low: float = 0.0
    high: float = math.inf
    log: bool = False
    whole: bool = False
    scale: float = 0.5
    shared: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise InputError(
                f"a knob has the bounds {self.low:g} and {self.high:g}: low must be below high"
            )
        if self.low == -math.inf and self.high < math.inf:
            raise InputError("a knob without a lower bound has no upper one either: give low")
        if self.log and not (self.low > 0 if self.high < math.inf else self.low == 0):
            raise InputError(
                f"a knob on a log scale has the bounds {self.low:g} and {self.high:g}: give both, "
                "above 0, or 0 and infinity"
            )
        if not self.low < self._inner_start < self.high:
            raise InputError(
                f"a knob starts at {self.start:g}, and its bounds are {self.low:g} and "
                f"{self.high:g}: start between them, on neither"
            )
        if not 0 < self.scale < math.inf:
            raise InputError(f"a knob's scale is {self.scale!r}: give a finite number above 0")

    @property
    def _inner_start(self) -> float:
        # In the middle of its whole number, or the first small step would leave it.
        return self.start + 0.5 if self.whole else self.start

    def value(self, u: Tensor) -> Tensor:
        """r(u), of the shape and type of u."""
        return self.inner(u).floor() if self.whole else self.inner(u)

    def inner(self, u: Tensor) -> Tensor:
        """r(u) before it is made whole."""
        bounded = self.high < math.inf
        if self.log:
            if not bounded:
                return u.exp()
            return self.low * torch.exp(math.log(self.high / self.low) * u.sigmoid())
        if bounded:
            return self.low + (self.high - self.low) * u.sigmoid()
        return u if self.low == -math.inf else self.low + softplus(u)

    def position(self) -> float:
        """The u of the start."""
        r = self._inner_start
        if self.high < math.inf:
            if self.log:
                part = math.log(r / self.low) / math.log(self.high / self.low)
            else:
                part = (r - self.low) / (self.high - self.low)
            return math.log(part / (1 - part))
        if self.log:
            return math.log(r)
        return r if self.low == -math.inf else inverse_softplus(r - self.low)


def inverse_softplus(y: float) -> float:
    """The x of softplus(x) = y > 0."""
    return y + math.log(-math.expm1(-y))
