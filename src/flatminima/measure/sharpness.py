"""How much the loss rises within a ball around the weights: at worst, and on average."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from flatminima.errors import InputError
from flatminima.measure.batches import Batches, MeanLoss, scalar_loss, weighted
from flatminima.measure.cost import Meter
from flatminima.measure.gap import Shaken
from flatminima.measure.passes import Passes
from flatminima.measure.results import Estimate, Result, mean_and_stderr
from flatminima.measure.untouched import check_recording, free_parameters, untouched
from flatminima.objectives import Objective
from flatminima.perturb.gradients import global_norm
from flatminima.progress import Progress

MEND = "mend the data or the model, or take a smaller rho"


@dataclass(frozen=True)
class Sharpness(Result):
    """The largest rise of the loss that was found in a ball: a lower bound on the largest.

    Attributes:
        value: The largest f(W + e) - f(W) found, at least 0 since e = 0 is in the ball.
        loss: f(W).
        rises: f(W + e) - f(W) at each point tried, one tuple for each ascent: where it starts, then
            after each gradient step. The first ascent's second entry is what SAM's own step finds.
        rho: The radius of the ball.
        adaptive: Whether the ball is that of ASAM.
        samples: How many samples the losses are the mean of.
    """

    value: float
    loss: float
    rises: tuple[tuple[float, ...], ...]
    rho: float
    adaptive: bool
    samples: int

    @property
    def spread(self) -> float:
        """Best less worst of the ascents: how far apart the maxima are that they end in."""
        best = [max(rises) for rises in self.rises]
        return max(best) - min(best)

    def __str__(self) -> str:
        ball = "adaptive ball" if self.adaptive else "ball"
        return (
            f"at least {self.value:.4g} above the loss {self.loss:.4g} in the {ball} of radius "
            f"{self.rho:g} (best of {len(self.rises)} ascents, {self.gradients} gradients)"
        )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The result that `to_dict` wrote."""
        return cls(**{**data, "rises": tuple(map(tuple, data["rises"]))})


def worst_case_sharpness(
    model: nn.Module,
    objective: Objective,
    batches: Batches,
    *,
    rho: float,
    adaptive: bool = False,
    eta: float = 0.01,
    steps: int = 20,
    starts: int = 2,
    params: Iterable[Tensor] | Iterable[str] | str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Sharpness:
    r"""The rise of the loss at the worst point of a ball that gradient ascent finds.

    $\max_{\|T^{-1} e\|_2 \le \rho} f(W + e) - f(W)$, with $T = I$, or
    $T = \mathrm{diag}(|W| + \eta)$ where `adaptive`: with eta = 0 it is the same for all weights
    A W that compute the same function for a diagonal A. f is the mean loss over all batches, not
    SAM's training objective, which is the mean of such maxima over batches.

    The ascent is that of Frank and Wolfe: from e towards $\rho\, T^2 g / \|T g\|$, the point of the
    ball farthest along the gradient at W + e, all the way if that raises the loss and else half,
    a quarter, ... of it. So the first step from W is SAM's (ASAM's), on a quadratic the steps are
    the power iteration, and all points are in the ball. The first ascent starts at W, the others at
    random points of the surface, since at a minimum there is no gradient to follow.

    What is found is a **lower bound** on the maximum, which for a network is not known: more steps
    and starts can only raise it. For a convex quadratic at its minimum it converges to
    $\frac{\rho^2}{2} \lambda_{\max}(T H T)$.

    Cost: at most starts * steps + starts gradients, four weight-sized buffers, five where
    `adaptive`. The model runs in eval mode and is left as it was, the weights bit for bit.

    Source: Foret, Kleiner, Mobahi, Neyshabur, Sharpness-Aware Minimization, 2021,
    arXiv 2010.01412; Kwon, Kim, Park, Choi, ASAM, 2021, arXiv 2102.11600.

    Args:
        model: The model, its parameters float32 or float64, on one device.
        objective: `(model, batch) -> scalar`, the mean over the batch's samples.
        batches: A list or a DataLoader; read once for each gradient, each time from the same random
            state.
        rho: The radius, in units of the weights; of the weights' own sizes where `adaptive`.
        adaptive: Whether the ball's axes are as long as the weights.
        eta: Keeps weights at 0 movable where `adaptive`.
        steps: Gradient steps of each ascent.
        starts: Ascents: one from W, the others from random points.
        params: Which parameters move: tensors, or names with wildcards ("encoder.*"); default:
            all that require a gradient.
        seed: Of the random points; the global random state is not touched.
        progress: Called with ("sharpness", gradients done, gradients).

    Raises:
        InputError: rho is not above 0 and finite; eta negative; steps or starts < 1; bad
            parameters, batches or loss; a pass over the batches gave other samples than the first.
    """
    _check(rho, eta, steps=steps, starts=starts)
    check_recording()
    named = free_parameters(model, params)
    weights = list(named.values())
    device = weights[0].device
    meter = Meter(device, weights[0].dtype)
    rises: list[tuple[float, ...]] = []
    done, most = 0, starts * (steps + 1)
    loss, passes = math.nan, Passes(batches, device)
    with untouched(model, objective, device), torch.no_grad(), Shaken(named, seed) as places:
        axes = _axes(places.home, adaptive, eta)

        def look(u: Sequence[Tensor]) -> tuple[float, list[Tensor]]:
            """f(W + T u) and its gradient in u."""
            nonlocal done
            places.move(_scaled(u, axes))
            losses = MeanLoss(MEND)
            gradient = [torch.zeros_like(weight) for weight in weights]
            for batch, count in passes:
                with torch.enable_grad():
                    value = scalar_loss(model, objective, batch)
                    if not value.requires_grad:
                        raise InputError(
                            "the loss does not depend on the parameters: check the objective"
                        )
                    found = torch.autograd.grad(value, weights, allow_unused=True)
                losses.add(value, count)
                for total, part in zip(gradient, found, strict=True):
                    if part is not None:
                        total.add_(part, alpha=count)
            done += 1
            if progress is not None:
                progress("sharpness", done, most)
            return losses.value().item(), _scaled(gradient, axes)

        for start in range(starts):
            u = _on_sphere(places.draw(start), rho)
            if start == 0:
                torch._foreach_zero_(u)
            best, gradient = look(u)
            if start == 0:
                loss = best
            tried, pace = [best - loss], 1.0
            for _ in range(steps):
                if not global_norm(gradient) > 0:
                    break
                goal = _on_sphere(gradient, rho)
                towards = torch._foreach_lerp(u, goal, pace)
                value, slope = look(towards)
                tried.append(value - loss)
                if value > best:
                    u, gradient, best, pace = list(towards), slope, value, min(1.0, 2 * pace)
                else:
                    pace /= 2
            rises.append(tuple(tried))
    if progress is not None:
        progress("sharpness", done, done)
    cost = meter.read()
    cost["gradients"] = done
    ball = "adaptive ball" if adaptive else "l2 ball"
    return Sharpness(
        max(map(max, rises)),
        loss,
        tuple(rises),
        rho,
        adaptive,
        passes.samples,
        method=f"Frank-Wolfe ascent in the {ball} of radius {rho:g}",
        seed=seed,
        **cost,
    )


def average_sharpness(
    model: nn.Module,
    objective: Objective,
    batches: Batches,
    *,
    rho: float,
    adaptive: bool = False,
    eta: float = 0.01,
    draws: int = 50,
    params: Iterable[Tensor] | Iterable[str] | str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Estimate:
    r"""The mean rise of the loss over the surface of the ball of `worst_case_sharpness`.

    $E[f(W + T u)] - f(W)$ for u uniform on $\|u\|_2 = \rho$, from pairs of u and -u, which cancel
    all terms odd in u. For a quadratic of n weights it is
    $\frac{\rho^2}{2n} \mathrm{Tr}(T H T)$, where the worst case at a minimum is
    $\frac{\rho^2}{2} \lambda_{\max}(T H T)$: in a large network the two differ by orders of
    magnitude. `perturbation_gap` is the same with normal noise, at $\rho \approx \sigma \sqrt n$.

    Cost: 2 draws + 1 forward passes over each batch, read once; no gradients; three weight-sized
    buffers, four where `adaptive`. The model is left as it was, the weights bit for bit.

    Source: as `worst_case_sharpness`; Andriushchenko et al., A Modern Look at the Relationship
    between Sharpness and Generalization, 2023, arXiv 2302.07011, with normal noise.

    Args:
        model: The model, its parameters float32 or float64, on one device.
        objective: `(model, batch) -> scalar`, the mean over the batch's samples.
        batches: A list or a DataLoader; each batch counts as often as it has samples.
        rho: The radius, in units of the weights; of the weights' own sizes where `adaptive`.
        adaptive: Whether the ball's axes are as long as the weights.
        eta: Keeps weights at 0 movable where `adaptive`.
        draws: How many pairs.
        params: Which parameters move: tensors, or names with wildcards ("encoder.*"); default:
            all that require a gradient.
        seed: Of the directions; the global random state is not touched.
        progress: Called with ("average sharpness", batches done, batches) after each batch.

    Raises:
        InputError: rho is not above 0 and finite; eta negative; draws < 1; bad parameters, batches
            or loss.
    """
    _check(rho, eta, draws=draws)
    named = free_parameters(model, params)
    first = next(iter(named.values()))
    meter = Meter(first.device, first.dtype)
    losses = MeanLoss(MEND)
    total = len(batches) if isinstance(batches, Sized) else 0
    with untouched(model, objective, first.device), torch.no_grad(), Shaken(named, seed) as places:
        axes = _axes(places.home, adaptive, eta)
        for done, (batch, count) in enumerate(weighted(batches, first.device), 1):
            places.move([torch.zeros_like(home) for home in places.home])
            row = [scalar_loss(model, objective, batch)]
            for number in range(draws):
                offsets = _scaled(_on_sphere(places.draw(number), rho), axes)
                for _ in range(2):
                    places.move(offsets)
                    row.append(scalar_loss(model, objective, batch))
                    torch._foreach_neg_(offsets)
            losses.add(torch.stack(row), count)
            if progress is not None:
                progress("average sharpness", done, max(done, total))
    means = losses.value()
    cost = meter.read()
    ball = "adaptive sphere" if adaptive else "sphere"
    return Estimate(
        *mean_and_stderr(means[1:].reshape(draws, 2).mean(1) - means[0]),
        draws,
        method=f"pairs on the {ball} of radius {rho:g}",
        seed=seed,
        **cost,
    )


def _check(rho: float, eta: float, **counts: int) -> None:
    if not (math.isfinite(rho) and rho > 0):
        raise InputError(f"rho is {rho}: give a finite number above 0, such as 0.05")
    if not (math.isfinite(eta) and eta >= 0):
        raise InputError(f"eta is {eta}: give a finite number, 0 or above, such as 0.01")
    for name, count in counts.items():
        if count < 1:
            raise InputError(f"{name} is {count}: give at least 1")


def _axes(home: Sequence[Tensor], adaptive: bool, eta: float) -> list[Tensor] | None:
    """The diagonal of T, None for T = I."""
    return [weight.abs() + eta for weight in home] if adaptive else None


def _scaled(vector: Sequence[Tensor], axes: list[Tensor] | None) -> list[Tensor]:
    """T times the vector."""
    return list(vector) if axes is None else list(torch._foreach_mul(list(vector), axes))


def _on_sphere(vector: list[Tensor], rho: float) -> list[Tensor]:
    """The vector at length rho."""
    return list(torch._foreach_mul(vector, rho / global_norm(vector).item()))
