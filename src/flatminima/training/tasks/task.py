"""What a run is about: what its loss is where it is tested and measured, and how it is scored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import nn

from flatminima.objectives import Objective, Supervised
from flatminima.training.data.encode import Encoding
from flatminima.training.data.examples import DataSet

Saw = Callable[[Any], None]
"""Told what a model gives for each batch: what that is, the task says."""


class Task:
    """One kind of data set as a run sees it.

    Attributes:
        name: As data sets and cards of objectives call it.
        objective: The objective that is minimized where the recipe names none.
        metrics: What `score` gives of each part of a data set; it may give more of some.
        goal: The metric that a best checkpoint is chosen by.
        higher_is_better: Of the goal.
        loss: What is tested and measured, whatever was minimized: the mean over samples.
    """

    name: ClassVar[str]
    objective: ClassVar[str]
    metrics: tuple[str, ...]
    goal: ClassVar[str]
    higher_is_better: ClassVar[bool] = True
    loss: Objective = Supervised()

    @classmethod
    def of(cls, data: DataSet) -> Task:
        """The task as a data set has it."""
        return cls()

    def read_by(self, data: DataSet, encoding: Encoding) -> Task:
        """The task as a model sees it, where what it is scored by must be encoded too.

        Args:
            data: Whose task it is.
            encoding: What the model needs of its inputs.
        """
        return self

    def score(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        device: torch.device,
        saw: Saw | None = None,
    ) -> Mapping[str, float]:
        """How well a model does, in evaluation mode; the mode of each module is left as it was.

        Args:
            model: On the device.
            batches: Of a part of the data set, on any device.
            device: Where the model is.
            saw: Told the outputs of each batch, where the task has some for each sample.

        Returns:
            A number for each of `metrics`.
        """
        raise NotImplementedError

    def better(self, score: Mapping[str, float]) -> float:
        """The goal of a score, such that more is better."""
        return score[self.goal] if self.higher_is_better else -score[self.goal]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, and each module's own mode again."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
