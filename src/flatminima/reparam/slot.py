"""What fills the slot of reparametrizations does of a run."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from torch import nn

from flatminima.objectives import Objective


class Reparam:
    """Nothing: all weights are free, anywhere.

    Attributes:
        changes_modules: Whether the model has other parameters while it is trained, so that its
            checkpoints are of a reparametrized model; `bake` makes an ordinary one of it.
        freezes_statistics: Whether BatchNorm keeps the statistics that training began with.
        averages_baked: Whether the mean of the weights along a run (SWA, EMA) is that of the
            ordinary model; else it is of what is trained, and baked afterwards.

    Args:
        model: Its weights as training begins; changed in place where `changes_modules`.
    """

    changes_modules: ClassVar[bool] = False
    freezes_statistics: ClassVar[bool] = False
    averages_baked: ClassVar[bool] = False

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def objective(self, objective: Objective) -> Objective:
        """What is minimized instead of an objective."""
        return objective

    def before_pass(self, weight: float) -> None:
        """Told before each pass of a step, and before its objective is called.

        Args:
            weight: How much the gradient of the pass counts in that of the step.
        """

    def before_step(self, step: int) -> None:
        """What is done to the gradient of a step, gathered over all of its passes and processes.

        Args:
            step: Steps before it, skipped ones included.
        """

    def after_step(self) -> None:
        """What is done to the weights once a step was taken."""

    def bake(self, model: nn.Module) -> None:
        """Turn a model into an ordinary one with the same outputs, in place.

        Args:
            model: The one that was reparametrized, or a copy of it.
        """

    def write(self, model: nn.Module, folder: Path) -> None:
        """Leave what is worth keeping beside the weights; called before `bake`.

        Args:
            model: As in `bake`.
            folder: That of the run.
        """
