"""What a report may cost, and how its parts share it."""

from __future__ import annotations

import time
from typing import Any

from flatminima.errors import InputError
from flatminima.measure.operators import Operator

LEAST_GRADIENTS = 60
"""The smallest budget with which each part says anything."""

HVP = 2.1
"""What a Hessian-vector product costs, in gradients, with its part of the gradient of a block."""

FORWARD = 1 / 3
"""What a forward pass costs, in gradients."""


class Budget:
    """Seconds, and gradients over all batches, of which each part takes a share of what is left.

    Args:
        operator: The operator whose products are counted.
        max_seconds: Of wall time, or None.
        max_gradients: Of gradients, or None.

    Attributes:
        short: Whether less could be had than was asked for.

    Raises:
        InputError: max_seconds not above 0; max_gradients too few to measure anything.
    """

    def __init__(
        self, operator: Operator, max_seconds: float | None, max_gradients: int | None
    ) -> None:
        if max_seconds is not None and not max_seconds > 0:
            raise InputError(f"max_seconds is {max_seconds}: give a number above 0, such as 60")
        if max_gradients is not None and max_gradients < LEAST_GRADIENTS:
            raise InputError(f"max_gradients is {max_gradients}: give at least {LEAST_GRADIENTS}")
        self._operator, self._seconds, self._gradients = operator, max_seconds, max_gradients
        self._start = time.perf_counter()
        self._forwards = 0
        self._fewer = self.short = False

    def seconds(self, share: float = 1.0) -> float | None:
        """A share of the seconds left; None without a limit."""
        if self._seconds is None:
            return None
        return max(1e-3, share * (self._seconds - self._elapsed()))

    def products(self, wanted: int, share: float = 1.0) -> int:
        """How many of the wanted products a share of the gradients left allows, 2 at least."""
        self._fewer = False
        if self._gradients is None:
            return wanted
        allowed = max(2, int(share * (self._gradients - self._spent()) / HVP))
        self._fewer = allowed < wanted
        return min(wanted, allowed)

    def draws(self, wanted: int, places: int, share: float) -> int:
        """How many of the wanted draws, each of `places` forward passes, shares of both allow."""
        forwards = float("inf")
        if self._gradients is not None:
            forwards = share * (self._gradients - self._spent()) / FORWARD
        if (left := self.seconds(share)) is not None:
            pace = self._elapsed() / max(self._spent(), 1.0) * FORWARD
            forwards = min(forwards, left / pace)
        allowed = wanted if forwards > wanted * places else max(2, int((forwards - 1) / places))
        self._fewer, self.short = False, self.short or allowed < wanted
        self._forwards += allowed * places + 1
        return allowed

    def verdict(self, part: Any) -> str:
        """ "interrupted", "budget" or "done": whether all that was wanted so far could be had.

        Args:
            part: The last part; None if nothing was left for it.
        """
        if part is None:
            self.short = True
            return "budget"
        reason, exact = getattr(part, "stopped", ""), getattr(part, "stderr", None) == 0
        ran_out = self._fewer and reason in ("probes", "max_steps") and not exact
        self.short |= ran_out or reason == "max_seconds"
        return "interrupted" if reason == "interrupted" else "budget" if self.short else "done"

    def _elapsed(self) -> float:
        return time.perf_counter() - self._start

    def _spent(self) -> float:
        operator = self._operator
        return HVP * operator.hvps + FORWARD * self._forwards
