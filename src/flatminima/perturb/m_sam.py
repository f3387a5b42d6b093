"""m-SAM: each part of m samples climbs along its own gradient."""

from __future__ import annotations

import warnings
from typing import Unpack

from torch.optim import Optimizer

from flatminima.cards import Card
from flatminima.errors import InputError
from flatminima.perturb.cards import register
from flatminima.perturb.options import Options, whole
from flatminima.perturb.plans import Pass, Turn
from flatminima.perturb.sam import SAM
from flatminima.perturb.weights import Weights


@register()
class MSAM(SAM):
    """SAM on parts of m samples of the batch, averaged: it minimizes the m-sharpness.

        G = sum_i |B_i| / |B| g_i(W + e_i),    e_i = rho * g_i(W) / ||g_i(W)||_2

    with g_i the gradient on part B_i. A smaller m has generalized better in the papers.
    `passes(x, y)` cuts the batch into ceil(|B| / m) nearly equal parts; without a batch, each call
    of `passes()` is one part, so call it once for each micro-batch. Data-parallel processes are
    parts too, for this method as for SAM itself.

    Cost: 2 gradients a step, in pieces of m samples; one weight-sized buffer while passes run.

    Source: Foret et al., 2021, arXiv 2010.01412, section 4.1; Andriushchenko, Flammarion, 2022,
    arXiv 2206.06232.

    Args:
        base: The optimizer that takes the steps.
        rho: Radius of the ball, in units of the weights.
        m: Samples in a part, at most.
        **engine: `schedule`, `interval`, `share_masks`, `model`; see `Perturbed`.
    """

    card = Card(
        name="m-sam",
        title="m-SAM",
        equation="mean over parts B_i of m samples of g_i(W + rho g_i(W) / ||g_i(W)||)",
        gradients="2",
        buffers="1",
        strength="rho",
        suggested="rho as SAM, m 8 to a quarter of the batch",
        source="Foret et al., 2021, arXiv 2010.01412",
        aliases=("msam",),
    )

    def __init__(
        self, base: Optimizer, *, rho: float, m: int = 8, **engine: Unpack[Options]
    ) -> None:
        super().__init__(base, rho=rho, **engine)
        self.m = whole("m", m)

    def plan(self, turn: Turn) -> list[Pass]:
        """SAM's two passes for each part; each part but the first begins by going home."""
        if turn.samples is None:
            return super().plan(turn)
        parts = -(-turn.samples // self.m)
        return [
            pass_
            for i in range(parts)
            for pass_ in (
                Pass(0.0, Weights.restore if i else None, (i, parts)),
                Pass(1.0, self.climb, (i, parts)),
            )
        ]

    def check_closure(self) -> None:
        """One closure for the whole batch cannot be cut."""
        if any(map(self.strength, self.param_groups)):
            raise InputError(
                "m-SAM needs parts of the batch, and a closure runs the whole: use\n"
                "    for x_, y_ in optimizer.passes(x, y):\n"
                "        loss_fn(model(x_), y_).backward()\n"
                "    optimizer.step()\n"
                "or flatminima.SAM"
            )

    def check_step(self, micro_batches: int, samples: int | None) -> None:
        """Warn where a step had one part only for want of a batch to cut."""
        if samples is None and micro_batches == 1 and any(map(self.strength, self.param_groups)):
            warnings.warn(
                "m-SAM was given no batch to cut and one micro-batch, so this step is plain SAM's: "
                "write `for x_, y_ in optimizer.passes(x, y)`, or call passes() once for each "
                "micro-batch",
                stacklevel=4,
            )
