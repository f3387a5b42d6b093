"""Random SAM: the direction uphill is taken at a randomly moved point."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal, Unpack

from torch import Tensor
from torch.optim import Optimizer

from flatminima.cards import Card
from flatminima.perturb.cards import register
from flatminima.perturb.noise import Noise, Scale
from flatminima.perturb.options import Options, between, truth
from flatminima.perturb.plans import Pass, Turn
from flatminima.perturb.sam import SAM, normalized
from flatminima.perturb.weights import Slot, Weights


@register()
class RSAM(SAM):
    """SAM whose first gradient is taken at W + Z, which smooths it.

        e = rho * (Z + lambda g(W + Z)) / ||Z + lambda g(W + Z)||_2,    Z ~ N(0, sigma^2 I)
        G = g(W + e)

    The equation is recalled from the paper and could not be checked against it. The code released
    with the NSO paper has e = rho g / N with another norm N, and moves the weights even where the
    learning rate is 0.

    Cost: as SAM, and two draws of the same noise.

    Source: Liu, Mai, Cheng, Chen, Hsieh, You, "Random Sharpness-Aware Minimization", 2022.

    Args:
        base: The optimizer that takes the steps.
        rho: Radius of the ball, in units of the weights.
        sigma: Standard deviation of Z, in units of the weights; one for all groups.
        gradient_weight: lambda.
        scale: What sigma is a part of: "absolute", "layer" or "filter", as for NSO.
        vectors: Whether Z has parts for tensors of one dimension, biases and norms' weights.
        noise_per_rank: Whether data-parallel ranks draw their own Z or all the same.
        shared_ascent: As for SAM.
        **engine: `schedule` (of rho), `interval`, `seed`, `share_masks`, `model`; see `Perturbed`.
    """

    card = Card(
        name="rsam",
        title="Random SAM",
        equation="g(W + rho (Z + lambda g(W + Z)) / ||Z + lambda g(W + Z)||)",
        gradients="2",
        buffers="2",
        strength="rho",
        suggested="rho 0.05, sigma 0.01",
        source="Liu et al., NeurIPS 2022; equation recalled, not checked",
    )
    needs_scaler = True
    follows_size = True

    def __init__(
        self,
        base: Optimizer,
        *,
        rho: float,
        sigma: float = 0.01,
        gradient_weight: float = 1.0,
        scale: Literal["absolute", "layer", "filter"] = "absolute",
        vectors: bool = True,
        noise_per_rank: bool = True,
        shared_ascent: bool | None = None,
        **engine: Unpack[Options],
    ) -> None:
        super().__init__(base, rho=rho, shared_ascent=shared_ascent, **engine)
        self.sigma = between("sigma", sigma, 0, math.inf)
        self.gradient_weight = between("gradient_weight", gradient_weight, 0, math.inf)
        self.scale = Scale.named(scale)
        self.vectors = truth("vectors", vectors)
        self.noise_per_rank = truth("noise_per_rank", noise_per_rank)
        self._noise = Noise.named("normal")

    def plan(self, turn: Turn) -> list[Pass]:
        """At W + Z, for the direction; then at W + e."""
        address = (turn.step, turn.rank if self.noise_per_rank else 0)
        return [
            Pass(0.0, partial(self._randomize, address=address), sync=self.shared_ascent),
            Pass(move=partial(self._climb, address=address)),
        ]

    def _randomize(self, weights: Weights, address: tuple[int, ...]) -> None:
        weights.displace(self._z(slot, address) for slot in weights.slots)

    def _climb(self, weights: Weights, address: tuple[int, ...]) -> None:
        weights.restore()  # Z is relative to W
        directions = [self._direction(slot, address) for slot in weights.slots]
        weights.displace(normalized(weights.slots, directions))

    def _direction(self, slot: Slot, address: tuple[int, ...]) -> Tensor | None:
        if slot.gradient is None:
            return None
        z = self._z(slot, address)
        step = slot.gradient * self.gradient_weight
        return step if z is None else z.add_(step)

    def _z(self, slot: Slot, address: tuple[int, ...]) -> Tensor | None:
        if slot.tensor.dim() <= 1 and not self.vectors:
            return None
        z = self._draw(slot, self._noise, *address)
        return self.scale.apply(z, slot.tensor).mul_(self.sigma)

    def ascent(self, slots: Sequence[Slot]) -> Iterator[Tensor | None]:
        """Not used: the direction needs the noise too."""
        raise NotImplementedError
