"""Proximal matching: the loss whose minimizer is the proximal operator of -log p, in the limit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flatminima.arguments import above, function, whole
from flatminima.errors import InputError
from flatminima.objectives import Batch, Objective, Supervised

ABSOLUTE = Supervised(nn.functional.l1_loss)
"""The mean absolute error, which training begins with."""


class ProximalMatching:
    r"""$1 - e^{-\|f(y) - x\|^2 / \gamma^2}$, averaged over the batch: an objective like any other.

    The norm is over a whole sample, so gamma grows like the square root of its size. As
    $\gamma \to 0$ its minimizer over all f tends to $\arg\max_x p(x | y)$, which for
    $y = x + \sigma \varepsilon$ is the proximal operator of $-\sigma^2 \log p$. The squared error
    leads to the mean of p(x | y) instead, the absolute one to its median: proximal operators too,
    of something else than the log-density.

    A gamma far below the distances has a gradient of 0 everywhere, hence the start with the
    absolute error and the schedule: see `proximal_schedule`.

    Source: Fang, Buchanan, Sulam, 2024, arXiv 2310.14344.

    Args:
        gamma: In units of the samples, above 0.

    Raises:
        InputError: gamma is not above 0; at a call, outputs that are not shaped like the targets.
    """

    def __init__(self, gamma: float) -> None:
        self.gamma = above("gamma", gamma)
        self._supervised = Supervised(self.loss)

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss of `model` on `batch`, noisy inputs and clean targets: a scalar, 0 to 1."""
        return self._supervised(model, batch)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The same of outputs and targets of shape (n, ...)."""
        if outputs.shape != targets.shape:
            raise InputError(
                f"outputs of shape {tuple(outputs.shape)} for targets of shape "
                f"{tuple(targets.shape)}: proximal matching compares whole samples"
            )
        square = (outputs - targets).square().flatten(1).sum(1)
        # expm1 keeps the digits of a loss near 0.
        return -torch.expm1(-square / self.gamma**2).mean()


@dataclass(frozen=True)
class Stage:
    """A part of the training of a learned proximal network.

    Attributes:
        steps: Of the optimizer.
        lr: Learning rate.
        objective: What is minimized; the absolute error unless given.

    Raises:
        InputError: a number out of its range; an objective that cannot be called.
    """

    steps: int
    lr: float
    objective: Objective = ABSOLUTE

    def __post_init__(self) -> None:
        whole("steps", self.steps, 1)
        above("lr", self.lr)
        function("objective", self.objective)

    @property
    def name(self) -> str:
        """What progress calls it."""
        if isinstance(self.objective, ProximalMatching):
            return f"proximal matching, gamma {self.objective.gamma:.3g}"
        return "start"


def proximal_schedule(
    dim: int,
    steps: int = 20_000,
    *,
    start: int | None = None,
    lr: float = 1e-3,
    gamma: float | None = None,
    stages: int = 4,
) -> Sequence[Stage]:
    r"""The paper's training: absolute error, then proximal matching with gamma halved each stage.

    Args:
        dim: Numbers of a sample, n.
        steps: Steps of proximal matching, shared evenly by the stages.
        start: Steps of the absolute error before; as many unless given.
        lr: Of the start; proximal matching runs at a tenth of it.
        gamma: The last one; $0.08 \sqrt n$, the paper's for images between 0 and 1, unless given.
        stages: How many; the first has $\gamma \, 2^{\text{stages} - 1}$.

    Raises:
        InputError: a number out of its range.
    """
    whole("dim", dim, 1)
    if whole("steps", steps, 1) < whole("stages", stages, 1):
        raise InputError(f"steps={steps} and stages={stages}: give each stage a step at least")
    if start is not None:
        whole("start", start, 0)
    last = 0.08 * math.sqrt(dim) if gamma is None else above("gamma", gamma)
    above("lr", lr)
    ends = [steps * k // stages for k in range(stages + 1)]
    matching = [
        Stage(ends[k + 1] - ends[k], lr / 10, ProximalMatching(last * 2 ** (stages - 1 - k)))
        for k in range(stages)
    ]
    first = steps if start is None else start
    return [Stage(first, lr), *matching] if first else matching
