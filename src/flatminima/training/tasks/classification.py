"""One class for each sample."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from flatminima.objectives.supervised import inputs_and_targets, logits
from flatminima.training.data.device import to_device
from flatminima.training.tasks.task import Saw, Task, evaluating


class Classification(Task):
    """Scored by the part of the samples whose class is predicted, and the cross-entropy in nats."""

    name = "classification"
    objective = "cross-entropy"
    metrics = ("accuracy", "loss")
    goal = "accuracy"

    def score(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        device: torch.device,
        saw: Saw | None = None,
    ) -> Mapping[str, float]:
        """See `Task.score`; `saw` is told the logits, (samples, classes)."""
        correct = loss = samples = 0.0
        with evaluating(model):
            for batch in batches:
                inputs, targets = inputs_and_targets(to_device(batch, device))
                predicted = logits(model, inputs).float()
                if saw is not None:
                    saw(predicted)
                loss += nn.functional.cross_entropy(predicted, targets, reduction="sum").item()
                correct += (predicted.argmax(dim=1) == targets).sum().item()
                samples += len(targets)
        return {"accuracy": correct / samples, "loss": loss / samples}
