"""Surrogate gap guided SAM."""

from __future__ import annotations

import math
from typing import Unpack

from torch.optim import Optimizer

from flatminima.cards import Card
from flatminima.perturb.cards import register
from flatminima.perturb.options import Options, between
from flatminima.perturb.plans import Pass, Turn
from flatminima.perturb.sam import SAM
from flatminima.perturb.two_gradients import TwoGradients, perpendicular
from flatminima.perturb.weights import Weights


@register()
class GSAM(SAM):
    """SAM that also goes down the gap between the loss at the worst point and at W.

        G = g_p - alpha * g_perp,    g_p = g(W + e),    g = g(W) = g_parallel + g_perp

    where g_parallel is the part of g along g_p, over all weights together. Going along -g_perp
    raises f(W) and leaves the perturbed loss, so their gap closes.

    Cost: 2 gradients and, as both end up in G, two all-reduces a step; two weight-sized buffers.

    Source: Zhuang, Gong, Yuan, Cui, Adam, Dvornek, Tatikonda, Duncan, Liu, "Surrogate Gap
    Minimization Improves Sharpness-Aware Training", 2022, arXiv 2203.08065.

    Args:
        base: The optimizer that takes the steps.
        rho: Radius of the ball, in units of the weights. The paper lets it follow the learning
            rate: give a `schedule`.
        alpha: How much of g_perp is taken off.
        **engine: `schedule`, `interval`, `share_masks`, `model`; see `Perturbed`.
    """

    card = Card(
        name="gsam",
        title="Surrogate gap guided SAM",
        equation="g_p - alpha g_perp, g_p = g(W + e), g_perp the part of g(W) orthogonal to g_p",
        gradients="2",
        buffers="2",
        strength="rho",
        suggested="rho as SAM, alpha 0.1 to 0.7",
        source="Zhuang et al., 2022, arXiv 2203.08065",
    )

    def __init__(
        self, base: Optimizer, *, rho: float, alpha: float = 0.4, **engine: Unpack[Options]
    ) -> None:
        super().__init__(base, rho=rho, **engine)
        self.alpha = between("alpha", alpha, 0, math.inf)
        self._pair = TwoGradients()

    def plan(self, turn: Turn) -> list[Pass]:
        """Both gradients of SAM, the first kept for the second."""
        return [
            Pass(0.0, after=self._pair.keep, sync=True),
            Pass(move=self.climb, after=self._decompose),
        ]

    def _decompose(self, weights: Weights) -> None:
        if both := self._pair.both(weights):
            slots, home, perturbed = zip(*both, strict=True)
            aside = perpendicular(list(home), list(perturbed))
            for slot, p, q in zip(slots, perturbed, aside, strict=True):
                slot.replace_gradient(p - self.alpha * q)
