"""All of a minimum's flatness in one call."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
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
        if number is not None and number < 1:
            raise InputError(f"{name} is {number}: give at least 1")
    sigmas = () if sigma is None else (sigma,) if isinstance(sigma, (int, float)) else tuple(sigma)
    for each in sigmas:
        if not 0 < each < float("inf"):
            raise InputError(f"sigma is {each}: give a finite number above 0, such as 0.01")
    # A generator of parameters is wanted more than once.
    chosen: Any = params if params is None or isinstance(params, str) else list(params)
    objective = as_objective(loss)
    operator = Hessian(model, objective, batches, params=chosen, backend=backend, dtype=dtype)
    budget = Budget(operator, max_seconds, max_gradients)
    shared: dict[str, Any] = {"seed": seed, "progress": progress}
    kept: dict[str, Any] = {**shared, "keep_interrupted": keep_interrupted}
    found: dict[str, Any] = dict.fromkeys(PARTS)

    def trace() -> TraceEstimate:
        wanted = probes or (PROBES if rel_error is None else MOST_PROBES)
        number, seconds = budget.products(wanted, 1 / 2), budget.seconds(1 / 2)
        estimate = hessian_trace(
            operator, probes=number, rel_error=rel_error, max_seconds=seconds, **kept
        )
        # As of a trace near 0, which no number of probes finds to a relative error.
        budget.short |= estimate.stderr > (rel_error or math.inf) * abs(estimate.value)
        return estimate

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

    def top() -> EigenEstimate:
        share = 1 / 2 if density else 1.0
        # One product for each eigenvalue is that of the residuals.
        products = budget.products(eigenvalues * (LANCZOS_STEPS + 1), share)
        steps, seconds = max(1, products // eigenvalues - 1), budget.seconds(share)
        return top_eigenvalues(operator, eigenvalues, max_steps=steps, max_seconds=seconds, **kept)

    def spectrum() -> SpectralDensity:
        products, seconds = budget.products(DENSITY_PROBES * DENSITY_STEPS), budget.seconds()
        steps = max(2, products // DENSITY_PROBES)
        return spectral_density(
            operator, probes=DENSITY_PROBES, steps=steps, max_seconds=seconds, **kept
        )

    parts: dict[str, Callable[[], Result]] = {"trace": trace}
    parts |= {"noise_stability": noise} if sigmas else {}
    parts |= {"top_eigenvalue": top}
    parts |= {"density": spectrum} if density else {}
    stopped = "done"
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
    assert operator.loss is not None
    assert operator.samples is not None
    return CurvatureReport(
        loss=operator.loss,
        **found,
        samples=operator.samples,
        parameters=operator.shape[0],
        seed=seed,
        stopped=stopped,
    )
