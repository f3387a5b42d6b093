"""Where self-tuning led the knobs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from flatminima.errors import require


@dataclass(frozen=True)
class SelfTuned:
    """The knobs of a run and their way.

    Attributes:
        values: Where they stand, by name.
        steps: Training steps.
        validations: Validation steps.
        history: After each validation step: "step", "values", "scales" (standard deviations of the
            draws, by the order of the knobs), "validation_loss" before it.
    """

    values: dict[str, float]
    steps: int
    validations: int
    history: tuple[dict[str, Any], ...]

    def __str__(self) -> str:
        named = ", ".join(f"{name} {value:.4g}" for name, value in self.values.items())
        return f"{named} after {self.steps} training and {self.validations} validation steps"

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types."""
        return {**asdict(self), "history": list(self.history)}

    def plot(self, ax: Any = None) -> Any:
        """Draw the knobs over the training steps; returns the matplotlib Axes.

        Args:
            ax: Where to draw; None makes a figure.

        Raises:
            InputError: matplotlib is not installed.
        """
        if ax is None:
            pyplot = require("matplotlib.pyplot", "plot")
            _, ax = pyplot.subplots(figsize=(5.6, 3.6), layout="constrained")
        steps = [entry["step"] for entry in self.history]
        for name in self.values:
            ax.plot(steps, [entry["values"][name] for entry in self.history], label=name)
        ax.set_xlabel("training step")
        ax.set_ylabel("value")
        ax.legend(frameon=False)
        return ax
