"""What noise of many sizes does to the loss, beside what the Hessian's trace says it does."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor, nn

from flatminima.errors import InputError, require
from flatminima.measure.batches import Batches, MeanLoss, scalar_loss, weighted
from flatminima.measure.cost import Meter
from flatminima.measure.gap import Shaken, perturbation_gap
from flatminima.measure.results import Estimate, Result, mean_and_stderr
from flatminima.measure.untouched import free_parameters, untouched
from flatminima.objectives import Objective
from flatminima.perturb.noise import Noise
from flatminima.progress import Progress

ROUNDED = 0.1
"""The part of a gap that rounding may make up before the table marks it."""


@dataclass(frozen=True)
class StabilityPoint:
    """Noise stability at one sigma.

    Attributes:
        sigma: The standard deviation of each weight's displacement.
        two_sided: F(W) - f(W) from pairs, the mean of [f(W+U) + f(W-U)]/2 - f(W).
        one_sided: The same from the +U alone, the mean of f(W+U) - f(W).
        predicted: sigma^2/2 Tr H; None where no trace was given.
        rounding: How far rounding of the losses may move the gap, eps f(W).
    """

    sigma: float
    two_sided: Estimate
    one_sided: Estimate
    predicted: Estimate | None
    rounding: float

    @property
    def smoothed_curvature(self) -> Estimate:
        """2 (F(W) - f(W)) / sigma^2 from the pairs; see `smoothed_curvature`."""
        return _times(self.two_sided, 2 / self.sigma**2)

    @property
    def resolved(self) -> bool:
        """Whether rounding is less than a tenth of the two-sided gap."""
        return self.rounding < ROUNDED * abs(self.two_sided.value)


@dataclass(frozen=True)
class NoiseStability(Result):
    """F(W) - f(W) over a grid of sigmas.

    Attributes:
        points: One for each sigma, in the order given. All use the same directions z, so their
            errors go up and down together.
        loss: f(W).
        samples: How many samples the losses are the mean of.
        trace: The estimate of Tr H that was given.
    """

    points: tuple[StabilityPoint, ...]
    loss: float
    samples: int
    trace: Estimate | None

    def __str__(self) -> str:
        head = ["sigma", "F - f, two-sided", "one-sided", "2 (F - f) / sigma^2"]
        rows = [head + (["sigma^2/2 Tr H"] if self.trace else [])]
        for p in self.points:
            mark = "" if p.resolved else " *"
            cells = [p.two_sided, p.one_sided, f"{p.smoothed_curvature}{mark}"]
            rows.append([f"{p.sigma:g}", *map(str, cells)])
            if p.predicted is not None:
                rows[-1].append(str(p.predicted))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        notes = [f"loss {self.loss:.6g}, {self.method}"]
        if self.trace is not None:
            notes.append(f"Hessian trace {self.trace}")
        if not all(p.resolved for p in self.points):
            notes.append(f"* rounding in {self.dtype} may make up a tenth or more of the gap")
        return "\n".join([*lines, *notes])

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types."""
        points = []
        for p in self.points:
            parts = {"two_sided": p.two_sided, "one_sided": p.one_sided, "predicted": p.predicted}
            points.append({"sigma": p.sigma, "rounding": p.rounding, **_dicts(parts)})
        return {**super().to_dict(), "points": points, **_dicts({"trace": self.trace})}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The result that `to_dict` wrote."""
        points = tuple(
            StabilityPoint(
                p["sigma"],
                Estimate.from_dict(p["two_sided"]),
                Estimate.from_dict(p["one_sided"]),
                None if p["predicted"] is None else Estimate.from_dict(p["predicted"]),
                p["rounding"],
            )
            for p in data["points"]
        )
        trace = None if data["trace"] is None else Estimate.from_dict(data["trace"])
        return cls(**{**data, "points": points, "trace": trace})

    def plot(self, ax: Any = None) -> Any:
        """Both gaps with their standard errors against sigma, and the trace's prediction.

        Args:
            ax: The matplotlib axes to draw in; default: a new figure's.

        Returns:
            The axes.

        Raises:
            InputError: matplotlib is not installed.
        """
        if ax is None:
            ax = require("matplotlib.pyplot", "plot").subplots()[1]
        sigmas = [p.sigma for p in self.points]
        for label, gaps in (
            ("two-sided", [p.two_sided for p in self.points]),
            ("one-sided", [p.one_sided for p in self.points]),
        ):
            errors = [gap.stderr for gap in gaps]
            ax.errorbar(sigmas, [gap.value for gap in gaps], errors, marker="o", label=label)
        predicted = [p.predicted.value for p in self.points if p.predicted is not None]
        if predicted:
            ax.plot(sigmas, predicted, "k--x", label=r"$\frac{\sigma^2}{2}\,\mathrm{Tr}\,H$")
        ax.set(xscale="log", yscale="log", xlabel=r"$\sigma$", ylabel=r"$F(W) - f(W)$")
        ax.legend()
        return ax


def noise_stability(
    model: nn.Module,
    objective: Objective,
    batches: Batches,
    *,
    sigmas: Sequence[float],
    draws: int = 50,
    noise: str = "normal",
    trace: Estimate | None = None,
    params: Iterable[Tensor] | Iterable[str] | str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> NoiseStability:
    r"""F(W) - f(W) over a grid of sigmas, from pairs and from single points.

    $F(W) = E[f(W + \sigma z)]$. At each sigma the gap is measured as in `perturbation_gap`, with
    the same z everywhere: from pairs, where all terms odd in z cancel, and from the +z alone,
    whose variance has $\sigma^2 \|\nabla f\|^2$ besides. Beside it stands
    $\frac{\sigma^2}{2} \mathrm{Tr}\,H$, to which the gap of a smooth network converges as sigma
    goes to 0; that of a network with kinks (ReLU) need not, see `smoothed_curvature`.

    Cost: 2 draws forward passes for each sigma and one at W, each over all batches, which are read
    once; no gradients, two weight-sized buffers. The model is left as it was.

    Source: Zhang, Li, Ju, Noise Stability Optimization for Finding Flat Minima, 2024,
    arXiv 2306.08553, Figure 2.

    Args:
        model: The model, its parameters float32 or float64, on one device.
        objective: `(model, batch) -> scalar`, the mean over the batch's samples.
        batches: A list or a DataLoader; each batch counts as often as it has samples.
        sigmas: The standard deviations, above 0.
        draws: How many z.
        noise: The distribution of z: "normal", "laplace", "uniform", "rademacher", "binomial".
        trace: An estimate of Tr H over the same samples and parameters, as of `hessian_trace`.
        params: Which parameters move: tensors, or names with wildcards ("encoder.*"); default:
            all that require a gradient.
        seed: Of the noise; the global random state is not touched.
        progress: Called with ("noise stability", batches done, batches) after each batch.

    Raises:
        InputError: no sigma, or one that is not above 0 and finite; draws < 1; an unknown
            distribution; bad parameters, batches or loss.
    """
    sigmas = tuple(float(sigma) for sigma in sigmas)
    if not sigmas:
        raise InputError("sigmas is empty: give at least one, such as [0.005, 0.01, 0.02]")
    for sigma in sigmas:
        if not (math.isfinite(sigma) and sigma > 0):
            raise InputError(f"sigmas has {sigma}: give finite numbers above 0, such as 0.01")
    if draws < 1:
        raise InputError(f"draws is {draws}: give at least 1")
    distribution = Noise.named(noise)
    named = free_parameters(model, params)
    first = next(iter(named.values()))
    meter = Meter(first.device, first.dtype)
    losses = MeanLoss("mend the data or the model, or take smaller sigmas")
    total = len(batches) if isinstance(batches, Sized) else 0
    with untouched(model, objective, first.device), torch.no_grad(), Shaken(named, seed) as weights:
        for done, (batch, count) in enumerate(weighted(batches, first.device), 1):
            row: list[Tensor] = []
            for sigma in sigmas:
                for place, _ in enumerate(weights.visit(sigma, distribution, draws, True)):
                    # Each visit begins at W, whose loss is wanted once.
                    if place or not row:
                        row.append(scalar_loss(model, objective, batch))
            losses.add(torch.stack(row), count)
            if progress is not None:
                progress("noise stability", done, max(done, total))
    means, cost = losses.value(), meter.read()
    gaps = means[1:].reshape(len(sigmas), draws, 2) - means[0]
    rounding = torch.finfo(first.dtype).eps * abs(means[0].item())

    def estimate(samples: Tensor, sides: str, sigma: float) -> Estimate:
        method = f"{sides} {noise} noise, sigma {sigma:g}"
        return Estimate(*mean_and_stderr(samples), draws, method=method, seed=seed, **cost)

    return NoiseStability(
        tuple(
            StabilityPoint(
                sigma,
                estimate(pairs.mean(1), "two-point", sigma),
                estimate(pairs[:, 0], "one-point", sigma),
                None if trace is None else _times(trace, sigma**2 / 2),
                rounding,
            )
            for sigma, pairs in zip(sigmas, gaps, strict=True)
        ),
        means[0].item(),
        losses.samples,
        None if trace is None else _times(trace, 1.0),
        method=f"{noise} noise, {draws} draws",
        seed=seed,
        **cost,
    )


def smoothed_curvature(
    model: nn.Module,
    objective: Objective,
    batches: Batches,
    *,
    sigma: float,
    draws: int = 50,
    noise: str = "normal",
    params: Iterable[Tensor] | Iterable[str] | str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Estimate:
    r"""The sigma-smoothed curvature, $\frac{2}{\sigma^2} (F(W) - f(W))$, F the loss under noise.

    For a smooth loss and normal noise it is the trace of the Hessian of f averaged over the noise
    of all sizes below sigma,
    $2 \int_0^1 t\, E[\mathrm{Tr}\,H(W + t \sigma z)]\, dt = \mathrm{Tr}\,H(W) + O(\sigma^2)$, so it
    converges to the Hessian trace as sigma goes to 0. A ReLU network has curvature at its kinks
    that no second derivative sees: there the two are different quantities at every sigma, and this
    one, which is what noise feels, may even grow without bound: for f(w) = max(w, 0) at w = 0 the
    Hessian trace is 0 and this is $\sqrt{2/\pi}/\sigma$. Judge a flat-minima method on both.

    Cost: 2 draws + 1 forward passes. In float32 rounding moves it by about
    1e-7 * 2 f(W) / sigma^2.

    Source: this library; see `perturbation_gap`.

    Args:
        model: The model, its parameters float32 or float64, on one device.
        objective: `(model, batch) -> scalar`, the mean over the batch's samples.
        batches: A list or a DataLoader; each batch counts as often as it has samples.
        sigma: The standard deviation of each weight's displacement, above 0.
        draws: How many pairs of displacements.
        noise: The distribution of the displacements.
        params: Which parameters move: tensors, or names with wildcards ("encoder.*"); default:
            all that require a gradient.
        seed: Of the noise; the global random state is not touched.
        progress: Called with ("gap", batches done, batches) after each batch.

    Raises:
        InputError: sigma is not above 0; else as `perturbation_gap`.
    """
    if not sigma > 0:
        raise InputError(f"sigma is {sigma}: give a finite number above 0, such as 0.01")
    gap = perturbation_gap(
        model,
        objective,
        batches,
        sigma=sigma,
        draws=draws,
        noise=noise,
        params=params,
        seed=seed,
        progress=progress,
    )
    return _times(gap, 2 / sigma**2)


def _times(estimate: Estimate, factor: float) -> Estimate:
    """The estimate of `factor` times what was estimated; a plain one also of a trace's."""
    same = {f.name: getattr(estimate, f.name) for f in fields(Estimate)}
    scaled = {"value": factor * estimate.value, "stderr": factor * estimate.stderr}
    return Estimate(**{**same, **scaled})


def _dicts(parts: Mapping[str, Estimate | None]) -> dict[str, Any]:
    return {name: None if part is None else part.to_dict() for name, part in parts.items()}
