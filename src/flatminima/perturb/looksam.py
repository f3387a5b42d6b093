"""LookSAM: SAM's second gradient at every k-th step only."""

from __future__ import annotations

import math
from typing import Unpack

import torch
from torch.optim import Optimizer

from flatminima.cards import Card
from flatminima.errors import InputError
from flatminima.perturb.cards import register
from flatminima.perturb.gradients import global_norm
from flatminima.perturb.options import Options, between, whole
from flatminima.perturb.plans import Pass, Turn
from flatminima.perturb.sam import EPSILON, SAM
from flatminima.perturb.two_gradients import TwoGradients, perpendicular
from flatminima.perturb.weights import Weights


@register()
class LookSAM(SAM):
    """SAM at every k-th step, whose flattening part the steps between use again.

        every k-th step:  G = g_s = g(W + e),   g_v = g_s - (g . g_s) / ||g||^2 g   is remembered
        otherwise:        G = g + alpha * ||g|| / ||g_v|| * g_v

    with g = g(W), and norms and products over all weights together: g_v, the part of SAM's gradient
    that plain training lacks, changes slowly. The steps between really cost one gradient.

    With `passes()` called per micro-batch, what the last of them gave is remembered: loop over the
    micro-batches inside the passes instead.

    Cost: 1 + 1/k gradients a step; one weight-sized buffer that stays, two more while passes run.

    Source: Liu, Mai, Chen, Hsieh, You, "Towards Efficient and Scalable Sharpness-Aware
    Minimization", 2022, arXiv 2203.02714.

    Args:
        base: The optimizer that takes the steps.
        rho: Radius of the ball, in units of the weights.
        k: How often the second gradient is taken.
        alpha: How much of g_v the steps between add.
        **engine: `schedule`, `share_masks`, `model`; see `Perturbed`. `interval` is refused.
    """

    card = Card(
        name="looksam",
        title="LookSAM",
        equation="g(W + e) each k-th step, else g + alpha ||g|| / ||g_v|| g_v",
        gradients="1 + 1/k",
        buffers="3",
        strength="rho",
        suggested="rho as SAM, k 5, alpha 0.7",
        source="Liu et al., 2022, arXiv 2203.02714",
    )

    def __init__(
        self,
        base: Optimizer,
        *,
        rho: float,
        k: int = 5,
        alpha: float = 0.7,
        **engine: Unpack[Options],
    ) -> None:
        super().__init__(base, rho=rho, **engine)
        if self.interval != 1:
            raise InputError("LookSAM has its own interval: give k and leave interval out")
        self.k = whole("k", k)
        self.alpha = between("alpha", alpha, 0, math.inf)
        self._pair = TwoGradients()

    @property
    def period(self) -> int:
        """Steps after which the plans repeat."""
        return self.k

    def plan(self, turn: Turn) -> list[Pass]:
        """SAM's passes, or one at W that is bent."""
        if turn.step % self.k:
            return [Pass(after=self._bend)]
        return [
            Pass(0.0, after=self._pair.keep, sync=True),
            Pass(move=self.climb, after=self._remember),
        ]

    def _remember(self, weights: Weights) -> None:
        if both := self._pair.both(weights):
            slots, home, sharp = zip(*both, strict=True)
            aside = perpendicular(list(sharp), list(home))
            for slot, flattening in zip(slots, aside, strict=True):
                slot.memory["flattening"] = flattening

    @torch.no_grad()
    def _bend(self, weights: Weights) -> None:
        bent = [
            (slot, g.to_dense(), slot.memory["flattening"])
            for slot in weights.slots
            if (g := slot.gradient) is not None and "flattening" in slot.memory
        ]
        if not bent:
            return
        gradient = global_norm([g for _, g, _ in bent])
        flattening = global_norm([v for _, _, v in bent]) + EPSILON
        for slot, g, v in bent:
            slot.replace_gradient(g + v * (self.alpha * gradient / flattening).to(v.device))
