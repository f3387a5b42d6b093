"""How far a point is from where the noisy loss stands still."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flatminima.objectives import Batch, LinearLoss
from flatminima.objectives.supervised import inputs_and_targets
from flatminima.training.data.device import to_device
from flatminima.training.tasks.task import Saw, Task, evaluating
from flatminima.training.theory import Cosines

SIGMA = 0.5
"""Of the noise whose loss F is scored."""


class CosineSum(Task):
    r"""Scored by the gradient of the loss under noise, in closed form.

    For $f(w) = \frac1n \sum_j c_j \cos(a_j^\top w)$ and $U \sim N(0, \sigma^2 I)$ with sigma 0.5,
    $F(w) = E f(w + U) = \frac1n \sum_j c_j e^{-\sigma^2 \|a_j\|^2 / 2} \cos(a_j^\top w)$.
    `squared_gradient` is $\|\nabla F\|^2$, `loss` is f, and `smoothed_loss` is F.
    """

    name = "cosines"
    objective = "linear"
    metrics = ("squared_gradient", "loss", "smoothed_loss")
    goal = "squared_gradient"
    higher_is_better = False
    loss = LinearLoss()

    def score(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        device: torch.device,
        saw: Saw | None = None,
    ) -> Mapping[str, float]:
        """See `Task.score`."""
        (cosines,) = (m for m in model.modules() if isinstance(m, Cosines))
        found = torch.zeros(2, dtype=torch.float64)
        gradient, samples = torch.zeros(cosines.weight.shape, dtype=torch.float64), 0
        with evaluating(model):
            weight = cosines.weight.double().cpu()
            for batch in batches:
                terms, c = _terms(to_device(batch, torch.device("cpu")))
                damped = c * torch.exp(-(SIGMA**2) / 2 * terms.square().sum(dim=1))
                angle = terms @ weight
                found += torch.stack([(x * angle.cos()).sum() for x in (c, damped)])
                gradient -= (damped * angle.sin()) @ terms
                samples += len(c)
        loss, smoothed = (found / samples).tolist()
        squared = (gradient / samples).square().sum().item()
        return {"squared_gradient": squared, "loss": loss, "smoothed_loss": smoothed}


def _terms(batch: Batch) -> tuple[Tensor, Tensor]:
    terms, coefficients = inputs_and_targets(batch)
    return terms.double(), coefficients.double()
