"""Newton's method whose damping is the gradient's norm over a length that is searched for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

from flatminima.errors import InputError
from flatminima.optim.metric import Metric
from flatminima.optim.search_options import check_options
from flatminima.optim.shifted import shifted

if TYPE_CHECKING:
    from flatminima.measure.operators import Operator

ROUNDING = 10
"""Units in the last place of the loss that a step may seem to lose."""

Curvature: TypeAlias = "Callable[[], Operator]"
"""Makes the operator at the weights as they are."""


@dataclass(frozen=True)
class GNSStep:
    """What a call of `GNS.step` did.

    Attributes:
        status: "moved"; "converged" where the gradient's dual norm was at most `tol`; or
            "search_failed" where no trial was accepted. The weights are those last accepted.
        loss: At these weights.
        gradient_norm: The dual norm of the gradient at these weights.
        gamma: The length that the next step begins with.
        damping: lambda of the last accepted iteration; None if there was none.
        step_norm: ||h|| of the last accepted iteration in the metric; 0 if there was none.
        iterations: Accepted iterations.
        trials: Steps tried, rejected ones too.
        gradients: Calls of the closure.
        products: Products with the curvature.
    """

    status: str
    loss: float
    gradient_norm: float
    gamma: float
    damping: float | None
    step_norm: float
    iterations: int
    trials: int
    gradients: int
    products: int


@dataclass(frozen=True)
class _Point:
    """The loss and the gradient where the weights are."""

    value: Any
    loss: float
    slack: float
    gradient: Tensor
    dual: Tensor
    norm: float

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.norm)


@dataclass
class _Books:
    """What a call of `step` has come to so far."""

    status: str = "moved"
    damping: float | None = None
    step_norm: float = 0.0
    iterations: int = 0
    trials: int = 0
    gradients: int = 0
    products: int = 0


class GNS(Optimizer):
    r"""Gradient-regularized Newton with a search for the gradient-normalized smoothness.

        lambda = ||g||_* / gamma,   h = -(H + lambda B)^-1 g,   x <- x + h

    A trial is accepted if $f(x) - f(x + h) \ge \|\nabla f(x + h)\|_*^2 / (8 \lambda)$; then gamma
    is doubled, else halved and tried again with the same H and g. Where H is positive semi-definite
    $\|h\| \le \gamma$, and some gamma is accepted wherever f is smooth. An approximate H costs
    a smaller gamma and nothing else: errors of the model and of its curvature are one number.

    `curvature` makes an operator of `flatminima.measure` at the current weights, once an iteration:

        GNS(model.named_parameters(), lambda: GaussNewton(model, objective, batches))

    "full" uses it whole. Its products serve all trials of an iteration: where there are at most
    `products` parameters by its eigenvectors, else by a Krylov space (see `shifted.Krylov`), which
    ends by itself after r + 1 products for a matrix of rank r. "diagonal" and "low-rank" stand for
    it by its diagonal and by its largest eigenvalues. Where H + lambda B is not positive definite
    a trial fails without a call of the closure.

    It is for one batch, or for a batch at a time: the closure must give the same function at every
    call within a step, so no dropout, and BatchNorm in eval mode; the weights that a penalty is on
    belong in closure and curvature. One process: ranks would have to agree on what is accepted.

    Cost of an iteration: the products, one gradient for each trial; of a call of `step`, one
    gradient more. Memory: 4 vectors, and `products` of them for "full", `rank` for "low-rank".

    What is ours: the Krylov space; a loss that is off by rounding (10 units in the last place) may
    be accepted; after a failed search the weights and gamma stay what they were; gamma is at most
    `gamma_range[1]`, so that a search can come down from it.

    Source: Semenov, Jaggi, Doikov, "Gradient-Normalized Smoothness for Optimization with
    Approximate Hessians", 2025, arXiv 2506.13710.

    Args:
        params: Parameters of float32 or float64 on one device, in the operator's order; with their
            names (`named_parameters()`) the order is checked. One group. Frozen ones are left out.
        curvature: `() -> Operator` at the weights as they are, in the coordinates of the free
            parameters.
        form: "full", "diagonal" (20 products) or "low-rank".
        metric: B: None for the identity, (n,) for a diagonal, or (n, n), positive definite.
        gamma: Its first value, in the units of a step's length.
        gamma_range: Its bounds after growth.
        max_search: Trials of an iteration.
        max_iter: Iterations of a call of `step`.
        tol: The dual norm of the gradient that counts as 0.
        products: The most products of an iteration of "full".
        rtol: The residual of the linear system to stop at, relative to the gradient.
        rank: Of "low-rank".
        seed: Of the estimates of "diagonal" and "low-rank"; they differ between iterations.

    Raises:
        InputError: an option out of its range; several groups, or parameters that do not fit.
    """

    def __init__(
        self,
        params: Any,
        curvature: Curvature,
        *,
        form: str = "full",
        metric: Tensor | None = None,
        gamma: float = 1.0,
        gamma_range: tuple[float, float] = (1e-9, 1e9),
        max_search: int = 40,
        max_iter: int = 1,
        tol: float = 1e-8,
        products: int = 50,
        rtol: float = 0.01,
        rank: int = 10,
        seed: int = 0,
    ) -> None:
        if not callable(curvature):
            raise InputError(
                f"curvature is a {type(curvature).__name__}: give a function that makes the "
                "operator anew, lambda: GaussNewton(model, objective, batches)"
            )
        defaults = {
            "form": form,
            "gamma": gamma,
            "gamma_range": tuple(gamma_range),
            "max_search": max_search,
            "max_iter": max_iter,
            "tol": tol,
            "products": products,
            "rtol": rtol,
            "rank": rank,
            "seed": seed,
        }
        check_options(defaults)
        super().__init__(params, defaults)
        if len(self.param_groups) > 1:
            raise InputError("GNS solves for all parameters at once: give one group")
        self._curvature, self._metric = curvature, Metric(metric)
        if form == "diagonal" and not self._metric.diagonal:
            raise InputError("a diagonal curvature has no use for a metric that is not diagonal")
        self.last: GNSStep | None = None
        named = self._free()
        if self._metric.size not in (None, sum(p.numel() for _, p in named)):
            count = sum(p.numel() for _, p in named)
            raise InputError(f"metric is for {self._metric.size} parameters and there are {count}")

    @property
    def gamma(self) -> float:
        """The length that the next step begins with."""
        return float(self._memory().get("gamma", self.param_groups[0]["gamma"]))

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take up to `max_iter` iterations; what happened is in `last`.

        Afterwards the weights are those last accepted and `.grad` holds the gradient there, also
        after an exception of the closure in a trial.

        Args:
            closure: Zeroes the gradients, runs forward and backward, and returns the loss. It must
                give the same loss whenever it is called at the same weights.

        Returns:
            The loss before the step, as the closure gave it.

        Raises:
            InputError: no closure; a loss or a gradient that is not finite before the step, or a
                closure that gives none; an operator that does not fit the parameters; a curvature
                that is not finite.
        """
        if closure is None:
            raise InputError("GNS calls a closure several times a step: optimizer.step(closure)")
        options, books = self.param_groups[0], _Books()
        here = first = self._evaluate(closure, books)
        if not here.finite:
            raise InputError(
                f"before the step the loss is {here.loss} and its gradient's norm {here.norm}: "
                "begin where both are finite"
            )
        for _ in range(options["max_iter"]):
            if here.norm <= options["tol"]:
                books.status = "converged"
                break
            there = self._iterate(closure, here, books)
            if there is None:
                books.status = "search_failed"
                break
            here = there
        self.last = GNSStep(
            loss=here.loss, gradient_norm=here.norm, gamma=self.gamma, **vars(books)
        )
        return first.value

    def _iterate(self, closure: Callable[[], Any], here: _Point, books: _Books) -> _Point | None:
        """One iteration: where it leads, or None where the search failed."""
        options, memory = self.param_groups[0], self._memory()
        operator = self._operator()
        before = operator.hvps
        done = memory.get("iterations", 0)
        answers = shifted(
            options["form"],
            operator,
            self._metric,
            here.dual.to(operator.dtype),
            products=options["products"],
            rtol=options["rtol"],
            rank=options["rank"],
            seed=options["seed"] + done,
        )
        parameters = [p for _, p in self._free()]
        start = [p.detach().clone() for p in parameters]
        gamma, there = self.gamma, None
        for _ in range(options["max_search"]):
            damping = here.norm / gamma
            books.trials += 1
            move = answers.solve(damping)
            if move is not None and move.isfinite().all():
                there = self._try(closure, here, damping, move, start, books)
            if there is not None:
                break
            gamma = gamma / 2
        books.products += operator.hvps - before
        if there is None:
            return None
        assert move is not None
        low, high = options["gamma_range"]
        memory["gamma"] = min(max(2 * gamma, low), high)
        memory["iterations"] = done + 1
        books.iterations += 1
        books.damping, books.step_norm = damping, torch.linalg.vector_norm(move).item()
        return there

    def _try(
        self,
        closure: Callable[[], Any],
        here: _Point,
        damping: float,
        move: Tensor,
        start: list[Tensor],
        books: _Books,
    ) -> _Point | None:
        """The point after the move, if it is accepted; otherwise the weights are put back."""
        parameters = [p for _, p in self._free()]
        parts = self._metric.primal(move[:, None])[:, 0].split([p.numel() for p in parameters])
        kept = False
        try:
            with torch.no_grad():
                for parameter, part in zip(parameters, parts, strict=True):
                    parameter.add_(part.view_as(parameter).to(parameter.dtype))
            there = self._evaluate(closure, books)
            gain = here.loss - there.loss + here.slack
            kept = there.finite and gain >= there.norm**2 / (8 * damping)
        finally:
            if not kept:
                with torch.no_grad():
                    for parameter, saved in zip(parameters, start, strict=True):
                        parameter.copy_(saved)
                _gradient_into(parameters, here.gradient)
        return there if kept else None

    def _evaluate(self, closure: Callable[[], Any], books: _Books) -> _Point:
        with torch.enable_grad():
            value = closure()
        books.gradients += 1
        _check_loss(value)
        parameters = [p for _, p in self._free()]
        if all(p.grad is None for p in parameters):
            raise InputError("the closure left no gradient: call loss.backward() in it")
        parts = [torch.zeros_like(p) if p.grad is None else p.grad.to_dense() for p in parameters]
        gradient = torch.cat([part.detach().reshape(-1) for part in parts])
        dual = self._metric.dual(gradient[:, None])[:, 0]
        norm = torch.linalg.vector_norm(dual, dtype=torch.float64).item()
        coarse = torch.finfo(gradient.dtype).eps
        if isinstance(value, Tensor) and value.is_floating_point():
            coarse = max(coarse, torch.finfo(value.dtype).eps)
        loss = float(value)
        return _Point(value, loss, ROUNDING * coarse * abs(loss), gradient, dual, norm)

    def _operator(self) -> Operator:
        """The curvature here, if it is in the coordinates of the free parameters."""
        operator, named = self._curvature(), self._free()
        if not hasattr(operator, "matmat"):
            raise InputError(
                f"curvature() gave a {type(operator).__name__}: return an operator, such as "
                "flatminima.GaussNewton(...) or flatminima.measure.Dense(matrix)"
            )
        sizes = [part.stop - part.start for part in operator.blocks.values()]
        expected = [p.numel() for _, p in named]
        if operator.shape[0] != sum(expected) or (len(sizes) > 1 and sizes != expected):
            raise InputError(
                f"the curvature has blocks of {_short(sizes)} coordinates and the free parameters "
                f"have {_short(expected)}: make both of the same parameters, in the same order"
            )
        names = [name for name, _ in named]
        if len(sizes) > 1 and None not in names and names != list(operator.blocks):
            raise InputError(
                f"the curvature is of {_short(list(operator.blocks))} and the optimizer of "
                f"{_short(names)}: make both of the same parameters, in the same order"
            )
        return operator

    def _free(self) -> list[tuple[str | None, Tensor]]:
        """The parameters to move, with their names where given."""
        group = self.param_groups[0]
        names = group.get("param_names") or [None] * len(group["params"])
        found = [(n, p) for n, p in zip(names, group["params"], strict=True) if p.requires_grad]
        if not found:
            raise InputError("no parameter requires a gradient: requires_grad_(True) on some")
        if {p.dtype for _, p in found} - {torch.float32, torch.float64}:
            raise InputError("the parameters must be float32 or float64: model.float()")
        if len({(p.dtype, p.device) for _, p in found}) > 1:
            raise InputError("the parameters are of several dtypes or devices: bring them to one")
        return found

    def _memory(self) -> dict[str, Any]:
        """What is saved with the optimizer: gamma and the number of iterations."""
        memory: dict[str, Any] = self.state[self.param_groups[0]["params"][0]]
        return memory


def _gradient_into(parameters: list[Tensor], gradient: Tensor) -> None:
    parts = gradient.split([p.numel() for p in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter).clone()


def _short(items: list[Any]) -> str:
    return ", ".join(map(str, items[:6])) + (", ..." if len(items) > 6 else "")


def _check_loss(value: Any) -> None:
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        return
    if isinstance(value, Tensor) or not isinstance(value, int | float):
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"the closure returned {got}: end it with `return loss`, a scalar")
