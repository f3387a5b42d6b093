"""Bayesian SAM: the ball is as wide as the posterior of each weight."""

from __future__ import annotations

from functools import partial
from typing import Unpack

from torch import Tensor
from torch.optim import Optimizer

from flatminima.cards import Card
from flatminima.errors import InputError
from flatminima.optim import VariationalAdam
from flatminima.perturb.cards import register
from flatminima.perturb.engine import Perturbed
from flatminima.perturb.noise import Noise
from flatminima.perturb.options import Options, truth
from flatminima.perturb.plans import Pass, Turn
from flatminima.perturb.weights import Slot, Weights


@register()
class BSAM(Perturbed):
    """SAM as a relaxation of the expected loss over a Gaussian posterior N(W, 1 / (N s)).

        h = g(W + Z),    Z ~ N(0, 1 / (N s))    sets the scale s, and the direction
        G = g(W + e),    e = rho * h / s        is what momentum sees

    s, the posterior's precision for each weight, lives in the base optimizer, which must be
    `flatminima.VariationalAdam`; its docstring has the update. At rho = 0 the noise is left
    out too, and the base optimizer is all there is.

    The size of the gradient matters: with a `GradScaler` give it as `scaler=`.

    Cost: 2 gradients and, so that s is the same in all processes, two all-reduces a step; two
    weight-sized buffers.

    Source: Möllenhoff, Khan, "SAM as an Optimal Relaxation of Bayes", 2023, arXiv 2210.01620. The
    code released with the NSO paper calls by this name a SAM with noise of fixed size and plain
    Adam, which moves the weights even where the learning rate is 0.

    Args:
        base: A `flatminima.VariationalAdam`.
        rho: Radius, in units of (weights)^2 times loss; 5e-5 to 0.1 in the paper.
        noise_per_rank: Whether data-parallel ranks draw their own Z or all the same.
        **engine: `schedule`, `interval`, `seed`, `share_masks`, `model`; see `Perturbed`.

    Raises:
        InputError: another base optimizer.
    """

    card = Card(
        name="bsam",
        title="Bayesian SAM",
        equation="g(W + rho h / s), h = g(W + Z), Z ~ N(0, 1/(N s)), s from the base optimizer",
        gradients="2",
        buffers="2",
        strength="rho",
        suggested="rho 0.01 to 0.1, lr 0.3 to 1",
        source="Möllenhoff, Khan, 2023, arXiv 2210.01620",
        base="variational-adam",
    )
    strength_name = "rho"
    needs_scaler = True
    follows_size = True

    def __init__(
        self,
        base: Optimizer,
        *,
        rho: float,
        noise_per_rank: bool = True,
        **engine: Unpack[Options],
    ) -> None:
        super().__init__(base, strength=rho, **engine)
        self.noise_per_rank = truth("noise_per_rank", noise_per_rank)
        if not isinstance(base, VariationalAdam):
            raise InputError(
                f"bSAM needs the posterior precision that {type(base).__name__} does not keep: "
                "wrap flatminima.VariationalAdam(params, lr=0.5, num_samples=len(data))"
            )
        self._posterior = base
        self._noise = Noise.named("normal")

    def plan(self, turn: Turn) -> list[Pass]:
        """At a draw from the posterior; then at W + e."""
        rank = turn.rank if self.noise_per_rank else 0
        sample = partial(self._sample, address=(turn.step, rank))
        keep = partial(self._keep, anew=turn.micro_batch == 0)
        return [Pass(0.0, sample, after=keep, sync=True), Pass(move=self._climb)]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Zero the gradients, h among them, and start the step anew."""
        if self.current_pass is None:
            self._posterior.curvature_gradients = {}
        super().zero_grad(set_to_none)

    def _sample(self, weights: Weights, address: tuple[int, ...]) -> None:
        weights.displace(
            self._draw(slot, self._noise, *address).mul_(self._deviation(slot.tensor))
            for slot in weights.slots
        )

    def _deviation(self, parameter: Tensor) -> Tensor:
        return (self._posterior.num_samples * self._posterior.precision(parameter)).rsqrt()

    def _keep(self, weights: Weights, anew: bool) -> None:
        known = {} if anew else self._posterior.curvature_gradients
        self._posterior.curvature_gradients = known
        for slot in weights.slots:
            if (h := slot.keep_gradient()) is not None:
                h = h.to_dense()
                known[slot.tensor] = known[slot.tensor] + h if slot.tensor in known else h

    def _climb(self, weights: Weights) -> None:
        weights.displace(self._step_up(slot) for slot in weights.slots)

    def _step_up(self, slot: Slot) -> Tensor | None:
        if (h := slot.gradient) is None:
            return None
        return h.to_dense() * (slot.strength / self._posterior.precision(slot.tensor))
