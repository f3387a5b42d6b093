"""MAID: bilevel descent that decides how exact to be and how far to go."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flatminima.errors import InputError
from flatminima.tuning.maid.estimate import Estimated
from flatminima.tuning.maid.hypergradient import Hypergradient, hypergradient_at
from flatminima.tuning.maid.knobs import check_start
from flatminima.tuning.maid.lower import solve_lower
from flatminima.tuning.maid.problem import Bilevel, Level, LowerPoint, check_points, norm
from flatminima.tuning.maid.regularity import Regularity, RegularityOf
from flatminima.tuning.maid.result import BilevelResult, Step
from flatminima.tuning.maid.settings import Settings


class MAID:
    r"""The method of adaptive inexact descent, a step at a time.

    A step solves the lower and the adjoint problem ever better until the hypergradient z is a sure
    direction of descent, $\omega \le (1 - \eta) \lVert z \rVert$, which gives $\langle \nabla f, z
    \rangle \ge \eta \lVert z \rVert^2$. It then shortens $\alpha$ until what f is at most after the
    step is below what it was at least before,

    $$U(\theta - \alpha z) - L(\theta) \le -\lambda \alpha \lVert z \rVert^2,$$

    so that f itself falls by that much, though it is never computed. Where no length does, both
    accuracies are tightened and one more trial is allowed. After a step the length grows and the
    accuracies relax. Solves start from the last solutions.

    `state_dict` holds all that later steps depend on: resuming equals never having stopped, bit for
    bit, on one machine.

    Source: Salehi, Mukherjee, Roberts, Ehrhardt, An adaptively inexact first-order method for
    bilevel optimization with application to hyperparameter learning, 2023, arXiv 2308.10098.

    Args:
        upper: g(x, theta), a scalar.
        lower: h(x, theta), a scalar, twice differentiable and strongly convex in x.
        x: Where the first lower solve starts, any shape; float64 (float32 has few digits for this).
        theta: The knobs to start from, any shape, of the same type.
        regularity: (x, theta) -> the problem's constants. None: `Estimated`, and then nothing is
            certified.
        settings: How it goes about it.

    Raises:
        InputError: knobs that are not differentiable, a lower problem that is not strongly convex
            or less than said, values that are not finite.
    """

    def __init__(
        self,
        upper: Level,
        lower: Level,
        x: Tensor,
        theta: Tensor,
        *,
        regularity: RegularityOf | None = None,
        settings: Settings | None = None,
    ) -> None:
        check_points(x, theta)
        self.settings = settings or Settings()
        self.regularity = regularity or Estimated(upper, lower)
        self.x, self.theta = x.detach().clone(), theta.detach().clone()
        self.accuracy, self.residual = self.settings.accuracy, self.settings.residual
        self.step_size = self.settings.step_size
        self.history: list[Step] = []
        self.start: float | None = None
        self.stopped: str | None = None
        """Why there is no further step, if there is none."""
        self._problem = Bilevel(upper, lower)
        self._adjoint: Tensor | None = None
        floor = self.settings.floor
        self._floor = 1e4 * torch.finfo(x.dtype).eps if floor is None else floor
        check_start(self._problem, self.x, self.theta, self.regularity(self.x, self.theta).strong)

    @property
    def certified(self) -> bool:
        """Whether the constants come from theory, so that bounds are certain."""
        return not isinstance(self.regularity, Estimated)

    @property
    def products(self) -> int:
        """Gradients of the lower problem and products with its second derivatives so far."""
        beside = self.regularity.products if isinstance(self.regularity, Estimated) else 0
        return self._problem.products + beside

    def step(self) -> Step | None:
        """Take a step; None where there is none to take, and `stopped` says why."""
        if self.stopped is not None:
            return None
        trials, budget, tightened = 0, self.settings.backtracks, 0
        while True:
            found, more = self._sure_direction()
            tightened += more
            if found is None:
                return None
            for i in range(budget):
                length = self.step_size * self.settings.shrink**i
                trials += 1
                tried = self._try(found, length)
                if tried is not None:
                    return self._take(found, length, tried, trials, tightened)
            if not self._tighten("precision"):
                return None
            budget += 1
            tightened += 1

    def hypergradient(self) -> Hypergradient:
        """The hypergradient at the present knobs and accuracies."""
        s = self.settings
        strong = self.regularity(self.x, self.theta).strong
        point = solve_lower(
            self._problem, self.x, self.theta, self.accuracy, strong=strong, most=s.inner
        )
        found = hypergradient_at(
            self._problem,
            point,
            self._adjoint,
            self.regularity(point.x, self.theta),
            self.residual,
            s.inner,
        )
        self.x, self._adjoint = point.x, found.adjoint
        if self.start is None:
            self.start = found.upper
        return found

    def _sure_direction(self) -> tuple[Hypergradient | None, int]:
        """A hypergradient along which f surely falls, and how often accuracies were tightened."""
        tightened = 0
        while True:
            before = self._problem.products
            found = self.hypergradient()
            if found.size + found.bound <= self.settings.tolerance:
                self.stopped = "tolerance"
                return None, tightened
            if found.bound <= (1 - self.settings.descent) * found.size:
                return found, tightened
            near = found.error <= self.accuracy and found.residual <= self.residual
            if not near and self._problem.products - before >= self.settings.inner:
                self.stopped = "unsolved"
                return None, tightened
            if not self._tighten("stationary"):
                return None, tightened
            tightened += 1

    def _tighten(self, otherwise: str) -> bool:
        """Ask for more accuracy, or stop for the reason given where the floor is reached."""
        if min(self.accuracy, self.residual) <= self._floor:
            self.stopped = otherwise
            return False
        self.accuracy *= self.settings.tighten
        self.residual *= self.settings.tighten
        return True

    def _try(self, found: Hypergradient, length: float) -> _Tried | None:
        """The lower problem after a step of this length, if f surely falls by enough."""
        theta = self.theta - length * found.value
        try:
            constants = self._at_trial(theta)
        except (InputError, OverflowError):
            # So far away that nothing is finite: a trial that fails, not a problem that does.
            return None
        point = solve_lower(
            self._problem,
            self.x,
            theta,
            self.accuracy,
            strong=constants.strong,
            most=self.settings.inner,
        )
        if not point.size < float("inf"):
            return None
        if not isinstance(self.regularity, Estimated):
            constants = self.regularity(point.x, theta)
        above = self._problem.upper_at(point.x, theta)
        error = point.size / constants.strong
        _, high = constants.bracket(above.value, norm(above.gradient), error)
        enough = self.settings.decrease * length * found.size**2
        return _Tried(point, above.value, high) if high - found.low <= -enough else None

    def _take(
        self, found: Hypergradient, length: float, tried: _Tried, trials: int, tightened: int
    ) -> Step:
        self.x, self.theta = tried.point.x, tried.point.theta
        step = Step(
            upper=tried.upper,
            low=found.low,
            high=tried.high,
            bound=found.bound,
            gradient=found.size,
            accuracy=self.accuracy,
            residual=self.residual,
            length=length,
            trials=trials,
            tightened=tightened,
            products=self.products,
        )
        self.history.append(step)
        self.step_size = length * self.settings.grow
        self.accuracy *= self.settings.relax
        self.residual *= self.settings.relax
        return step

    def result(self, stopped: str | None = None) -> BilevelResult:
        """What was found so far; this changes nothing.

        Args:
            stopped: Why it ends, where that was not decided here.
        """
        problem = Bilevel(self._problem.upper, self._problem.lower)
        point, above = problem.at(self.x, self.theta), problem.upper_at(self.x, self.theta)
        before, products = self._beside(), self.products
        constants = self._at_trial(self.theta)
        self._load_beside(before)
        error = point.size / constants.strong
        low, high = constants.bracket(above.value, norm(above.gradient), error)
        return BilevelResult(
            self.theta.clone(),
            self.x.clone(),
            above.value,
            low,
            high,
            above.value if self.start is None else self.start,
            tuple(self.history),
            self.stopped or stopped or "steps",
            self.certified,
            products,
        )

    def state_dict(self) -> dict[str, Any]:
        """All that later steps depend on, as tensors and plain values."""
        return {
            "x": self.x.clone(),
            "theta": self.theta.clone(),
            "adjoint": None if self._adjoint is None else self._adjoint.clone(),
            "accuracy": self.accuracy,
            "residual": self.residual,
            "step_size": self.step_size,
            "history": [asdict(step) for step in self.history],
            "start": self.start,
            "stopped": self.stopped,
            "products": self._problem.products,
            "regularity": self._beside(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state of the same problem and settings.

        Raises:
            InputError: the state is of a problem of another size.
        """
        for name in ("x", "theta"):
            saved, own = state[name], getattr(self, name)
            if saved.shape != own.shape or saved.dtype != own.dtype:
                raise InputError(
                    f"the state's {name} is {tuple(saved.shape)} of {saved.dtype}, this problem's "
                    f"{tuple(own.shape)} of {own.dtype}: load it into the problem it was saved from"
                )
        self.x, self.theta = state["x"].to(self.x, copy=True), state["theta"].to(self.x, copy=True)
        adjoint = state["adjoint"]
        self._adjoint = None if adjoint is None else adjoint.to(self.x, copy=True)
        self.accuracy, self.residual = state["accuracy"], state["residual"]
        self.step_size, self.start = state["step_size"], state["start"]
        self.history = [Step(**step) for step in state["history"]]
        self.stopped = state["stopped"]
        self._problem.products = state["products"]
        self._load_beside(state["regularity"])

    def _at_trial(self, theta: Tensor) -> Regularity:
        """The constants at knobs that are only tried."""
        if isinstance(self.regularity, Estimated):
            return self.regularity.at_trial(self.x, theta)
        return self.regularity(self.x, theta)

    def _beside(self) -> dict[str, Any]:
        """The state of what measures the constants, where something does."""
        return self.regularity.state_dict() if isinstance(self.regularity, Estimated) else {}

    def _load_beside(self, state: dict[str, Any]) -> None:
        if isinstance(self.regularity, Estimated):
            self.regularity.load_state_dict(state)


class _Tried(NamedTuple):
    """The lower problem after a step that may be taken, g there, and what f is at most."""

    point: LowerPoint
    upper: float
    high: float
