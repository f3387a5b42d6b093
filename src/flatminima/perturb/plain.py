"""Plain training: one pass at W."""

from __future__ import annotations

import torch
from torch.optim import Optimizer

from flatminima.cards import Card
from flatminima.perturb.cards import register
from flatminima.perturb.engine import Perturbed
from flatminima.perturb.plans import Pass, Turn


@register()
class Plain(Perturbed):
    """The base optimizer, unchanged: the gradient is that of f at W.

    It exists so that a comparison runs every method through one engine.

    Args:
        base: The optimizer that takes the steps.
        scaler: See `Perturbed`.
        max_grad_norm: See `Perturbed`.
    """

    card = Card(
        name="plain",
        title="Plain training",
        equation="g(W)",
        gradients="1",
        buffers="0",
        strength="",
        suggested="",
        source="",
        aliases=("none",),
    )
    strength_name = "strength"

    def __init__(
        self,
        base: Optimizer,
        *,
        scaler: torch.amp.GradScaler | None = None,
        max_grad_norm: float | None = None,
    ) -> None:
        super().__init__(base, strength=0.0, scaler=scaler, max_grad_norm=max_grad_norm)

    def plan(self, turn: Turn) -> list[Pass]:
        """One pass at W."""
        return [Pass()]
