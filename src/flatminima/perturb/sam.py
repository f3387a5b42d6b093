"""Sharpness-Aware Minimization, and its un-normalized form."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar, Unpack

from torch import Tensor
from torch.optim import Optimizer

from flatminima.cards import Card
from flatminima.perturb.cards import foreign_option, register
from flatminima.perturb.engine import Perturbed
from flatminima.perturb.gradients import global_norm
from flatminima.perturb.options import Options, truth
from flatminima.perturb.plans import Pass, Turn
from flatminima.perturb.weights import Slot, Weights

EPSILON = 1e-12


@register()
class SAM(Perturbed):
    """The gradient at the (first-order) worst point of a ball of radius rho around W.

        G = g(W + e),    e = rho * g(W) / (||g(W)||_2 + 1e-12)

    with the norm over all weights that move. Both passes use one batch. Each process climbs along
    the gradient of its own samples (with `passes()` called per micro-batch: of each micro-batch),
    the m-sharpness of the paper, so a step needs one all-reduce; see also `MSAM`.
    `shared_ascent=True` climbs along the gradient of all processes' samples, at two.

    Cost: 2 gradients a step, one after the other; one weight-sized buffer while passes run.

    Source: Foret, Kleiner, Mobahi, Neyshabur, "Sharpness-Aware Minimization for Efficiently
    Improving Generalization", 2021, arXiv 2010.01412.

    Args:
        base: The optimizer that takes the steps.
        rho: Radius of the ball, in units of the weights; groups may carry their own "rho".
        shared_ascent: Whether data-parallel processes agree on the step up, as above; default: no.
        **engine: `schedule`, `interval`, `share_masks`, `model`; see `Perturbed`.
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
    refused: ClassVar = {
        "signs": "the step up needs a gradient before the one that counts, so the two cannot be "
        "taken on halves of the batch; what costs one gradient is NSO(signs='split'), and "
        "LookSAM saves most of the second",
    }

    def __init__(
        self,
        base: Optimizer,
        *,
        rho: float,
        shared_ascent: bool | None = None,
        **engine: Unpack[Options],
    ) -> None:
        super().__init__(base, strength=rho, **engine)
        own = inspect.signature(type(self)).parameters
        if shared_ascent is not None and "shared_ascent" not in own:
            raise foreign_option(type(self), "shared_ascent")
        self.shared_ascent = shared_ascent is not None and truth("shared_ascent", shared_ascent)

    def plan(self, turn: Turn) -> list[Pass]:
        """At W, whose gradient only points uphill; then at W + e, whose gradient counts."""
        return [Pass(weight=0.0, sync=self.shared_ascent), Pass(move=self.climb)]

    def climb(self, weights: Weights) -> None:
        """Move from W to W + e."""
        weights.displace(self.ascent(weights.slots))

    def ascent(self, slots: Sequence[Slot]) -> Iterable[Tensor | None]:
        """e for each parameter, from its gradient at W; None where there is no gradient."""
        return normalized(slots, [slot.gradient for slot in slots])


@register()
class USAM(SAM):
    """SAM without the normalization.

        G = g(W + rho g(W))

    The step up grows with the gradient, so it vanishes at a minimum, and a good rho is another than
    SAM's. With a `GradScaler` give it as `scaler=`, or the step up is scaled too.

    Cost: as SAM.

    Source: Andriushchenko, Flammarion, "Towards Understanding Sharpness-Aware Minimization", 2022,
    arXiv 2206.06232.
    """

    card = Card(
        name="usam",
        title="Un-normalized SAM",
        equation="g(W + rho g(W))",
        gradients="2",
        buffers="1",
        strength="rho",
        suggested="rho 0.05 to 0.5",
        source="Andriushchenko, Flammarion, 2022, arXiv 2206.06232",
    )
    needs_scaler = True
    follows_size = True

    def ascent(self, slots: Sequence[Slot]) -> Iterator[Tensor | None]:
        """rho g."""
        for slot in slots:
            gradient = slot.gradient
            yield None if gradient is None else gradient * slot.strength


def normalized(
    slots: Sequence[Slot], directions: Sequence[Tensor | None]
) -> Iterator[Tensor | None]:
    """strength * d / (||d|| + 1e-12) for each parameter, the norm over all of them together."""
    present = [direction for direction in directions if direction is not None]
    norm = global_norm(present) + EPSILON if present else None
    for slot, direction in zip(slots, directions, strict=True):
        if direction is None or norm is None:
            yield None
        else:
            yield direction * (slot.strength / norm.to(direction.device))
