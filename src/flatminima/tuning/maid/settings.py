"""How MAID goes about its steps, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from flatminima.errors import InputError


@dataclass(frozen=True)
class Settings:
    r"""The settings of MAID. None has to be tuned: accuracy and step length adapt.

    Attributes:
        accuracy: The first $\epsilon$, how near the lower solution is asked to be.
        residual: The first $\delta$, of the adjoint system.
        step_size: The first $\alpha$.
        descent: $\eta$: a hypergradient is good enough at $\omega \le (1 - \eta) \lVert z \rVert$.
        decrease: $\lambda < \eta$: a step must lower f by $\lambda \alpha \lVert z \rVert^2$.
        shrink: $\rho$, the factor on the step length at each trial.
        tighten: $\tau$, the factor on both accuracies where they do not suffice.
        grow: The factor on the step length after a step.
        relax: $\nu$, the factor on both accuracies after a step.
        backtracks: Trials before the accuracy is taken to be the reason; one more each time.
        inner: The most products of one solve.
        tolerance: Stop where $\lVert z \rVert + \omega$, hence $\lVert \nabla f \rVert$, is at most
            this.
        floor: The accuracy that is not tightened further; None: 1e4 rounding units, 2e-12 in
            float64.
    """

    accuracy: float = 0.1
    residual: float = 0.1
    step_size: float = 0.1
    descent: float = 0.5
    decrease: float = 0.1
    shrink: float = 0.5
    tighten: float = 0.5
    grow: float = 10 / 9
    relax: float = 1.25
    backtracks: int = 10
    inner: int = 2000
    tolerance: float = 0.0
    floor: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None:
                continue
            least, most = _RANGES.get(field.name, (0.0, math.inf))
            whole = field.name in _WHOLE
            number = isinstance(value, int if whole else int | float)
            number = number and not isinstance(value, bool)
            closed = field.name in _CLOSED
            if not number or not (value >= least if closed else value > least) or not value < most:
                raise InputError(
                    f"{field.name} is {value!r}: give a {'whole ' * whole}number "
                    f"{'from' if closed else 'above'} {least:g}, below {most:g}"
                )
        if not self.decrease < self.descent:
            raise InputError(
                f"decrease is {self.decrease:g} and descent {self.descent:g}: the decrease asked "
                "of a step must be below what its direction promises, decrease < descent"
            )


_RANGES = {
    "descent": (0.0, 1.0),
    "decrease": (0.0, 1.0),
    "shrink": (0.0, 1.0),
    "tighten": (0.0, 1.0),
    "grow": (1.0, math.inf),
    "relax": (1.0, math.inf),
    "backtracks": (1, math.inf),
    "inner": (1, math.inf),
}
_WHOLE = {"backtracks", "inner"}
_CLOSED = {"grow", "relax", "backtracks", "inner", "tolerance"}
