"""Boosting a hidden layer: stages of a few units, kept as one network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import expit

from flatminima.models.boosted_networks.losses import Floats, Loss
from flatminima.models.boosted_networks.units import Units, fit_units
from flatminima.progress import Progress, silent

HALVINGS = 40
"""How often a step that raises the loss is halved before its stage is given up."""


@dataclass(frozen=True)
class Boosted:
    """One hidden layer, whose first stages are a network of their own.

    F_t(x) = outer[:, :t j] sigmoid(inner[:t j] x + inner_bias[:t j]) + outer_bias[t].

    Attributes:
        inner: Shape (T j, d).
        inner_bias: Shape (T j,).
        outer: Shape (k, T j), each stage's scaled by its step.
        outer_bias: Shape (T + 1, k): F_0 and the stages' biases, added up.
        units_per_step: j.
        losses: Mean training loss after 0, 1, ..., T stages.
        held_losses: That of held-out samples; empty without them.
        iterations: The most that L-BFGS took in a stage.
    """

    inner: Floats
    inner_bias: Floats
    outer: Floats
    outer_bias: Floats
    units_per_step: int
    losses: Floats
    held_losses: Floats
    iterations: int

    @property
    def stages(self) -> int:
        """T."""
        return len(self.outer_bias) - 1

    def scores(self, X: Floats, stages: int) -> Floats:
        """F of the first stages, shape (n, k)."""
        units = stages * self.units_per_step
        hidden = expit(X @ self.inner[:units].T + self.inner_bias[:units])
        found: Floats = hidden @ self.outer[:, :units].T + self.outer_bias[stages]
        return found

    def staged(self, X: Floats) -> Iterator[Floats]:
        """F after 1, 2, ..., T stages; each unit is computed once."""
        scores: Floats = np.repeat(self.outer_bias[:1], len(X), axis=0)
        for stage in range(self.stages):
            own = slice(stage * self.units_per_step, (stage + 1) * self.units_per_step)
            hidden = expit(X @ self.inner[own].T + self.inner_bias[own])
            bias = self.outer_bias[stage + 1] - self.outer_bias[stage]
            scores = scores + hidden @ self.outer[:, own].T + bias
            yield scores

    def on_raw(self, center: Floats, scale: Floats, shift: Floats, spread: Floats) -> Boosted:
        """The same network for inputs and targets that were not standardized.

        Args:
            center: What was taken from inputs, shape (d,).
            scale: What they were divided by, shape (d,).
            shift: What was taken from targets, shape (k,).
            spread: What they were divided by, shape (k,).
        """
        inner = self.inner / scale
        return replace(
            self,
            inner=inner,
            inner_bias=self.inner_bias - inner @ center,
            outer=self.outer * spread[:, None],
            outer_bias=self.outer_bias * spread + shift,
        )


def boost(
    X: Floats,
    y: Floats,
    loss: Loss,
    *,
    stages: int,
    units_per_step: int,
    learning_rate: float,
    subsample: float,
    alpha: float,
    max_iter: int,
    monotone: bool,
    random: np.random.RandomState,
    held: tuple[Floats, Floats] | None = None,
    progress: Progress = silent,
) -> Boosted:
    r"""$F_t = F_{t-1} + \eta \rho_t h_t$, $h_t$ fitted to the residuals of a random subset.

    $\rho_t$ is the loss's step on all samples. A stage whose outputs or step are not finite, or
    whose residuals are 0, is left out: its units count 0. Costs, a stage, at most `max_iter`
    passes over the subset through j units.

    Args:
        X: Shape (n, d), about standardized.
        y: Shape (n, k), as the loss takes it.
        loss: What is minimized.
        stages: T.
        units_per_step: j.
        learning_rate: eta.
        subsample: The part of the rows that a stage is fitted to, in (0, 1].
        alpha: Penalty of a stage's squared weights.
        max_iter: The most iterations of a stage.
        monotone: Whether a step is halved until the training loss does not rise.
        random: Where subsets and starts come from.
        held: Inputs and targets that are not trained on, whose loss is kept as well.
        progress: Called after each stage.
    """
    F = np.repeat(loss.start(y)[None], len(X), axis=0)
    biases, parts = [loss.start(y)], []
    losses, held_losses = [loss.mean(y, F)], []
    apart = np.repeat(biases[0][None], len(held[0]), axis=0) if held else F[:0]
    held_losses += [loss.mean(held[1], apart)] if held else []
    rows = max(1, int(subsample * len(X)))
    for stage in range(stages):
        residuals = loss.residuals(y, F)
        chosen = slice(None) if rows == len(X) else random.permutation(len(X))[:rows]
        units = fit_units(
            X[chosen],
            residuals[chosen],
            units_per_step,
            alpha=alpha,
            max_iter=max_iter,
            random=random,
        )
        outputs = units(X)
        step = learning_rate * loss.step(y, F, outputs)
        if not np.isfinite(outputs).all() or not np.isfinite(step) or not residuals[chosen].any():
            step = 0.0
        step = _not_rising(loss, y, F, outputs, step, losses[-1]) if monotone else step
        if step:
            F = F + step * outputs
        parts.append(_scaled(units, step))
        biases.append(biases[-1] + parts[-1].outer_bias)
        losses.append(loss.mean(y, F))
        if held:
            apart = apart + parts[-1](held[0])
            held_losses.append(loss.mean(held[1], apart))
        progress("boosting", stage + 1, stages)
    return Boosted(
        inner=np.concatenate([part.inner for part in parts]),
        inner_bias=np.concatenate([part.inner_bias for part in parts]),
        outer=np.concatenate([part.outer for part in parts], axis=1),
        outer_bias=np.stack(biases),
        units_per_step=units_per_step,
        losses=np.array(losses),
        held_losses=np.array(held_losses),
        iterations=max(part.iterations for part in parts),
    )


def _scaled(units: Units, step: float) -> Units:
    if step == 0:
        nothing = np.zeros_like(units.inner), np.zeros_like(units.inner_bias)
        outer = np.zeros_like(units.outer), np.zeros_like(units.outer_bias)
        return Units(*nothing, *outer, iterations=units.iterations)
    return replace(units, outer=step * units.outer, outer_bias=step * units.outer_bias)


def _not_rising(
    loss: Loss, y: Floats, F: Floats, outputs: Floats, step: float, before: float
) -> float:
    for _ in range(HALVINGS):
        if step == 0 or loss.mean(y, F + step * outputs) <= before:
            return step
        step /= 2
    return 0.0
