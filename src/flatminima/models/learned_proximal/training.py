"""Training a learned proximal network on clean samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flatminima.arguments import above, function, kind_of, network, tensor, whole
from flatminima.errors import InputError, require
from flatminima.models.learned_proximal.matching import ProximalMatching, Stage, proximal_schedule
from flatminima.models.learned_proximal.proximal import LearnedProximal
from flatminima.progress import Progress, silent

Draw = Callable[[int, torch.Generator], Tensor]
"""`(count, generator) -> clean samples`, of shape (count, ...)."""

LOST = """gamma = {gamma:.3g} is far below the distances of f(y) from x (mean of exp(-r^2/gamma^2) \
{kept:.0e}): nothing would be learned; give the stage before it more steps, or a larger gamma"""
LARGE = """the samples reach from {low:.4g} to {high:.4g} and sigma is {sigma:g}, less than a \
thousandth of that: give both in the same units (images divided by 255 for a sigma such as 0.1)"""
KEPT = 50


@dataclass(frozen=True)
class Fitted:
    """What training did.

    Attributes:
        names: Of the stages.
        losses: For each stage, its loss along the way, means of 50 steps.
        steps: In all.
    """

    names: tuple[str, ...]
    losses: tuple[tuple[float, ...], ...]
    steps: int

    def __str__(self) -> str:
        ends = (
            f"{n}: {v[0]:.4g} to {v[-1]:.4g}" for n, v in zip(self.names, self.losses, strict=True)
        )
        return f"{self.steps} steps; " + "; ".join(ends)

    def plot(self, ax: Any = None) -> Any:
        """Draw the loss over the steps, a colour for each stage; returns the matplotlib Axes.

        Args:
            ax: Where to draw; None makes a figure.

        Raises:
            InputError: matplotlib is not installed.
        """
        if ax is None:
            pyplot = require("matplotlib.pyplot", "plot")
            _, ax = pyplot.subplots(figsize=(5.6, 3.6), layout="constrained")
        done = 0
        for name, values in zip(self.names, self.losses, strict=True):
            ax.plot([KEPT * (done + i) for i in range(len(values))], values, label=name)
            done += len(values)
        ax.set_xlabel("step")
        ax.set_ylabel("loss")
        ax.legend(fontsize=8)
        return ax


def fit_lpn(
    net: nn.Module,
    samples: Tensor | Draw,
    sigma: float,
    *,
    schedule: Sequence[Stage] | None = None,
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] = torch.optim.Adam,
    batch: int = 64,
    seed: int = 0,
    progress: Progress = silent,
) -> Fitted:
    r"""Train a network to undo noise: pairs $y = x + \sigma \varepsilon$, stage by stage.

    After every step the weights that convexity needs at 0 or above are clipped there. The
    optimizer is built once and keeps its state over the stages; its learning rate is the stage's.
    Perturbed ones (`flatminima.NSO(torch.optim.Adam(parameters))`) see one batch in all passes of
    a step. The perturbed network of a pass may have negative weights; the one that is kept not.

    Args:
        net: A `LearnedProximal`, trained in place; or any other denoiser, as one to compare with.
        samples: Clean ones, shape (n, ...); or a function that draws them.
        sigma: Standard deviation of the noise, in units of the samples, above 0.
        schedule: The stages; the paper's `proximal_schedule` for this size unless given.
        optimizer: Makes the optimizer of parameters.
        batch: Samples of a step.
        seed: Of the samples drawn and of the noise.
        progress: Told the steps of each stage.

    Raises:
        InputError: samples that are no floating-point numbers, not finite, of the wrong shape, or
            far larger than sigma; a number out of its range; a network without weights, or one that
            does not give back the shape of the samples; a gamma so small that its gradient is 0.
    """
    above("sigma", sigma)
    whole("batch", batch, 1)
    first = next(network(net).parameters(), None)
    if first is None:
        raise InputError(f"a {type(net).__name__} without weights has nothing to train")
    generator = torch.Generator().manual_seed(whole("seed", seed, 0))
    draw = samples if callable(samples) else _from(tensor("samples", samples))
    looked_at = samples if isinstance(samples, Tensor) else draw(max(batch, 256), generator)
    was = net.training
    low, high = _checked(net, looked_at, sigma)
    if schedule is None:
        schedule = proximal_schedule(looked_at[0].numel())
    if not isinstance(schedule, Sequence) or not all(isinstance(one, Stage) for one in schedule):
        raise InputError("the schedule is no list of Stage: give one, as proximal_schedule does")
    if not schedule:
        raise InputError("the schedule is empty: give at least one Stage")
    stepping = function("optimizer", optimizer)(net.parameters())
    if not hasattr(stepping, "param_groups"):
        raise InputError("optimizer makes no optimizer: give torch.optim.Adam, or a function")
    names, losses = [], []
    net.train()
    for stage in schedule:
        for group in stepping.param_groups:
            group["lr"] = stage.lr
        curve: list[float] = []
        for step in range(stage.steps):
            clean = draw(batch, generator).to(first)
            noise = torch.randn(clean.shape, generator=generator, dtype=clean.dtype)
            pair = (clean + sigma * noise.to(clean), clean)
            loss = _step(net, stepping, stage, pair)
            if step == 0 and isinstance(stage.objective, ProximalMatching) and loss > 1 - 1e-6:
                gamma = stage.objective.gamma
                raise InputError(LOST.format(gamma=gamma, kept=1 - loss))
            if step % KEPT == 0:
                curve.append(0.0)
            curve[-1] += loss / min(KEPT, stage.steps - step // KEPT * KEPT)
            progress(stage.name, step + 1, stage.steps)
        names.append(stage.name)
        losses.append(tuple(curve))
    net.train(was)
    if isinstance(net, LearnedProximal):
        net.sigma.fill_(sigma)
        net.range.copy_(torch.tensor([low, high]))
    return Fitted(tuple(names), tuple(losses), sum(stage.steps for stage in schedule))


def _step(
    net: nn.Module, optimizer: torch.optim.Optimizer, stage: Stage, pair: tuple[Tensor, Tensor]
) -> float:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = stage.objective(net, pair)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    # torch types the closure of step() as one that returns a float, and returns what it does.
    loss = float(torch.as_tensor(optimizer.step(closure)).detach())  # type: ignore[arg-type]
    if not math.isfinite(loss):
        raise InputError(f"the loss is {loss} ({stage.name}): lower the learning rate {stage.lr:g}")
    if isinstance(net, LearnedProximal):
        net.clip_()
    return loss


def _from(samples: Tensor) -> Draw:
    def draw(count: int, generator: torch.Generator) -> Tensor:
        return samples[torch.randint(len(samples), (count,), generator=generator)]

    return draw


def _check_denoiser(net: nn.Module, samples: Tensor) -> None:
    """Refuse a network that does not give back what it takes."""
    weight = next(net.parameters())
    try:
        with torch.no_grad():
            found = net.eval()(samples.to(weight))
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"the network does not take samples of the shape {tuple(samples.shape)}: {error}"
        ) from error
    if not isinstance(found, Tensor) or found.shape != samples.shape:
        shape = tuple(found.shape) if isinstance(found, Tensor) else kind_of(found)
        raise InputError(
            f"the network makes {shape} of samples of the shape {tuple(samples.shape)}: a denoiser "
            "gives back what it takes"
        )


def _checked(net: nn.Module, samples: Tensor, sigma: float) -> tuple[float, float]:
    """The range of the samples, which are fit to train on."""
    count = len(samples) if tensor("samples", samples).dim() else 0
    if not samples.is_floating_point() or not count:
        raise InputError(
            f"there are {count} samples of {samples.dtype}: give floating-point numbers, (n, ...), "
            "images divided by 255"
        )
    if not bool(samples.isfinite().all()):
        raise InputError("some samples are not finite: remove or mend them")
    if isinstance(net, LearnedProximal):
        net.check(samples[:1])
    else:
        _check_denoiser(net, samples[:2])
    low, high = float(samples.min()), float(samples.max())
    if sigma < 1e-3 * (high - low):
        raise InputError(LARGE.format(low=low, high=high, sigma=sigma))
    return low, high
