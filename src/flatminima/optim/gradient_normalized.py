"""Newton's method whose damping is the gradient's norm over a length that is searched for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

from flatminima.errors import InputError
from flatminima.optim.metric import Metric
from flatminima.optim.place import Place, Point, check_fit
from flatminima.optim.search_options import check_options
from flatminima.optim.shifted import shifted

if TYPE_CHECKING:
    from flatminima.measure.operators import Operator

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
    belong in closure and curvature.

    With `data_parallel` each process has its own part of the batch: loss and gradient are the mean
    over processes at each call of the closure, and the operator must be one whose products are (its
    own `data_parallel=True`). All then accept the same steps, and their weights stay the same bits.
    With parts of different sizes scale the loss by part x processes / batch.

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
        data_parallel: Whether the closure is of this process's part of the batch.

    Raises:
        InputError: an option out of its range; several groups, or parameters that do not fit;
            data_parallel without a process group.
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
        rtol: float = 0.1,
        rank: int = 10,
        seed: int = 0,
        data_parallel: bool = False,
    ) -> None:
        if data_parallel and not torch.distributed.is_initialized():
            raise InputError(
                "data_parallel=True and there is no process group: start with torchrun and call "
                "torch.distributed.init_process_group, or leave data_parallel out"
            )
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
        self._curvature, self._metric = curvature, Metric(metric)
        # Not of the groups: a state goes on with any number of processes.
        self.data_parallel = data_parallel
        if form == "diagonal" and not self._metric.diagonal:
            raise InputError("a diagonal curvature has no use for a metric that is not diagonal")
        self.last: GNSStep | None = None
        count = sum(p.numel() for p in Place(self.param_groups[0]).parameters)
        if self._metric.size not in (None, count):
            raise InputError(f"metric is for {self._metric.size} parameters and there are {count}")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused for a second group, since all parameters are solved for at once."""
        if self.param_groups:
            raise InputError("GNS solves for all parameters at once: give one group")
        super().add_param_group(param_group)

    @property
    def gamma(self) -> float:
        """The length that the next step begins with."""
        return float(self._memory().get("gamma", self.param_groups[0]["gamma"]))

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
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
        place = Place(options, data_parallel=self.data_parallel)
        here = first = self._evaluate(place, closure, books)
        if not here.finite:
            raise InputError(
                f"before the step the loss is {here.loss} and its gradient's norm {here.norm}: "
                "begin where both are finite"
            )
        for _ in range(options["max_iter"]):
            if here.norm <= options["tol"]:
                books.status = "converged"
                break
            there = self._iterate(place, closure, here, books)
            if there is None:
                books.status = "search_failed"
                break
            here = there
        self.last = GNSStep(
            loss=here.loss, gradient_norm=here.norm, gamma=self.gamma, **vars(books)
        )
        return first.value

    def _iterate(
        self, place: Place, closure: Callable[[], Any], here: Point, books: _Books
    ) -> Point | None:
        """One iteration: where it leads, or None where the search failed."""
        options, memory = self.param_groups[0], self._memory()
        operator = self._curvature()
        check_fit(operator, place)
        before, done = operator.hvps, memory.get("iterations", 0)
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
        gamma, there = self.gamma, None
        for _ in range(options["max_search"]):
            damping = here.norm / gamma
            books.trials += 1
            move = answers.solve(damping)
            if move is not None and move.isfinite().all():
                step = self._metric.primal(move[:, None])[:, 0]
                with place.trial(step, here) as trial:
                    there = self._evaluate(place, closure, books)
                    gain = here.loss - there.loss + here.slack
                    trial.kept = there.finite and gain >= there.norm**2 / (8 * damping)
                if trial.kept:
                    break
            there, gamma = None, gamma / 2
        books.products += operator.hvps - before
        if there is None or move is None:
            return None
        low, high = options["gamma_range"]
        memory["gamma"] = min(max(2 * gamma, low), high)
        memory["iterations"] = done + 1
        books.iterations += 1
        books.damping, books.step_norm = damping, torch.linalg.vector_norm(move).item()
        return there

    def _evaluate(self, place: Place, closure: Callable[[], Any], books: _Books) -> Point:
        books.gradients += 1
        return place.evaluate(closure, self._metric)

    def _memory(self) -> dict[str, Any]:
        """What is saved with the optimizer: gamma and the number of iterations."""
        memory: dict[str, Any] = self.state[self.param_groups[0]["params"][0]]
        return memory
