"""What a step tells of the curvature: sums that nobody has added up yet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from flatminima.measure.along import Terms, scaled
from flatminima.measure.moving import numbers


@dataclass
class Call:
    """What the passes of one micro-batch told.

    Attributes:
        weight: Sum of the noisy passes' weights.
        sigma: The noise's.
        slope: Of U'g / sigma^2 in the noisy passes, the sum by their weights.
        losses: Theirs, times their weights; an empty one was not told.
        home_loss: That at W; empty if it was not told.
    """

    weight: float = 0.0
    sigma: float = math.nan
    slope: Terms = field(default_factory=list)
    losses: list[Terms] = field(default_factory=list)
    home_loss: Terms = field(default_factory=list)

    def trace(self) -> Terms:
        """The mean over the noisy passes."""
        return scaled(self.slope, 1 / self.weight)

    def curvature(self) -> Terms:
        """The sigma-smoothed curvature; empty where a loss is missing."""
        if not self.home_loss or not all(self.losses):
            return []
        mean = [term for loss in self.losses for term in scaled(loss, 1 / self.weight)]
        return scaled([*mean, *scaled(self.home_loss, -1.0)], 2 / self.sigma**2)


@dataclass
class Step:
    """What a step told.

    Attributes:
        trace: A sample of the trace.
        curvature: A sample of the smoothed curvature; empty where losses are missing.
    """

    trace: Terms
    curvature: Terms

    @classmethod
    def of(cls, calls: Sequence[Call]) -> Step:
        """Losses of micro-batches are parts of the whole, so what they told adds up."""
        curvatures = [call.curvature() for call in calls]
        return cls(
            [term for call in calls for term in call.trace()],
            [term for found in curvatures for term in found] if all(curvatures) else [],
        )

    @classmethod
    def mean(cls, steps: Sequence[Step]) -> Step:
        """One sample of several steps."""
        part = 1 / len(steps)
        whole = all(step.curvature for step in steps)
        return cls(
            [term for step in steps for term in scaled(step.trace, part)],
            [term for step in steps for term in scaled(step.curvature, part)] if whole else [],
        )

    def corrected(self) -> Terms:
        """The trace without its bias of order sigma^2; empty where losses are missing."""
        if not self.curvature:
            return []
        return [*scaled(self.curvature, 2.0), *scaled(self.trace, -1.0)]

    def state(self) -> list[list[tuple[float, float]]]:
        """Both samples as plain numbers."""
        samples = (self.trace, self.curvature)
        return [[(1.0, n) for n in numbers([terms] if terms else [])] for terms in samples]
