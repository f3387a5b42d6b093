"""Sharpness-Aware Minimization."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flatminima.perturb.cards import Card, register
from flatminima.perturb.engine import Perturbed
from flatminima.perturb.plans import Pass, Turn
from flatminima.perturb.schedules import Schedule
from flatminima.perturb.weights import Weights, global_norm


@register()
class SAM(Perturbed):
    """The gradient at the (first-order) worst point of a ball of radius rho around W.

        g = grad f(W + e),    e = rho * grad f(W) / (||grad f(W)||_2 + 1e-12)

    with the norm over all weights that move. Both passes use one batch. Each process climbs along
    the gradient of its own samples (with `passes()` called per micro-batch: of each micro-batch),
    the m-sharpness of the paper, so a step needs one all-reduce.

    Cost: 2 gradients a step, one after the other; one weight-sized buffer while passes run.

    Source: Foret, Kleiner, Mobahi, Neyshabur, "Sharpness-Aware Minimization for Efficiently
    Improving Generalization", 2021, arXiv 2010.01412.

    Args:
        base: The optimizer that takes the steps.
        rho: Radius of the ball, in units of the weights; groups may carry their own "rho".
        schedule: Factor on rho at a step.
        share_masks: Whether both passes draw the same dropout masks. With masks of its own in each
            pass, rho = 0 would not be plain training.
        model: See `Perturbed`.
    """

    card = Card(
        name="sam",
        title="Sharpness-Aware Minimization",
        equation="g(W + rho g(W) / ||g(W)||)",
        gradients="2",
        buffers="1",
        strength="rho",
        suggested="rho 0.05; 0.01 to 0.2 for fine-tuning",
        source="Foret et al., 2021, arXiv 2010.01412",
    )
    strength_name = "rho"

    def __init__(
        self,
        base: Optimizer,
        *,
        rho: float,
        schedule: Schedule | None = None,
        share_masks: bool = True,
        model: nn.Module | None = None,
    ) -> None:
        super().__init__(
            base, strength=rho, schedule=schedule, share_masks=share_masks, model=model
        )

    def plan(self, turn: Turn) -> list[Pass]:
        """At W, whose gradient only points uphill; then at W + e, whose gradient counts."""
        return [Pass(weight=0.0), Pass(move=_ascend)]


def _ascend(weights: Weights) -> None:
    gradients = [slot.tensor.grad for slot in weights.slots]
    present = [gradient for gradient in gradients if gradient is not None]
    if not present:
        return
    norm = global_norm(present) + 1e-12

    def ascent() -> Iterator[Tensor | None]:
        for slot, gradient in zip(weights.slots, gradients, strict=True):
            if gradient is None:
                yield None
            else:
                wide = gradient.to(torch.promote_types(gradient.dtype, norm.dtype))
                yield wide * (slot.strength / norm.to(gradient.device))

    weights.displace(ascent())
