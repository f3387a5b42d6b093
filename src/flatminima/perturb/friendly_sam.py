"""Friendly SAM: the step up leaves out the full-batch part of the gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Unpack

from torch import Tensor
from torch.optim import Optimizer

from flatminima.cards import Card
from flatminima.errors import InputError
from flatminima.perturb.cards import register
from flatminima.perturb.options import Options, between
from flatminima.perturb.plans import Pass, Turn
from flatminima.perturb.sam import SAM, normalized
from flatminima.perturb.weights import Slot


@register()
class FriendlySAM(SAM):
    """SAM that climbs along the noise of the batch's gradient alone.

        m <- beta m + (1 - beta) g(W),    e = rho * (g(W) - alpha m) / ||g(W) - alpha m||_2
        G = g(W + e)

    with m the running mean of gradients, before this batch entered it; at the first step m = 0.

    Cost: 2 gradients and, so that m is the same everywhere, two all-reduces a step; one
    weight-sized buffer that stays, two more while passes run.

    Source: Li, Zhou, He, Cheng, Huang, "Friendly Sharpness-Aware Minimization", 2024,
    arXiv 2403.12350. Whether the batch enters m before or after m is used is recalled, not checked.

    Args:
        base: The optimizer that takes the steps.
        rho: Radius of the ball, in units of the weights.
        alpha: How much of the mean is left out.
        beta: How slowly the mean follows.
        **engine: `schedule`, `interval`, `share_masks`, `model`; see `Perturbed`. The mean is fed
            at perturbed steps only.
    """

    card = Card(
        name="friendly-sam",
        title="Friendly SAM",
        equation="g(W + rho (g - alpha m) / ||g - alpha m||), m the running mean of g",
        gradients="2",
        buffers="3",
        strength="rho",
        suggested="rho as SAM, alpha 1, beta 0.9",
        source="Li et al., 2024, arXiv 2403.12350; order of the mean recalled",
        aliases=("fsam", "f-sam"),
    )
    needs_scaler = True

    def __init__(
        self,
        base: Optimizer,
        *,
        rho: float,
        alpha: float = 1.0,
        beta: float = 0.9,
        **engine: Unpack[Options],
    ) -> None:
        super().__init__(base, rho=rho, **engine)
        self.alpha = between("alpha", alpha, 0, math.inf)
        self.beta = between("beta", beta, 0, 1)
        if beta == 1:
            raise InputError("beta must be below 1: at 1 the mean stays 0, and this is SAM")

    def plan(self, turn: Turn) -> list[Pass]:
        """SAM's passes, the first with a gradient that all processes agree on."""
        return [Pass(weight=0.0, sync=True), Pass(move=self.climb)]

    def ascent(self, slots: Sequence[Slot]) -> Iterator[Tensor | None]:
        """The normalized difference to the mean, which is then fed."""
        directions: list[Tensor | None] = []
        for slot in slots:
            gradient = slot.gradient
            if gradient is None:
                directions.append(None)
                continue
            mean = slot.memory.get("mean")
            directions.append(gradient if mean is None else gradient - self.alpha * mean)
            fed = (1 - self.beta) * gradient
            slot.memory["mean"] = fed if mean is None else fed + self.beta * mean
        return normalized(slots, directions)
