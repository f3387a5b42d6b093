"""One number for each sample."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flatminima.objectives import SquaredError
from flatminima.objectives.regression import predictions
from flatminima.training.data.device import to_device
from flatminima.training.data.examples import DataSet
from flatminima.training.data.numbers import Scale
from flatminima.training.tasks.shots import Shots
from flatminima.training.tasks.task import Saw, Task, evaluating


class Regression(Task):
    """Scored in the unit of the labels, though a model is trained on standardized ones.

    `mae` is the mean absolute error and `gmean` the geometric mean of the absolute errors,
    exp(mean log |error|), which a few large ones do not decide; both in the unit of the labels, and
    once more (`mae_few`, ...) for each group of `Shots` that the training labels are of. `loss` is
    the mean squared error of the standardized labels, which is what is measured too: 1 for a model
    that predicts the mean of the training labels, where the labels to test on are like them.

    Args:
        scale: Of the standardized labels that batches hold.
        shots: How often labels occur in training. None: no groups.
    """

    name = "regression"
    objective = "squared-error"
    goal = "mae"
    higher_is_better = False
    loss = SquaredError()

    def __init__(self, scale: Scale | None = None, shots: Shots | None = None) -> None:
        self.scale, self.shots = scale or Scale(), shots
        groups = () if shots is None else shots.present
        by_group = [f"{metric}_{group}" for metric in ("mae", "gmean") for group in groups]
        self.metrics = ("mae", "loss", "gmean", *by_group)

    @classmethod
    def of(cls, data: DataSet) -> Regression:
        """That of a data set, the bins as its spec says."""
        spec, labels = data.spec, data.clean_targets
        return cls(data.scale, Shots.of(labels, spec.label_bin, spec.few_shot, spec.many_shot))

    def score(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        device: torch.device,
        saw: Saw | None = None,
    ) -> Mapping[str, float]:
        """See `Task.score`; `saw` is told the standardized predictions, (samples,).

        A group that no sample is of has NaN.
        """
        errors, labels = [], []
        with evaluating(model):
            for batch in batches:
                predicted, targets = predictions(model, to_device(batch, device))
                if saw is not None:
                    saw(predicted)
                errors.append((predicted.double() - targets.double()).abs().cpu())
                labels.append(targets.double().cpu())
        standardized = torch.cat(errors)
        error = self.scale.deviation * standardized
        found = {"mae": _mean(error), "loss": _mean(standardized.square()), "gmean": _gmean(error)}
        if self.shots is not None and self.shots.present:
            in_units = self.scale.deviation * torch.cat(labels).numpy() + self.scale.mean
            group = self.shots.group(in_units)
            for name in self.shots.present:
                own = error[torch.from_numpy(np.flatnonzero(group == name))]
                found |= {f"mae_{name}": _mean(own), f"gmean_{name}": _gmean(own)}
        return {name: found[name] for name in self.metrics}


SMALLEST = 1e-12
"""An error of 0 would make the geometric mean 0, whatever the others are."""


def _mean(values: Tensor) -> float:
    return values.mean().item()


def _gmean(error: Tensor) -> float:
    return error.clamp_min(SMALLEST).log().mean().exp().item()
