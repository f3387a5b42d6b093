"""What a run of the solver comes back with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Solution:
    """Where the solver got to.

    Attributes:
        x: The variables, in the shape of the objective; numpy, or a tensor where data were tensors.
        value: F(x).
        steps: Blocks updated since the start.
        violation: The largest entry of the (proximal) gradient; 0 at a solution.
        converged: Whether that is within the tolerance.
        identified_at: The step since which the same variables are on bounds and kinks.
        values: F before each step of this run and after the last; empty if they were not asked for.
    """

    x: Any
    value: float
    steps: int
    violation: float
    converged: bool
    identified_at: int
    values: tuple[float, ...] = ()

    def __str__(self) -> str:
        done = "converged" if self.converged else "stopped"
        numbers = f"F = {self.value:.6g}, violation {self.violation:.2g}"
        return f"{done} after {self.steps} blocks: {numbers}"
