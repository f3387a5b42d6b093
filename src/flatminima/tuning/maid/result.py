"""What a bilevel descent found, and each of its steps."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from flatminima.errors import require

STOPPED = {
    "steps": "as many steps as asked",
    "products": "as many products as asked",
    "tolerance": "the gradient of f is within the tolerance",
    "stationary": "no accuracy above the floor tells the hypergradient from 0",
    "precision": "no accuracy above the floor shows a decrease",
    "unsolved": "a solve took more products than Settings.inner allows",
}


@dataclass(frozen=True)
class Step:
    r"""An accepted step: f fell by `decrease` at least.

    Attributes:
        upper: g at the inexact lower solution after the step.
        low: What f was at least, before.
        high: What f is at most, after; low - high is the decrease.
        bound: $\omega$, the error of the hypergradient at most.
        gradient: $\lVert z \rVert$.
        accuracy: $\epsilon$ asked for.
        residual: $\delta$ asked for.
        length: $\alpha$, the step being $-\alpha z$.
        trials: Step lengths tried, in all.
        tightened: How often the accuracy had to be tightened.
        products: Products up to here; see `BilevelResult`.
    """

    upper: float
    low: float
    high: float
    bound: float
    gradient: float
    accuracy: float
    residual: float
    length: float
    trials: int
    tightened: int
    products: int

    @property
    def decrease(self) -> float:
        """What f fell by at least."""
        return self.low - self.high


@dataclass(frozen=True)
class BilevelResult:
    """Where a bilevel descent ended, with its history.

    Attributes:
        theta: The knobs.
        x: The inexact solution of the lower problem there.
        upper: g(x).
        low: What f(theta) is at least.
        high: What it is at most.
        start: g at the first inexact solution, before any step.
        history: The accepted steps.
        stopped: Why it ended: "steps", "products", "tolerance", "stationary", "precision" or
            "unsolved".
        certified: Whether the constants were given; if they were estimated, so are all bounds.
        products: Gradients of the lower problem and products with its second derivatives.
    """

    theta: Tensor
    x: Tensor
    upper: float
    low: float
    high: float
    start: float
    history: tuple[Step, ...]
    stopped: str
    certified: bool
    products: int

    def __str__(self) -> str:
        word = "certified" if self.certified else "estimated, not certified"
        return (
            f"upper level {self.start:.4g} -> {self.upper:.4g} in {len(self.history)} steps and "
            f"{self.products} products; f in [{self.low:.6g}, {self.high:.6g}] ({word}); stopped: "
            f"{STOPPED[self.stopped]}"
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types."""
        found = {k: v for k, v in vars(self).items() if k not in ("theta", "x", "history")}
        steps = [{**asdict(step), "decrease": step.decrease} for step in self.history]
        return {**found, "theta": self.theta.tolist(), "x": self.x.tolist(), "history": steps}

    def plot(self, ax: Any = None) -> Any:
        """Draw the upper level and the accuracy over the products; returns the matplotlib Axes.

        Args:
            ax: Where to draw; None makes a figure.

        Raises:
            InputError: matplotlib is not installed.
        """
        if ax is None:
            pyplot = require("matplotlib.pyplot", "plot")
            _, ax = pyplot.subplots(figsize=(5.6, 3.6), layout="constrained")
        products = [0, *(step.products for step in self.history)]
        (line,) = ax.plot(products, [self.start, *(step.upper for step in self.history)])
        ax.set_xlabel("products")
        ax.set_ylabel("upper level", color=line.get_color())
        beside = ax.twinx()
        accuracy = [step.accuracy for step in self.history]
        beside.semilogy(products[1:], accuracy, color="0.6", linestyle="--")
        beside.set_ylabel("accuracy of the lower solution (dashed)")
        return ax
