"""How well a matrix is recovered from its measurements."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from flatminima.objectives import SquaredError
from flatminima.objectives.regression import predictions
from flatminima.training.data.device import to_device
from flatminima.training.tasks.task import Saw, Task, evaluating
from flatminima.training.theory import MatrixFactor


class MatrixSensing(Task):
    r"""Scored by the error of the recovered matrix.

    `error` is the sum of squared residuals over that of the targets, an estimate of
    $\|W W^\top - X^*\|_F^2 / \|X^*\|_F^2$ on measurements that were not trained on; `loss` is
    $\frac{1}{4m} \sum_i r_i^2$; `nuclear_norm` is $\|W W^\top\|_* = \|W\|_F^2$, which on the set of
    zero training loss the trace of the Hessian is about d + 1 times of.
    """

    name = "matrix-sensing"
    objective = "squared-error(scale=0.25)"
    metrics = ("error", "loss", "nuclear_norm")
    goal = "error"
    higher_is_better = False
    loss = SquaredError(scale=0.25)

    def score(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        device: torch.device,
        saw: Saw | None = None,
    ) -> Mapping[str, float]:
        """See `Task.score`."""
        squares = total = samples = 0.0
        with evaluating(model):
            for batch in batches:
                predicted, targets = predictions(model, to_device(batch, device))
                squares += (predicted - targets).double().square().sum().item()
                total += targets.double().square().sum().item()
                samples += len(targets)
            (factor,) = (m.weight for m in model.modules() if isinstance(m, MatrixFactor))
            norm = factor.double().square().sum().item()
        return {
            "error": squares / total,
            "loss": squares / samples / 4,
            "nuclear_norm": norm,
        }
