"""The gradient at W held over the second pass, and what the two have in common."""

from __future__ import annotations

import torch
from torch import Tensor

from flatminima.perturb.gradients import TINY, global_norm, inner_product
from flatminima.perturb.weights import Slot, Weights


class TwoGradients:
    """Keeps the first pass's gradient until the second pass has given its own."""

    def __init__(self) -> None:
        self._first: list[Tensor | None] = []

    def keep(self, weights: Weights) -> None:
        """Hold the gradient that the first pass left."""
        self._first = [slot.keep_gradient() for slot in weights.slots]

    def both(self, weights: Weights) -> list[tuple[Slot, Tensor, Tensor]]:
        """(parameter, first gradient, second) where there are both, dense; lets go of the first."""
        found = [
            (slot, first.to_dense(), second.to_dense())
            for slot, first in zip(weights.slots, self._first, strict=True)
            if first is not None and (second := slot.gradient) is not None
        ]
        self._first = []
        return found


@torch.no_grad()
def perpendicular(of: list[Tensor], to: list[Tensor]) -> list[Tensor]:
    """The part of one vector that is orthogonal to another, each a list of tensors.

    a - (a . b) / ||b||^2 b, with product and norm over all tensors together.
    """
    norm = global_norm(to).clamp_min(TINY)
    along = inner_product(of, to) / norm / norm
    return [a - along.to(b.device) * b for a, b in zip(of, to, strict=True)]
