"""GLAD: the gradient and SAM's gradient, blended."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor
from torch.optim import Optimizer

from flatminima.cards import Card
from flatminima.errors import InputError, unknown
from flatminima.perturb.cards import register
from flatminima.perturb.gradients import TINY
from flatminima.perturb.options import Options, between
from flatminima.perturb.plans import Pass, Turn
from flatminima.perturb.sam import SAM
from flatminima.perturb.two_gradients import TwoGradients
from flatminima.perturb.weights import Weights

MODES = ("blend", "constrain")


@register()
class GLAD(SAM):
    r"""A gradient between the one at W and SAM's.

        G = (1 - blend) g(W) + blend g(W + e),    e = rho g(W) / ||g(W)||

    To first order the gradient of f + blend rho ||grad f||; on a quadratic exactly that. A blend of
    0 is plain training, 1 is SAM. Made for few-shot tuning of low-rank adapters (`--reparam lora`),
    where the norm is over the adapters, the only weights that are free.

    With `mode="constrain"`, per weight, with c the cosine of g' = g(W + e) and g, and z = g + g':
    the projection of g' on z where low < c < up, g where c <= low, and g' otherwise; a low of 0 is
    none, so that g' is projected wherever c < up.

    Cost: 2 gradients and, as both end up in G, two all-reduces a step; two weight-sized buffers.

    Source: Peng, Wang, Liu, Chen, "GLAD: Generalizable Tuning for Vision-Language Models", 2025,
    arXiv 2507.13089. Its code is not public and only its abstract and first figure were read: the
    blend is reconstructed from that figure, where it is one half; rho is ours. The other mode is
    that of the code of GCSCoOp.

    Args:
        base: The optimizer that takes the steps.
        rho: Radius of the ball, in units of the weights.
        blend: Part of SAM's gradient, in [0, 1].
        mode: "blend" or "constrain".
        low: Cosine up to which the gradient at W is taken, in "constrain".
        up: Cosine from which SAM's gradient is taken, in "constrain".
        **engine: `schedule`, `interval`, `share_masks`, `model`; see `Perturbed`.
    """

    card = Card(
        name="glad",
        title="Gradient regularized by SAM's",
        equation="(1 - blend) g(W) + blend g(W + rho g(W) / ||g(W)||)",
        gradients="2",
        buffers="2",
        strength="rho",
        suggested="rho as SAM to 3 times that, blend 0.5",
        source="Peng et al., 2025, arXiv 2507.13089 (reconstructed)",
    )

    def __init__(
        self,
        base: Optimizer,
        *,
        rho: float,
        blend: float = 0.5,
        mode: str = "blend",
        low: float = 0.5,
        up: float = 0.8,
        **engine: Unpack[Options],
    ) -> None:
        super().__init__(base, rho=rho, **engine)
        if mode not in MODES:
            raise unknown("mode", mode, MODES)
        self.blend, self.mode = between("blend", blend, 0, 1), mode
        self.low, self.up = between("low", low, 0, 1), between("up", up, 0, 1)
        if self.low > self.up:
            raise InputError(f"low is {low} and up is {up}: give a low that is at most up")
        self._pair = TwoGradients()

    def plan(self, turn: Turn) -> list[Pass]:
        """Both gradients of SAM, the first kept for the second."""
        return [
            Pass(0.0, after=self._pair.keep, sync=True),
            Pass(move=self.climb, after=self._combine),
        ]

    def _combine(self, weights: Weights) -> None:
        for slot, home, perturbed in self._pair.both(weights):
            if self.mode == "blend":
                # Exact at both ends, and where the two gradients are the same.
                slot.replace_gradient(torch.lerp(home, perturbed, self.blend))
            else:
                slot.replace_gradient(constrained(home, perturbed, self.low, self.up))


@torch.no_grad()
def constrained(home: Tensor, perturbed: Tensor, low: float, up: float) -> Tensor:
    """One of g, g' and the projection of g' on g + g', by the cosine between g and g'."""
    product = (home * perturbed).sum()
    cosine = product / (home.norm() * perturbed.norm()).clamp_min(TINY)
    middle = home + perturbed
    along = (perturbed * middle).sum() / middle.square().sum().clamp_min(TINY)
    if low == 0:
        return torch.where(cosine < up, along * middle, perturbed)
    outside = torch.where(cosine <= low, home, perturbed)
    return torch.where((cosine > low) & (cosine < up), along * middle, outside)
