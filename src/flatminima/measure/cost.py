"""What a measurement costs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypedDict

import torch

if TYPE_CHECKING:
    from flatminima.measure.operators import Operator


class Cost(TypedDict):
    """The fields of a `Result` that say what it cost."""

    gradients: int
    hvps: int
    seconds: float
    peak_bytes: int | None
    dtype: str


class Meter:
    """Counts from its creation on.

    On CUDA it resets torch's peak memory statistics of the device.

    Args:
        device: Where the measurement runs.
        dtype: The type it computes in.
        operator: The operator whose products are counted.
    """

    def __init__(
        self, device: torch.device, dtype: torch.dtype, operator: Operator | None = None
    ) -> None:
        self._device, self._dtype, self._operator = device, dtype, operator
        self._gradients = operator.gradients if operator else 0
        self._hvps = operator.hvps if operator else 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self._start = time.perf_counter()

    def read(self) -> Cost:
        """The cost so far."""
        peak = None
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            peak = torch.cuda.max_memory_allocated(self._device)
        return Cost(
            gradients=self._operator.gradients - self._gradients if self._operator else 0,
            hvps=self._operator.hvps - self._hvps if self._operator else 0,
            seconds=time.perf_counter() - self._start,
            peak_bytes=peak,
            dtype=str(self._dtype).removeprefix("torch."),
        )
