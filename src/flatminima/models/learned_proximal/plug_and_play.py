"""Plug-and-play: images from measurements, with a learned proximal network as the prior."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flatminima.arguments import above, between, function, kind_of, tensor, whole
from flatminima.errors import InputError, require
from flatminima.models.learned_proximal.operators import LinearMap, nearest
from flatminima.models.learned_proximal.proximal import LearnedProximal
from flatminima.progress import Progress, silent

Denoiser = Callable[[Tensor], Tensor]
Turns = Iterator[tuple[Tensor, float]]
"""Iterates and what they cost, nan where that is not known."""

TOO_STEEP = """{name} needs weight * |A|^2 of at most 1, and it is {steep:.3g}: the step is fixed \
by the denoiser and cannot be shortened. Lower the weight to {most:.3g}, or use pnp_admm, which \
takes any weight"""
NO_RANGE = """A'b / |A|^2 reaches from {low:.4g} to {high:.4g}, the network was trained on \
values from {least:.4g} to {most:.4g}: give measurements in the same units (images divided by \
255)"""


@dataclass(frozen=True)
class Restored:
    """What plug-and-play found.

    Attributes:
        image: The restored batch, of the shape of A'b.
        objective: What the method minimizes, summed over the batch, at each iterate; up to a
            constant. Empty for a denoiser that is no `LearnedProximal`, which minimizes nothing.
        change: Root mean square change of the image from iterate to iterate, in its units.
        stopped: "tolerance" or "steps".
    """

    image: Tensor
    objective: tuple[float, ...]
    change: tuple[float, ...]
    stopped: str

    def __str__(self) -> str:
        end = f"; objective {self.objective[-1]:.6g}" if self.objective else ""
        change = f"last change {self.change[-1]:.1e}"
        return f"{len(self.change)} steps (stopped by {self.stopped}), {change}{end}"

    def plot(self, ax: Any = None) -> Any:
        """Draw the change of each step, logarithmically; returns the matplotlib Axes.

        Args:
            ax: Where to draw; None makes a figure.

        Raises:
            InputError: matplotlib is not installed.
        """
        if ax is None:
            pyplot = require("matplotlib.pyplot", "plot")
            _, ax = pyplot.subplots(figsize=(5.6, 3.6), layout="constrained")
        ax.semilogy(range(1, len(self.change) + 1), self.change)
        ax.set_xlabel("step")
        ax.set_ylabel("root mean square change")
        return ax


def pnp_admm(
    denoiser: Denoiser,
    operator: LinearMap,
    b: Tensor,
    *,
    weight: float | None = None,
    noise: float | None = None,
    start: Tensor | None = None,
    steps: int = 100,
    tolerance: float = 1e-5,
    progress: Progress = silent,
) -> Restored:
    r"""Minimize $\tfrac w2 \|A x - b\|^2 + R(x)$ by alternating directions (ADMM).

    $$x \leftarrow \arg\min_x \tfrac w2 \|A x - b\|^2 + \tfrac12 \|x - z + u\|^2, \quad
      u \leftarrow u + x - z, \quad z \leftarrow f(x + u)$$

    from $u = 0$. Where it settles, $z = f(z - w A^\top (A z - b))$: a stationary point. With
    noise of standard deviation s in b and a network trained at sigma, $w = (\sigma / s)^2$ makes
    that a mode of p(x | b). In the terms `rho`, `scale` of Fang et al., w = 2 scale / rho.

    Source: Fang, Buchanan, Sulam, 2024, arXiv 2310.14344; Venkatakrishnan, Bouman, Wohlberg, 2013,
    Plug-and-play priors for model based reconstruction. Cost: a step takes one f and some A'A.

    Args:
        denoiser: f, a `LearnedProximal`; any other denoiser works, without the objective.
        operator: A and its adjoint.
        b: What was measured, shape (n, ...).
        weight: w, above 0. Give it or `noise`.
        noise: s, in units of b: then w is (sigma / s)^2 with the sigma of the network.
        start: A first image; A'b divided by the square of A's norm unless given.
        steps: The most.
        tolerance: Stop where an iterate changes by less than this, root mean square.
        progress: Told the steps.

    Raises:
        InputError: measurements of the wrong shape, dtype or range; A and A' that are not adjoint;
            a network with negative weights where convexity needs none, or a denoiser that does not
            give back the shape of an image; neither or both of weight and noise; a number out of
            its range.
    """
    denoise, w, z, _ = _begin(denoiser, operator, b, weight, noise, start)

    def turns(z: Tensor) -> Turns:
        x, u = z, torch.zeros_like(z)
        while True:
            x = nearest(operator, b, z - u, w, x)
            u = u + x - z
            y = x + u
            z = denoise(y)
            yield z, _misfit(operator, z, b, w) + _prior(denoiser, y, z)

    return _run(turns(z), z, "ADMM", steps, tolerance, progress)


def pnp_hqs(
    denoiser: Denoiser,
    operator: LinearMap,
    b: Tensor,
    *,
    weight: float | None = None,
    noise: float | None = None,
    start: Tensor | None = None,
    steps: int = 100,
    tolerance: float = 1e-5,
    progress: Progress = silent,
) -> Restored:
    r"""Minimize $\tfrac w2 \|A x - b\|^2 + \tfrac12 \|x - z\|^2 + R(z)$ in turn over x and z.

    Half-quadratic splitting: $z = f(x)$ and $x$ by least squares. Each half step is an exact
    minimization, so the objective never rises, whatever w. It is not that of the other two
    methods: x and z stay apart, so the prior is smoothed and weaker. z is returned.

    Source: Geman, Yang, 1995, Nonlinear image recovery with half-quadratic regularization. Cost
    and arguments as `pnp_admm`.

    Args:
        denoiser: f.
        operator: A and its adjoint.
        b: What was measured, shape (n, ...).
        weight: w, above 0. Give it or `noise`.
        noise: As for `pnp_admm`.
        start: A first image.
        steps: The most.
        tolerance: Stop where an iterate changes by less than this.
        progress: Told the steps.

    Raises:
        InputError: as `pnp_admm`.
    """
    denoise, w, z, _ = _begin(denoiser, operator, b, weight, noise, start)

    def turns(z: Tensor) -> Turns:
        x = z
        while True:
            x = nearest(operator, b, z, w, x)
            z = denoise(x)
            apart = float((x - z).double().square().sum()) / 2
            yield z, _misfit(operator, x, b, w) + apart + _prior(denoiser, x, z)

    return _run(turns(z), z, "half-quadratic splitting", steps, tolerance, progress)


def pnp_pgd(
    denoiser: Denoiser,
    operator: LinearMap,
    b: Tensor,
    *,
    weight: float | None = None,
    noise: float | None = None,
    start: Tensor | None = None,
    steps: int = 100,
    tolerance: float = 1e-5,
    progress: Progress = silent,
) -> Restored:
    r"""Minimize $\tfrac w2 \|A x - b\|^2 + R(x)$ by $x \leftarrow f(x - w A^\top (A x - b))$.

    Proximal gradient descent. The objective never rises if $w \|A\|^2 \le 1$; the step cannot be
    made shorter than 1, since f is the proximal operator of R and not of a part of it.

    Source: Fang, Buchanan, Sulam, 2024, arXiv 2310.14344. Cost: a step takes one f and one A'A.

    Args:
        denoiser: f.
        operator: A and its adjoint.
        b: What was measured, shape (n, ...).
        weight: w, above 0 and at most 1 / |A|^2. Give it or `noise`.
        noise: As for `pnp_admm`.
        start: A first image.
        steps: The most.
        tolerance: Stop where an iterate changes by less than this.
        progress: Told the steps.

    Raises:
        InputError: as `pnp_admm`; a weight that is too large.
    """
    denoise, w, z, square = _begin(denoiser, operator, b, weight, noise, start)
    if w * square > 1 + 1e-4:
        raise InputError(TOO_STEEP.format(name="pnp_pgd", steep=w * square, most=1 / square))

    def turns(z: Tensor) -> Turns:
        while True:
            y = z - w * operator.adjoint(operator(z) - b)
            z = denoise(y)
            yield z, _misfit(operator, z, b, w) + _prior(denoiser, y, z)

    return _run(turns(z), z, "proximal gradient", steps, tolerance, progress)


def _run(
    turns: Turns, x: Tensor, name: str, steps: int, tolerance: float, progress: Progress
) -> Restored:
    whole("steps", steps, 1)
    between("tolerance", tolerance, 0)
    objective, change, stopped = [], [], "steps"
    with torch.no_grad():
        for done in range(1, steps + 1):
            new, cost = next(turns)
            change.append(float((new - x).double().square().mean().sqrt()))
            objective.append(cost)
            x = new
            progress(name, done, steps)
            if not math.isfinite(change[-1]):
                raise InputError(f"{name} ran away after {done} steps: lower the weight")
            if change[-1] < tolerance:
                stopped = "tolerance"
                break
    known = () if math.isnan(objective[-1]) else tuple(objective)
    return Restored(x, known, tuple(change), stopped)


def _misfit(operator: LinearMap, x: Tensor, b: Tensor, weight: float) -> float:
    return weight / 2 * float((operator(x) - b).double().square().sum())


def _prior(denoiser: Denoiser, y: Tensor, x: Tensor) -> float:
    """R at x = f(y), which needs no inversion, summed over the batch."""
    if not isinstance(denoiser, LearnedProximal):
        return math.nan
    y, x, psi = y.double(), x.double(), denoiser.potential(y).double()
    return float((y * x).sum() - x.square().sum() / 2 - psi.sum())


def _begin(
    denoiser: Denoiser,
    operator: LinearMap,
    b: Tensor,
    weight: float | None,
    noise: float | None,
    start: Tensor | None,
) -> tuple[Denoiser, float, Tensor, float]:
    """The denoiser, the weight, the first image and the square of A's norm; all checks."""
    if not isinstance(operator, LinearMap):
        raise InputError(f"operator is {kind_of(operator)}: give a LinearMap, of A and its adjoint")
    if not tensor("b", b).is_floating_point() or not bool(b.isfinite().all()):
        raise InputError(
            f"the measurements are of {b.dtype}, or some are not finite: give finite "
            "floating-point numbers, images divided by 255"
        )
    with torch.no_grad():
        operator.check(b)
        back = operator.adjoint(b)
        square = operator.square_norm(back)
    if square == 0:
        raise InputError(f"{operator.name} maps every image to 0: there is nothing to restore from")
    first = back / square if start is None else tensor("start", start).detach()
    if first.shape != back.shape or first.dtype != back.dtype:
        raise InputError(
            f"start has the shape {tuple(first.shape)} and is of {first.dtype}, and images have "
            f"{tuple(back.shape)} and are of {back.dtype}: give one like them"
        )
    if isinstance(denoiser, LearnedProximal):
        denoiser.require_convex()
        denoiser.check(first)
        denoiser.check_type(first)
        low, high = (float(v) for v in denoiser.range)
        wide = 10 * (high - low)
        found = float((back / square).min()), float((back / square).max())
        if wide > 0 and not (low - wide < found[0] and found[1] < high + wide):
            raise InputError(NO_RANGE.format(low=found[0], high=found[1], least=low, most=high))
    return _denoise(denoiser, first), _weight(denoiser, weight, noise), first, square


def _denoise(denoiser: Denoiser, like: Tensor) -> Denoiser:
    """The denoiser, which is refused where it does not give back what it takes."""
    function("denoiser", denoiser)

    def checked(y: Tensor) -> Tensor:
        try:
            found = denoiser(y)
        except (RuntimeError, TypeError) as error:
            raise InputError(
                f"the denoiser does not take images of the shape {tuple(like.shape)} and "
                f"{like.dtype}: {error}"
            ) from error
        if not isinstance(found, Tensor) or found.shape != like.shape:
            shape = tuple(found.shape) if isinstance(found, Tensor) else kind_of(found)
            raise InputError(
                f"the denoiser makes {shape} of an image of the shape {tuple(like.shape)}: give "
                "one that gives back what it takes"
            )
        return found

    return checked


def _weight(denoiser: Denoiser, weight: float | None, noise: float | None) -> float:
    if (weight is None) == (noise is None):
        raise InputError("give either weight or noise, the standard deviation of the measurements")
    if weight is None:
        sigma = float(getattr(denoiser, "sigma", 0.0))
        if not sigma > 0:
            raise InputError(
                "the denoiser has no sigma that noise could be compared with: give weight"
            )
        return (sigma / above("noise", noise)) ** 2
    return above("weight", weight)
