"""How sigma or rho changes over training: factors on the strength, by step.

A schedule is any callable `step -> factor`, where steps are the optimizer's, from 0. Those here are
plain dataclasses, so an optimizer's state can say which one it was saved with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from flatminima.errors import InputError

Schedule: TypeAlias = Callable[[int], float]
"""`step -> factor`."""


@dataclass(frozen=True)
class constant:
    """Factor 1 throughout."""

    def __call__(self, step: int) -> float:
        """The factor at a step."""
        return 1.0


@dataclass(frozen=True)
class _Ramp:
    """A schedule that ends at factor 1 after `total` steps.

    Attributes:
        total: Steps of the ramp; from there on the factor is 1.
        every: The factor is held for this many steps, an epoch's worth for instance.
    """

    total: int
    every: int = 1

    def __post_init__(self) -> None:
        for name in ("total", "every"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(
                    f"{name} of a schedule counts steps and must be at least 1, not {value!r}"
                )

    def progress(self, step: int) -> float:
        """From 0 in the first interval to 1 in the last, as linspace(0, 1, intervals)."""
        intervals = -(-self.total // self.every)
        return min(1.0, (step // self.every) / (intervals - 1)) if intervals > 1 else 1.0


@dataclass(frozen=True)
class linear(_Ramp):
    """From 0 (the first interval is free of noise) to 1 in equal steps."""

    def __call__(self, step: int) -> float:
        """The factor at a step."""
        return self.progress(step)


@dataclass(frozen=True)
class exponential(_Ramp):
    """From `start` to 1 in equal ratios.

    Attributes:
        start: The factor in the first interval. The released code of the NSO paper starts at an
            absolute 1e-5, that is start = 1e-5 / sigma.
    """

    start: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.start, (int, float)) or not 0 < self.start <= 1:
            raise InputError(f"start of an exponential schedule is in (0, 1], not {self.start!r}")

    def __call__(self, step: int) -> float:
        """The factor at a step."""
        return float(self.start ** (1 - self.progress(step)))


def by_epoch(factor: Callable[[int], float], steps_per_epoch: int) -> Schedule:
    """A schedule from a callable of the epoch.

    Args:
        factor: `epoch -> factor`, epochs from 0.
        steps_per_epoch: Optimizer steps in an epoch.
    """
    if steps_per_epoch < 1:
        raise InputError(f"steps_per_epoch must be at least 1, not {steps_per_epoch!r}")
    return lambda step: factor(step // steps_per_epoch)


def describe(schedule: Schedule) -> dict[str, Any]:
    """What an optimizer's state says of its schedule; of a callable of the user's only "custom"."""
    settings = asdict(schedule) if isinstance(schedule, (constant, _Ramp)) else None
    return {"name": "custom"} if settings is None else {"name": type(schedule).__name__, **settings}
