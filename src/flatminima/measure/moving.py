"""A mean that follows what moves, with its error."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from flatminima.measure.along import Terms
from flatminima.measure.results import Estimate

MOST_WAITING = 1000
"""Samples that may lie on their device before they are read."""

STATE = ("weights", "squares", "spread", "mean", "last")


class MovingMean:
    """An exponentially weighted mean of independent samples, and its standard error.

    Samples stay on their device until somebody asks. Those that are not finite do not count.

    Source: West, "Updating mean and variance estimates", 1979.

    Args:
        decay: By what the weights of the samples before fall with each new one.
        method: How they were measured, in words.
    """

    def __init__(self, decay: float, method: str) -> None:
        self.decay, self.method = decay, method
        self.weights = self.squares = self.spread = 0.0
        self.mean = self.last = math.nan
        self._waiting: list[Terms] = []
        self._estimate: Estimate | None = None

    def add(self, sample: Terms) -> None:
        """Take in a sample, of weight 1 beside the decayed ones."""
        self._waiting.append(sample)
        if len(self._waiting) >= MOST_WAITING:
            self.read()

    def read(self) -> None:
        """Fetch the samples that wait, all at once."""
        if self._waiting:
            for sample in numbers(self._waiting):
                if math.isfinite(sample):
                    self._take(sample)
            self._waiting.clear()

    def estimate(self) -> Estimate:
        """The mean; NaN without a sample, its error with one.

        `samples` is the effective number, (sum of weights)^2 / sum of their squares.
        """
        self.read()
        if self._estimate is None:
            effective = self.weights**2 / self.squares if self.squares else 0.0
            self._estimate = Estimate(
                self.mean, self._stderr(), round(effective), method=self.method
            )
        return self._estimate

    def state_dict(self) -> dict[str, float]:
        """What is to be kept, as plain numbers."""
        self.read()
        return {name: getattr(self, name) for name in STATE}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from what `state_dict` gave."""
        self._waiting.clear()
        self._estimate = None
        for name in STATE:
            setattr(self, name, state[name])

    def _take(self, sample: float) -> None:
        self._estimate = None
        self.weights = self.decay * self.weights + 1
        self.squares = self.decay**2 * self.squares + 1
        away = sample - self.mean if self.weights > 1 else 0.0
        self.mean = self.mean + away / self.weights if self.weights > 1 else sample
        self.spread = self.decay * self.spread + away * (sample - self.mean)
        self.last = sample

    def _stderr(self) -> float:
        freedom = self.weights - self.squares / self.weights if self.weights else 0.0
        if freedom <= 1e-12:
            return math.nan
        return math.sqrt(self.spread / freedom * self.squares) / self.weights


def numbers(samples: Sequence[Terms]) -> list[float]:
    """What sums come to, by one synchronization if all scalars are of one device and type."""
    scalars = [scalar for terms in samples for _, scalar in terms if isinstance(scalar, Tensor)]
    if len({(scalar.device, scalar.dtype) for scalar in scalars}) == 1:
        found = iter(torch.stack(scalars).tolist())
    else:
        found = iter([float(scalar) for scalar in scalars])
    return [
        sum(own * (next(found) if isinstance(scalar, Tensor) else scalar) for own, scalar in terms)
        for terms in samples
    ]
