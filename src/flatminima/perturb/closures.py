"""What can be wrong with a closure, or with who calls it."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from flatminima.errors import InputError
from flatminima.perturb.weights import global_norm

SCALED = """a GradScaler drives this step(closure): it unscaled gradients before the closure makes \
them anew, so they would stay multiplied by its scale. Leave the closure out:

    for _ in optimizer.passes():
        scaler.scale(loss_fn(model(x), y)).backward()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()

(with accelerate: accelerator.backward in the loop, then optimizer.step()); or train in bfloat16, \
which needs no scaler."""

LEFT = """gradients were gathered before step(closure), outside its passes, and the closure does \
not zero them: they would be lost. Either let the closure call optimizer.zero_grad() first, or, to \
accumulate over micro-batches, run the passes of each and then step() without a closure:

    for x_, y_ in optimizer.passes(x, y):
        (loss_fn(model(x_), y_) / micro_batches).backward()

(in Lightning, instead of accumulate_grad_batches: manual optimization, with \
self.optimizers().optimizer.passes(x, y))."""

TWICE = """passes() has gathered the gradients of this step, and step(closure) was given a closure \
that returns a loss: use passes() and step(), or step(closure) alone"""


class Leftover:
    """Gradients that stand in `.grad` before the first call of a closure.

    A closure may empty `.grad` by its optimizer, by its model, or by hand. Whether it did is told
    by a gradient of zeros put in place of one that stood there: if it is still there, nobody did.

    Args:
        parameters: Those of the optimizer.
    """

    def __init__(self, parameters: list[Tensor]) -> None:
        found = [parameter for parameter in parameters if parameter.grad is not None]
        self._norm = global_norm([p.grad for p in found if p.grad is not None]) if found else None
        self._parameter = min(found, key=torch.numel, default=None)
        self._mark: Tensor | None = None

    def mark(self) -> None:
        """Put the zeros in place."""
        if self._parameter is not None:
            self._mark = self._parameter.grad = torch.zeros_like(self._parameter)

    def check(self) -> None:
        """Refuse a closure that left in `.grad` what it found there.

        Raises:
            InputError: it did, and there was something.
        """
        if self._parameter is None or self._mark is None:
            return
        if self._parameter.grad is self._mark and self._norm is not None and bool(self._norm != 0):
            raise InputError(LEFT)


def check_unscaled() -> None:
    """Refuse to run a closure inside `GradScaler.step`.

    torch refuses a closure by keyword only; accelerate hands it on by position.

    Raises:
        InputError: an enabled scaler is among the callers.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code is torch.amp.GradScaler.step.__code__:
            if frame.f_locals["self"].is_enabled():
                raise InputError(SCALED)
            return
        frame = frame.f_back  # type: ignore[assignment]


def check_loss(loss: Any) -> None:
    """Refuse what a closure returned, unless it is a scalar.

    Raises:
        InputError: it is none.
    """
    if loss is None:
        raise InputError("the closure returned None: end it with `return loss`")
    if isinstance(loss, Tensor) and loss.numel() != 1:
        raise InputError(
            f"the closure returned a tensor of shape {tuple(loss.shape)}: return the scalar loss, "
            "for instance loss.mean()"
        )
    if not isinstance(loss, (int, float, Tensor)):
        raise InputError(f"the closure returned {type(loss).__name__}: return the scalar loss")
