"""What fills the slot of reparametrizations does of a step."""

from __future__ import annotations

from torch import nn

from flatminima.objectives import Objective


class Reparam:
    """Nothing: all weights are free, anywhere.

    Args:
        model: Its weights as training begins.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def objective(self, objective: Objective) -> Objective:
        """What is minimized instead of an objective."""
        return objective

    def after_step(self) -> None:
        """What is done to the weights once a step was taken."""
