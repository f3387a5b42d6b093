"""Which sigma to start from: the one at which noise raises the loss by a stated part of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flatminima.errors import InputError
from flatminima.measure.batches import Batches, MeanLoss, scalar_loss
from flatminima.measure.cost import Meter
from flatminima.measure.gap import Shaken
from flatminima.measure.passes import Passes
from flatminima.measure.results import Estimate, mean_and_stderr
from flatminima.measure.untouched import free_parameters, untouched
from flatminima.objectives import Objective
from flatminima.perturb.noise import Noise
from flatminima.progress import Progress

LOWEST, FIRST, HIGHEST = 1e-8, 1e-2, 1e4
"""Where sigma is searched, and from where."""

TOLERANCE = 0.01
"""How near the gap comes to the wanted one, as a part of it."""

MOST_TRIALS = 40
LARGEST_STEP = 4.0
INTERPOLATIONS = 10


@dataclass(frozen=True)
class StartSigma(Estimate):
    """A sigma to start from.

    Attributes:
        value: The sigma.
        stderr: Its standard error over the draws: that of the gap, by the gap's slope in sigma.
        samples: How many draws of noise.
        gap: The perturbation gap F(W) - f(W) measured at `value`, within 1 % of fraction * loss.
        gap_stderr: Its standard error.
        loss: The loss f(W).
        fraction: The part of the loss asked for.
        trials: How many sigmas were tried.
        forwards: Forward passes, each over all batches.
    """

    gap: float
    gap_stderr: float
    loss: float
    fraction: float
    trials: int
    forwards: int

    def __str__(self) -> str:
        gap = f"raises the loss {self.loss:.4g} by {self.fraction:.3g} of it"
        return f"{super().__str__()} ({gap}; {self.samples} draws, {self.forwards} forward passes)"


def start_sigma(
    model: nn.Module,
    objective: Objective,
    batches: Batches,
    *,
    fraction: float = 0.1,
    draws: int = 5,
    noise: str = "normal",
    params: Iterable[Tensor] | Iterable[str] | str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> StartSigma:
    r"""The sigma with F(W) - f(W) = fraction * f(W), where F(W) = E[f(W + U)] and U = sigma z.

    The gap is the two-point one of `perturbation_gap`. All sigmas are tried with the same z, so it
    is a smooth function of sigma, and its root is found by a few steps on
    $\log \sigma \mapsto \log \mathrm{gap}$, close to a line of slope 2: for a quadratic
    $\sigma^2 = 2\,\mathrm{fraction}\,f / \overline{z'Hz}$ exactly, whose mean over draws is Tr H.

    A heuristic, to know where to begin a sweep: noise should be felt in the loss and not drown it.
    It asks for a W where the loss means something. Before fine-tuning it does not: at a new head,
    or where the model contradicts the new labels, noise does not raise the loss at all. Measure
    after the first epoch of plain training, with a smaller fraction where a new head has learned
    little by then; and on held-out samples once the training loss is close to 0.

    Cost: 2 draws forward passes over the batches for each sigma tried, usually 3 to 8 of them, and
    one pass at W; no gradients, two weight-sized buffers. 100 samples are enough. The model is left
    as by `perturbation_gap`.

    Source: this library.

    Args:
        model: The model, its parameters float32 or float64, on one device.
        objective: `(model, batch) -> scalar`, the mean over the batch's samples; positive.
        batches: A list or a DataLoader, read once for each sigma tried.
        fraction: The gap as a part of the loss at W.
        draws: How many z, at least 2.
        noise: The distribution of z: "normal", "laplace", "uniform", "rademacher", "binomial".
        params: Which parameters move: tensors, or names with wildcards ("encoder.*"); default:
            all that require a gradient.
        seed: Of the noise; the global random state is not touched.
        progress: Called with ("start sigma", sigmas tried, the same + 1) after each.

    Raises:
        InputError: the loss at W is not finite or not above 0; the fraction is not positive, or too
            small for the dtype; draws < 2; no sigma in [1e-8, 1e4] has such a gap, or the gap
            there is below twice its standard error; bad parameters or batches.
    """
    distribution = Noise.named(noise)
    if draws < 2:
        raise InputError(f"draws is {draws}: give at least 2, for an error")
    named = free_parameters(model, params)
    first = next(iter(named.values()))
    least = 1000 * torch.finfo(first.dtype).eps
    if not (math.isfinite(fraction) and fraction >= least):
        kind = str(first.dtype).removeprefix("torch.")
        raise InputError(
            f"fraction is {fraction}: give a finite number of at least {least:.2g}, which is what "
            f"{kind} resolves, such as 0.1"
        )
    meter = Meter(first.device, first.dtype)
    asked: list[_Trial] = []
    passes = Passes(batches, first.device)
    with torch.no_grad(), Shaken(named, seed) as weights:

        def measure(sigma: float, mend: str | None) -> Tensor:
            losses = MeanLoss(mend or "")
            with untouched(model, objective, first.device):
                for batch, count in passes:
                    places = weights.visit(sigma, distribution, draws if sigma else 0, True)
                    # The first place is W itself, whose loss is known once sigma is not 0.
                    row = [
                        scalar_loss(model, objective, batch)
                        for place, _ in enumerate(places)
                        if place or not sigma
                    ]
                    losses.add(torch.stack(row), count)
            return losses.value(finite=mend is not None)

        loss = measure(0.0, "mend the data or the model").item()
        if not loss > 0:
            raise InputError(
                f"the loss at W is {loss}, and a part of it no gap: give an objective that is "
                "positive, or samples that the model was not trained on"
            )

        def gap(sigma: float) -> _Trial:
            gaps = measure(sigma, None).reshape(draws, 2).mean(1) - loss
            asked.append(_Trial(sigma, *mean_and_stderr(gaps)))
            if progress is not None:
                progress("start sigma", len(asked), len(asked) + 1)
            return asked[-1]

        found = _crossing(gap, fraction * loss)
    if not found.gap > 2 * found.stderr:
        raise InputError(
            f"at sigma {found.sigma:.2g} the gap, {found.gap:.2g} ± {found.stderr:.2g} (standard "
            f"error), cannot be told from 0: give more draws than {draws}, or weights nearer a "
            "minimum, such as after an epoch of plain training"
        )
    return StartSigma(
        found.sigma,
        found.sigma * found.stderr / found.gap / _slope(found, asked),
        draws,
        gap=found.gap,
        gap_stderr=found.stderr,
        loss=loss,
        fraction=fraction,
        trials=len(asked),
        forwards=1 + 2 * draws * len(asked),
        method=f"two-point {noise} noise, gap {fraction:g} of the loss",
        seed=seed,
        **meter.read(),
    )


@dataclass(frozen=True)
class _Trial:
    """The gap measured at a sigma."""

    sigma: float
    gap: float
    stderr: float


def _crossing(measure: Callable[[float], _Trial], wanted: float) -> _Trial:
    """The trial whose gap is the one wanted, walking from `FIRST` and bracketing on the way."""
    below: _Trial | None = None
    above: _Trial | None = None
    sigma = FIRST
    for number in range(MOST_TRIALS):
        trial = measure(sigma)
        if abs(trial.gap / wanted - 1) <= TOLERANCE:
            return trial
        # A loss that is not finite is as far up as can be.
        if trial.gap < wanted:
            below = trial
        else:
            above = trial
        sigma = _next(below, above, wanted, halve=number >= INTERPOLATIONS)
        if not LOWEST <= sigma <= HIGHEST:
            break
    at = f"at sigma {trial.sigma:.2g} the gap is {trial.gap:.2g}, and {wanted:.2g} was wanted"
    if above is None:
        raise InputError(
            f"noise does not raise the loss so far: {at}; measure after an epoch of plain "
            "training, or give a smaller fraction"
        )
    if below is None:
        raise InputError(f"the smallest noise raises the loss further: {at}; check the objective")
    raise InputError(f"the gap jumps: {at}; give more draws or samples, or float64 weights")


def _next(below: _Trial | None, above: _Trial | None, wanted: float, *, halve: bool) -> float:
    """The next sigma: on a line in log sigma and log gap, which near a minimum has slope 2."""
    if below is not None and above is not None:
        middle = math.sqrt(below.sigma * above.sigma)
        if halve or not (below.gap > 0 and math.isfinite(above.gap)):
            return middle
        part = math.log(wanted / below.gap) / math.log(above.gap / below.gap)
        return below.sigma * math.pow(above.sigma / below.sigma, part)
    if below is not None:
        rise = math.sqrt(wanted / below.gap) if below.gap > 0 else math.inf
        return below.sigma * min(rise, LARGEST_STEP)
    assert above is not None
    fall = math.sqrt(wanted / above.gap) if math.isfinite(above.gap) else 0.0
    return above.sigma * max(fall, 1 / LARGEST_STEP)


def _slope(found: _Trial, trials: list[_Trial]) -> float:
    """d log gap / d log sigma at the sigma found, from the nearest trial that is not too near.

    NaN where the gap falls.
    """
    slopes: list[tuple[float, float]] = []
    for trial in trials:
        distance = math.log(trial.sigma / found.sigma)
        if abs(distance) > TOLERANCE and 0 < trial.gap < math.inf:
            slopes.append((abs(distance), math.log(trial.gap / found.gap) / distance))
    slope = min(slopes)[1] if slopes else 2.0
    return slope if slope > 0 else math.nan
