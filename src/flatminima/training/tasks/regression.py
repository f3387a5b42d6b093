"""One number for each sample."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from flatminima.objectives import SquaredError
from flatminima.objectives.regression import predictions
from flatminima.training.data.device import to_device
from flatminima.training.tasks.task import Saw, Task, evaluating


class Regression(Task):
    """Scored in the units of the labels.

    `mae` is the mean absolute error, `loss` the mean squared error, and `gmean` the geometric mean
    of the absolute errors, exp(mean log |error|), which a few large ones do not decide.
    """

    name = "regression"
    objective = "squared-error"
    metrics = ("mae", "loss", "gmean")
    goal = "mae"
    higher_is_better = False
    loss = SquaredError()

    def score(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        device: torch.device,
        saw: Saw | None = None,
    ) -> Mapping[str, float]:
        """See `Task.score`; `saw` is told the predictions, (samples,)."""
        errors = []
        with evaluating(model):
            for batch in batches:
                predicted, targets = predictions(model, to_device(batch, device))
                if saw is not None:
                    saw(predicted)
                errors.append((predicted.double() - targets.double()).abs().cpu())
        error = torch.cat(errors)
        return {
            "mae": error.mean().item(),
            "loss": error.square().mean().item(),
            "gmean": error.clamp_min(SMALLEST).log().mean().exp().item(),
        }


SMALLEST = 1e-12
"""An error of 0 would make the geometric mean 0, whatever the others are."""
