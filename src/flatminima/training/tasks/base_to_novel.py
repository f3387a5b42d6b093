"""A few images of some classes to tune on; those of other classes to see what it did to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flatminima.objectives.supervised import inputs_and_targets, logits
from flatminima.training.data.device import to_device
from flatminima.training.data.examples import DataSet
from flatminima.training.prompting import novel_mask
from flatminima.training.tasks.task import Saw, Task, evaluating


@dataclass(frozen=True, eq=False)
class BaseToNovel(Task):
    """Scored on the classes that were trained on, and on those that were not, each among their own.

    `accuracy_base` is the part of the images of base classes that are told from the other base
    classes, `accuracy_novel` that of novel classes among the novel ones, as is usual for the tuning
    of vision-language models (Zhou et al., 2022, arXiv 2203.05557); `accuracy_harmonic` is their
    harmonic mean, `accuracy` the part of all, and `loss` the cross-entropy in nats. A set without
    novel classes, such as a validation set, has `accuracy` and `loss` alone.

    Attributes:
        novel: Which classes are novel, bool, shape (classes,).
    """

    name = "base-to-novel"
    objective = "cross-entropy"
    metrics = ("accuracy", "loss")
    goal = "accuracy"

    novel: Tensor | None = None

    @classmethod
    def of(cls, data: DataSet) -> Task:
        """See `Task.of`."""
        return cls(novel_mask(data))

    def score(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        device: torch.device,
        saw: Saw | None = None,
    ) -> Mapping[str, float]:
        """See `Task.score`; `saw` is told the logits, (samples, classes)."""
        right, labels, loss = [], [], 0.0
        with evaluating(model):
            for batch in batches:
                inputs, targets = inputs_and_targets(to_device(batch, device))
                predicted = logits(model, inputs).float()
                if saw is not None:
                    saw(predicted)
                loss += nn.functional.cross_entropy(predicted, targets, reduction="sum").item()
                right.append((predicted.argmax(dim=1) == targets).cpu())
                labels.append(targets.cpu())
        every, label = torch.cat(right), torch.cat(labels)
        assert self.novel is not None
        return {"loss": loss / len(label), **by_novelty(every, label, self.novel)}


def by_novelty(right: Tensor, labels: Tensor, novel: Tensor) -> dict[str, float]:
    """Accuracies on all samples, and on those of base and novel classes where there are both.

    Args:
        right: Whether each is predicted, bool, shape (samples,).
        labels: Its class, int64.
        novel: Which classes are novel, bool, shape (classes,).
    """
    found = {"accuracy": right.double().mean().item()}
    is_novel = novel[labels]
    if is_novel.any() and not is_novel.all():
        base, new = (right[chosen].double().mean().item() for chosen in (~is_novel, is_novel))
        found |= {
            "accuracy_base": base,
            "accuracy_novel": new,
            "accuracy_harmonic": 2 * base * new / (base + new) if base + new else 0.0,
        }
    return found
