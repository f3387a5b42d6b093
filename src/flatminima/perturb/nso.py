"""Noise Stability Optimization, and weight-perturbed SGD, its one-point relative."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial
from typing import Literal, Unpack

from torch import Tensor
from torch.optim import Optimizer

from flatminima.cards import Card
from flatminima.errors import InputError, unknown
from flatminima.perturb.cards import register
from flatminima.perturb.drawing import Draw, in_pieces
from flatminima.perturb.engine import Perturbed
from flatminima.perturb.noise import Noise, Scale
from flatminima.perturb.options import Options, between, truth, whole
from flatminima.perturb.plans import Move, Pass, Turn
from flatminima.perturb.ranks import world_size
from flatminima.perturb.replaying import NOT_IN_PIECES, Replayed
from flatminima.perturb.resolution import Resolution
from flatminima.perturb.weights import Slot, Weights

SOURCE = "Zhang, Li, Ju, 2024, arXiv 2306.08553"
SIGNS = ("paired", "split", "alternate")

ONE_PASS = Card(
    name="nso-one-pass",
    title="One-pass NSO (split signs)",
    equation="1/2 g_A(W + U) + 1/2 g_B(W - U), A and B the halves of the batch",
    gradients="1",
    buffers="1",
    strength="sigma",
    suggested="as NSO",
    source=f"this library; after {SOURCE}",
    aliases=("one-pass-nso", "nso-split"),
    preset={"signs": "split"},
)
ONE_POINT = Card(
    name="wp-sgd",
    title="Weight-perturbed SGD (one-point noise)",
    equation="1/k sum_j g(W + U_j)",
    gradients="k",
    buffers="1",
    strength="sigma",
    suggested="as NSO; k = 2 costs what NSO with k = 1 does",
    source=f"as compared in {SOURCE}",
    aliases=("wp",),
    preset={"two_point": False},
)


@register(ONE_PASS, ONE_POINT)
class NSO(Perturbed):
    """Gradients at W + U and W - U, averaged: an unbiased step on f + sigma^2/2 Tr H.

    With k perturbations and weight lambda of the clean gradient, on one batch,

        G = lambda g(W) + (1 - lambda) / (2k) sum_j [g(W + U_j) + g(W - U_j)],
        U_j ~ P, E U = 0, E U U' = sigma^2 I

    E G is the gradient of lambda f + (1 - lambda) F, where F(W) = E f(W + U) =
    f(W) + sigma^2/2 Tr H(W) + O(sigma^4). Each pair cancels every term odd in U, in particular H U,
    whose variance sigma^2 ||H||_F^2 swamps the wanted term in one-point noise (`two_point=False`).
    Weight decay and momentum act in the base optimizer, at W.

    `signs` says where the +U and the -U of a pair are taken:

    - "paired": both on the whole batch. 2k gradients a step.
    - "split": on one half of the samples each, at one gradient a step. The halves come from
      `passes(x, y)`, which cuts the batch; or from `passes()` called for an even number of
      micro-batches before `step()`, or by ranks, whose signs then alternate. H U cancels in
      expectation over the halves: what is left is sigma times the difference of the halves'
      Hessians, not sigma times the Hessian.
    - "alternate": +U at one step, -U of the same U at the next. 1 gradient a step (k with k
      draws); works with `step(closure)`. The two signs see different batches and the weights move
      between them, so cancellation is only approximate.

    BatchNorm statistics describe W: they come from the clean pass where there is one, else from
    the average over the passes, which differs from those at W by O(sigma^2).
    `running_statistics="clean"` makes them exact by one more forward pass at W (a loop that cannot
    leave out the backward pays for a gradient; see `Pass.backward`).

    Cost: 2k gradients (+1 where lambda > 0), one weight-sized buffer while passes run, and k draws
    of noise (-U is +U mirrored). sigma = 0 or lambda = 1 is the base optimizer bit for bit.

    Source: Zhang, Li, Ju, "Noise Stability Optimization for Finding Flat Minima: A Hessian-based
    Regularization Approach", TMLR 2024, arXiv 2306.08553. Split and alternating signs are ours.

    Args:
        base: The optimizer that takes the steps.
        sigma: Standard deviation of the noise, in units of the weights; groups of parameters may
            carry their own "sigma", and 0 leaves a group unperturbed.
        num_perturbations: k, draws of noise a step.
        two_point: False for one-point noise (WP-SGD): G averages g(W + U_j) alone.
        signs: See above.
        clean_weight: lambda, in [0, 1].
        noise: "normal", "laplace", "uniform", "rademacher" or "binomial" (centred), each scaled
            to variance sigma^2; or "table", nearly normal and several times quicker to draw (see
            `noise_table`).
        scale: What sigma is a part of: "absolute": nothing, sigma is in units of the weights;
            "layer": the root mean square of the parameter tensor; "filter": that of each of its
            slices along the first dimension (output units, filters), for tensors of one dimension
            as "layer".
        vectors: Whether tensors of one dimension, biases and norms' weights, are perturbed.
        noise_per_rank: Whether data-parallel ranks draw their own noise (their average then has
            world_size times as many draws, at no cost) or all the same.
        noise_per_micro_batch: Whether each call of `passes()` before one `step()` draws its own
            noise (more draws a step, at no cost) or all the same.
        running_statistics: "average" or "clean", as above.
        memory: How weights come home: "exact" from a copy of W, bit for bit (on a CPU the copy's
            memory is kept for the next step; elsewhere it lives while passes run); "replay" by
            taking the noise off again, without a copy, within rounding, at two more draws a pair
            and on a CPU only (see `replaying.Replayed`).
        **engine: `schedule`, `interval`, `seed`, `share_masks`, `model`; see `Perturbed`.

    Raises:
        InputError: an option out of its range, or two that exclude each other.
    """

    card = Card(
        name="nso",
        title="Noise Stability Optimization",
        equation="1/(2k) sum_j [g(W + U_j) + g(W - U_j)]",
        gradients="2k (+1 with a clean gradient)",
        buffers="1",
        strength="sigma",
        suggested="sigma 0.008 to 0.014 for pretrained networks; 0.1 for the small built-in ones",
        source=SOURCE,
        aliases=("nsm",),
    )
    strength_name = "sigma"

    def __init__(
        self,
        base: Optimizer,
        *,
        sigma: float,
        num_perturbations: int = 1,
        two_point: bool = True,
        signs: Literal["paired", "split", "alternate"] = "paired",
        clean_weight: float = 0.0,
        noise: str = "normal",
        scale: Literal["absolute", "layer", "filter"] = "absolute",
        vectors: bool = True,
        noise_per_rank: bool = True,
        noise_per_micro_batch: bool = False,
        running_statistics: Literal["average", "clean"] = "average",
        memory: Literal["exact", "replay"] = "exact",
        **engine: Unpack[Options],
    ) -> None:
        super().__init__(base, strength=sigma, **engine)
        if signs not in SIGNS:
            raise unknown("signs", signs, SIGNS)
        if signs != "paired" and not two_point:
            raise InputError(
                f"signs={signs!r} takes a pair apart, and two_point=False has no pairs: "
                "leave one of them out"
            )
        if running_statistics not in ("average", "clean"):
            raise unknown("running_statistics", running_statistics, ("average", "clean"))
        if memory not in ("exact", "replay"):
            raise unknown("memory", memory, ("exact", "replay"))
        self.num_perturbations = whole("num_perturbations", num_perturbations)
        self.two_point = truth("two_point", two_point)
        self.signs = signs
        self.clean_weight = between("clean_weight", clean_weight, 0, 1)
        self.noise = Noise.named(noise)
        self.scale = Scale.named(scale)
        self.vectors = truth("vectors", vectors)
        self.noise_per_rank = truth("noise_per_rank", noise_per_rank)
        self.noise_per_micro_batch = truth("noise_per_micro_batch", noise_per_micro_batch)
        self.running_statistics = running_statistics
        self.memory = memory

    @property
    def by_micro_batch(self) -> bool:
        """Whether micro-batches are to come one by one."""
        return self.noise_per_micro_batch

    def plan(self, turn: Turn) -> list[Pass]:
        """The clean pass if it counts, then the noisy ones."""
        if self.clean_weight == 1:
            return [Pass()]
        if self.clean_weight:
            return [Pass(self.clean_weight), *self._noisy(turn)]
        if self.running_statistics == "clean":
            return [Pass(0.0, backward=False), *self._noisy(turn)]
        return self._noisy(turn)

    def _noisy(self, turn: Turn) -> list[Pass]:
        noisy, k = 1 - self.clean_weight, self.num_perturbations
        rank = turn.rank if self.noise_per_rank else 0
        own = (turn.micro_batch,) if self.noise_per_micro_batch and turn.micro_batch else ()
        if self.signs == "alternate":
            period, sign = turn.step // 2, 1 - 2 * (turn.step % 2)
            draws = [self._to(sign, period, j, rank, *own) for j in range(k)]
            return [Pass(noisy / k, draw) for draw in draws]
        if self.signs == "split" and turn.samples is None:
            # Ranks 2r and 2r + 1 share U and start with opposite signs.
            pair, sign = turn.micro_batch // 2, 1 - 2 * ((turn.micro_batch + turn.rank) % 2)
            j = pair if self.noise_per_micro_batch else pair % k
            return [Pass(noisy, self._to(sign, turn.step, j, rank // 2))]
        if self.signs == "split" and turn.samples is not None:
            pairs = min(k, turn.samples // 2)
            if not pairs:
                return [Pass(noisy, self._to(1, turn.step, 0, rank, *own))]
            parts = 2 * pairs
            return [
                Pass(noisy, move, (2 * j + half, parts))
                for j in range(pairs)
                for half, move in enumerate(
                    (self._to(1, turn.step, j, rank, *own), Weights.reflect)
                )
            ]
        draws = [self._to(1, turn.step, j, rank, *own) for j in range(k)]
        if not self.two_point:
            return [Pass(noisy / k, draw) for draw in draws]
        half = noisy / (2 * k)
        return [Pass(half, move) for draw in draws for move in (draw, Weights.reflect)]

    def _to(self, sign: int, *counters: int) -> Move:
        """The move to W + sign * U, U the draw at an address: step, j, rank, micro-batch."""
        return partial(self._displace, counters=counters, sign=sign)

    def _displace(self, weights: Weights, counters: tuple[int, ...], sign: int) -> None:
        absolute = self.scale.name == "absolute" and weights.resolution is None
        if absolute and all(in_pieces(slot.tensor, self.noise) for slot in weights.slots):
            seeds = [self._stream.address(slot.tensor_id, *counters) for slot in weights.slots]
            weights.shake(
                [
                    Draw(self.noise, seed, sign * slot.strength) if self._shaken(slot) else None
                    for slot, seed in zip(weights.slots, seeds, strict=True)
                ]
            )
            return

        def offsets() -> Iterator[Tensor | None]:
            for slot in weights.slots:
                if not self._shaken(slot):
                    yield None
                else:
                    z = self._draw(slot, self.noise, *counters)
                    yield self.scale.apply(z, slot.tensor).mul_(sign * slot.strength)

        weights.displace(offsets())

    def _weights(self, slots: list[Slot], resolution: Resolution | None) -> Weights:
        if self.memory == "exact":
            return super()._weights(slots, resolution)
        if resolution is not None:
            raise InputError(NOT_IN_PIECES)
        return Replayed(slots)

    def _shaken(self, slot: Slot) -> bool:
        return self.vectors or slot.tensor.dim() > 1

    def check_closure(self) -> None:
        """One closure for the whole batch cannot be cut, neither by signs nor by micro-batches."""
        if self.noise_per_micro_batch:
            raise InputError(
                "noise_per_micro_batch=True needs passes() once for each micro-batch, and a "
                "closure runs them all: leave it out, or use passes()"
            )
        if self.signs == "split" and any(self.strength(group) for group in self.param_groups):
            raise InputError(
                "signs='split' needs halves of the batch, and a closure runs the whole: use\n"
                "    for x_, y_ in optimizer.passes(x, y):\n"
                "        loss_fn(model(x_), y_).backward()\n"
                "    optimizer.step()\n"
                "or signs='alternate', which changes the sign from step to step"
            )

    def check_step(self, micro_batches: int, samples: int | None) -> None:
        """Warn where the signs of a step do not cancel."""
        by_micro_batch = self.signs == "split" and samples is None
        noisy = self.clean_weight < 1 and any(self.strength(group) for group in self.param_groups)
        alone = self.sharded or world_size() % 2
        if by_micro_batch and noisy and micro_batches % 2 and alone:
            warnings.warn(
                f"signs='split' gathered {micro_batches} micro-batch(es) for one step, so one sign "
                "has no partner and its noise does not cancel: call passes(x, y), which halves the "
                "batch, or take an even number of micro-batches, or use signs='alternate'",
                stacklevel=4,
            )
