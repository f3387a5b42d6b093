"""Adaptive SAM."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Unpack

from torch import Tensor
from torch.optim import Optimizer

from flatminima.cards import Card
from flatminima.perturb.cards import register
from flatminima.perturb.options import Options, between
from flatminima.perturb.sam import SAM, normalized
from flatminima.perturb.weights import Slot


@register()
class ASAM(SAM):
    """SAM in a ball whose axes are as long as the weights: invariant to rescaling them.

        e = rho * T^2 g / ||T g||_2,    T = diag(|w| + eta)

    With eta = 0, weights A W that compute the same function for a diagonal A > 0 get the step A e.

    Cost: as SAM.

    Source: Kwon, Kim, Park, Choi, "ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant
    Learning of Deep Neural Networks", 2021, arXiv 2102.11600.

    Args:
        base: The optimizer that takes the steps.
        rho: Radius, in units of the weights' own size; about ten times SAM's.
        eta: Keeps weights at 0 movable.
        shared_ascent: As for SAM.
        **engine: `schedule`, `interval`, `share_masks`, `model`; see `Perturbed`.
    """

    card = Card(
        name="asam",
        title="Adaptive SAM",
        equation="g(W + rho T^2 g(W) / ||T g(W)||), T = |W| + eta",
        gradients="2",
        buffers="2",
        strength="rho",
        suggested="rho 0.5; 0.1 to 2. The released code of the NSO paper has no eta: eta=0",
        source="Kwon et al., 2021, arXiv 2102.11600",
    )

    def __init__(
        self,
        base: Optimizer,
        *,
        rho: float,
        eta: float = 0.01,
        shared_ascent: bool | None = None,
        **engine: Unpack[Options],
    ) -> None:
        super().__init__(base, rho=rho, shared_ascent=shared_ascent, **engine)
        self.eta = between("eta", eta, 0, math.inf)

    def ascent(self, slots: Sequence[Slot]) -> Iterator[Tensor | None]:
        """T times the normalized T g."""
        scaled = [
            None if slot.gradient is None else slot.gradient.to_dense() * self._size(slot)
            for slot in slots
        ]
        for slot, step in zip(slots, normalized(slots, scaled), strict=True):
            yield None if step is None else step * self._size(slot)

    def _size(self, slot: Slot) -> Tensor:
        return slot.tensor.detach().abs() + self.eta
