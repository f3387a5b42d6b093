"""Surrogate gap guided SAM."""

from __future__ import annotations

import math
from typing import Unpack

import torch
from torch import Tensor
from torch.optim import Optimizer

from flatminima.perturb.cards import Card, register
from flatminima.perturb.options import Options, between
from flatminima.perturb.plans import Pass, Turn
from flatminima.perturb.sam import SAM, TINY
from flatminima.perturb.weights import Weights, global_norm, inner_product


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
        self._at_home: list[Tensor | None] = []

    def plan(self, turn: Turn) -> list[Pass]:
        """Both gradients of SAM, the first kept for the second."""
        return [
            Pass(0.0, after=self._keep, sync=True),
            Pass(move=self.climb, after=self._decompose),
        ]

    def _keep(self, weights: Weights) -> None:
        self._at_home = [slot.keep_gradient() for slot in weights.slots]

    @torch.no_grad()
    def _decompose(self, weights: Weights) -> None:
        both = [
            (slot, p.to_dense(), g.to_dense())
            for slot, g in zip(weights.slots, self._at_home, strict=True)
            if (p := slot.gradient) is not None and g is not None
        ]
        self._at_home = []
        if not both:
            return
        perturbed, home = [p for _, p, _ in both], [g for _, _, g in both]
        norm = global_norm(perturbed).clamp_min(TINY)
        along = inner_product(home, perturbed) / norm / norm
        for slot, p, g in both:
            perpendicular = g - along.to(g.device) * p
            slot.replace_gradient(p - self.alpha * perpendicular)
