"""Closures: called in each pass, and what can be wrong with one, or with who calls it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import closing
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from flatminima.errors import InputError
from flatminima.perturb.gradients import global_norm
from flatminima.perturb.plans import Pass, Watcher

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

UNKNOWN_SCALE = """a GradScaler scales the gradients, and {} must know by how much, since their \
size decides where it goes: build it with scaler=scaler"""

TWICE = """passes() has gathered the gradients of this step, and step(closure) was given a closure \
that returns a loss: use passes() and step(), or step(closure) alone"""


def call_in_each(
    passes: Generator[Pass, None, None],
    closure: Callable[[], Any],
    leftover: Leftover | None,
    watcher: Watcher | None = None,
) -> Any:
    """Call a closure once in each pass, and tell the watcher its losses.

    Returns:
        Its loss at W where a pass ran there, else the passes' weighted mean.

    Raises:
        InputError: it returned no scalar, or would lose gradients that were there before.
    """
    at_home: Any = None
    mean: Any = 0.0
    with closing(passes):
        for current in passes:
            if leftover is not None:
                leftover.mark()
            with torch.enable_grad():
                loss = closure()
            if leftover is not None:
                leftover.check()
                leftover = None
            check_loss(loss)
            loss = loss.detach() if isinstance(loss, Tensor) else loss
            if watcher is not None:
                watcher.returned(loss)
            if at_home is None and current.at_home:
                at_home = loss
            mean = mean + current.weight * loss
    return mean if at_home is None else at_home


def unscaled(scaler: torch.amp.GradScaler, base: Optimizer) -> bool:
    """Unscale a step's gradient, and say whether it is finite.

    `GradScaler.step` decides by its own record of overflows, and `update` asks that it was called;
    so it steps a stand-in for the base optimizer, which only notes that it would have stepped.
    """
    if not scaler.is_enabled():
        return True
    stand_in = _StandIn(base)
    scaler.step(stand_in)
    return stand_in.stepped


class _StandIn(Optimizer):
    """Has an optimizer's parameters, and steps nothing."""

    def __init__(self, base: Optimizer) -> None:
        super().__init__([p for group in base.param_groups for p in group["params"]], {})
        self.stepped = False

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Note that it was called."""
        self.stepped = True


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
    if driven_by_scaler():
        raise InputError(SCALED)


def driven_by_scaler() -> bool:
    """Whether an enabled `GradScaler.step` is among the callers."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is torch.amp.GradScaler.step.__code__:
            return bool(frame.f_locals["self"].is_enabled())
        frame = frame.f_back
    return False


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
