"""All of a minimum's flatness in one call."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from flatminima.errors import InputError
from flatminima.measure.batches import Batches
from flatminima.measure.budget import Budget
from flatminima.measure.density import spectral_density
from flatminima.measure.eigen import top_eigenvalues
from flatminima.measure.hessian import Hessian
from flatminima.measure.noise_stability import NoiseStability, noise_stability
from flatminima.measure.precision import in_float32
from flatminima.measure.report import PARTS, CurvatureReport
from flatminima.measure.results import EigenEstimate, Result, TraceEstimate
from flatminima.measure.spectrum import SpectralDensity
from flatminima.measure.trace import hessian_trace
from flatminima.objectives import Loss, as_objective
from flatminima.progress import Progress

PROBES = 100
"""Probes of the trace where neither a number nor an error is asked for."""

MOST_PROBES = 10_000
"""The most probes where an error is asked for."""

LANCZOS_STEPS = 100

DENSITY_PROBES, DENSITY_STEPS = 10, 30

FEWEST_STEPS = 5
"""Steps of a density that are worth a probe: with fewer there are fewer probes."""


def curvature(
    model: nn.Module,
    loss: Loss,
    batches: Batches,
    *,
    sigma: float | Sequence[float] | None = None,
    rel_error: float | None = None,
    max_seconds: float | None = None,
    max_gradients: int | None = None,
    probes: int | None = None,
    eigenvalues: int = 1,
    lowest: bool = False,
    draws: int = 50,
    density: bool = False,
    params: Iterable[Tensor] | Iterable[str] | str | None = None,
    backend: str = "auto",
    dtype: torch.dtype | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    keep_interrupted: bool = True,
) -> CurvatureReport:
    """Measure the loss, the Hessian's trace and top eigenvalues, and what noise does to the loss.

    Cost: `probes` + about 40 HVPs; 2 draws + 1 forward passes over the batches for each sigma; 300
    HVPs for the density. The parts are done in the order trace, noise, eigenvalues, density, and
    share a budget: half of it goes to the trace, and of what is left a third to the noise.

    Args:
        model: The model, on one device; measured in eval mode and left as it was.
        loss: One of torch's losses, for `(inputs, targets)` batches; `(model, batch) -> scalar`,
            the mean over the batch's samples; or None for a model that returns its own loss, as
            those of transformers do for batches with labels. A criterion of your own,
            `(outputs, targets) -> scalar`, is `Supervised(criterion)`.
        batches: A list or a DataLoader; each batch counts as often as it has samples.
        sigma: The standard deviation of the noise, or several; None leaves the noise out.
        rel_error: The relative standard error of the trace to stop at.
        max_seconds: About how long it may take. A part that has begun does at least its first
            block.
        max_gradients: About how many gradients over all batches it may cost, an HVP counted as 2
            and a forward pass as a third of one.
        probes: Products for the trace. Default: 100, or with rel_error as many as it takes, at most
            10000.
        eigenvalues: How many of the largest eigenvalues.
        lowest: Whether to find the smallest eigenvalue too, the most negative if there is one.
        draws: Perturbations for each sigma.
        density: Whether to measure the density of all eigenvalues too.
        params: Which parameters: tensors, or names with wildcards ("encoder.*"); default: all that
            require a gradient.
        backend: How products are made, see `Hessian`.
        dtype: torch.float64 computes in double precision; None in the model's own type, a model of
            16 bits in float32.
        seed: Of every random number.
        progress: Called with (stage, done, total), the stages "trace", "noise stability",
            "eigenvalues" and "density".
        keep_interrupted: Whether an interrupt (Ctrl-C) returns what there is, once the trace has
            an estimate; otherwise it is raised.

    Raises:
        InputError: as `hessian_trace`, `noise_stability` and `top_eigenvalues`; a budget with which
            nothing can be measured.
    """
    for name, number in (("probes", probes), ("eigenvalues", eigenvalues), ("draws", draws)):
        if number is not None and (not isinstance(number, int) or number < 1):
            raise InputError(f"{name} is {number!r}: give a whole number, at least 1")
    sigmas = _sigmas(sigma)
    # A generator of parameters is wanted more than once.
    params = params if params is None or isinstance(params, str) else list(params)  # type: ignore[assignment]
    chosen: Any = params
    objective = as_objective(loss)
    operator = Hessian(model, objective, batches, params=chosen, backend=backend, dtype=dtype)
    if eigenvalues > operator.shape[0]:
        raise InputError(
            f"eigenvalues is {eigenvalues}: there are {operator.shape[0]}, one for each parameter"
        )
    budget = Budget(operator, max_seconds, max_gradients)
    shared: dict[str, Any] = {"seed": seed, "progress": progress}
    kept: dict[str, Any] = {**shared, "keep_interrupted": keep_interrupted}
    found: dict[str, Any] = dict.fromkeys(PARTS)

    def trace() -> TraceEstimate:
        wanted = probes or (PROBES if rel_error is None else MOST_PROBES)
        number, seconds = budget.products(wanted, 1 / 2), budget.seconds(1 / 2)
        return hessian_trace(
            operator, probes=number, rel_error=rel_error, max_seconds=seconds, **kept
        )

    def noise() -> NoiseStability:
        number = budget.draws(draws, 2 * len(sigmas), 1 / 3)
        with in_float32(model, objective, batches, dtype) as fine:
            return noise_stability(
                model,
                objective,
                fine,
                sigmas=sigmas,
                draws=number,
                trace=found["trace"],
                params=chosen,
                **shared,
            )

    def extreme(which: str, k: int, share: float) -> EigenEstimate | None:
        # One product for each eigenvalue is that of the residuals.
        products = budget.products(k * (LANCZOS_STEPS + 1), share)
        if products < 2 * k:
            return None
        steps, seconds = max(1, products // k - 1), budget.seconds(share)
        return top_eigenvalues(
            operator, k, which=which, max_steps=steps, max_seconds=seconds, **kept
        )

    def spectrum() -> SpectralDensity | None:
        products, seconds = budget.products(DENSITY_PROBES * DENSITY_STEPS), budget.seconds()
        probed = min(DENSITY_PROBES, products // FEWEST_STEPS)
        if probed < 2:
            return None
        steps = min(DENSITY_STEPS, products // probed)
        return spectral_density(operator, probes=probed, steps=steps, max_seconds=seconds, **kept)

    to_come = 1 + lowest + density
    parts: dict[str, Callable[[], Result | None]] = {"trace": trace}
    parts |= {"noise_stability": noise} if sigmas else {}
    parts |= {"top_eigenvalue": partial(extreme, "largest", eigenvalues, 1 / to_come)}
    if lowest:
        parts |= {"lowest_eigenvalue": partial(extreme, "smallest", 1, 1 / (to_come - 1))}
    parts |= {"density": spectrum} if density else {}
    stopped, error = "done", ""
    try:
        for name, measure in parts.items():
            found[name] = measure()
            stopped = budget.verdict(found[name])
            if stopped == "interrupted":
                break
    except KeyboardInterrupt:
        if not keep_interrupted or found["trace"] is None:
            raise
        stopped = "interrupted"
    except (InputError, MemoryError, torch.OutOfMemoryError) as failure:
        # What was found cost too much to be thrown away.
        if found["trace"] is None:
            raise
        stopped, error = "error", f"{name}: {failure}"
    spread: TraceEstimate = found["trace"]
    if stopped == "done" and spread.stderr > (rel_error or math.inf) * abs(spread.value):
        # As of a trace near 0, which no number of probes finds to a relative error.
        stopped = "rel_error"
    assert operator.loss is not None
    assert operator.samples is not None
    return CurvatureReport(
        loss=operator.loss,
        **found,
        samples=operator.samples,
        parameters=operator.shape[0],
        seed=seed,
        selection=_selection(params),
        stopped=stopped,
        error=error,
    )


def _sigmas(sigma: Any) -> tuple[float, ...]:
    """The sigmas, as numbers.

    Raises:
        InputError: one is no finite number above 0.
    """
    given = () if sigma is None else (sigma,) if not _several(sigma) else tuple(sigma)
    found = []
    for each in given:
        try:
            number = math.nan if isinstance(each, bool | str) else float(each)
        except (TypeError, ValueError):
            number = math.nan
        if not 0 < number < float("inf"):
            raise InputError(f"sigma is {each!r}: give a finite number above 0, such as 0.01")
        found.append(number)
    return tuple(found)


def _several(sigma: Any) -> bool:
    # A tensor of no dimension is an iterable that cannot be gone through.
    whole = isinstance(sigma, str) or getattr(sigma, "ndim", 1) == 0
    return isinstance(sigma, Iterable) and not whole


def _selection(params: Any) -> str:
    """Which parameters were measured, in words; "" for all."""
    if params is None:
        return ""
    names = [params] if isinstance(params, str) else list(params)
    whole = all(isinstance(name, str) for name in names)
    return ", ".join(names) if whole else f"{len(names)} tensors"
