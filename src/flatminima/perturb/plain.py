"""Plain training: one pass at W."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch.optim import Optimizer

from flatminima.cards import Card
from flatminima.errors import InputError
from flatminima.perturb.cards import register
from flatminima.perturb.engine import Perturbed
from flatminima.perturb.plans import Pass, Turn
from flatminima.perturb.wrapper import calls_closure


@register()
class Plain(Perturbed):
    """The base optimizer, unchanged: the gradient is that of f at W.

    It exists so that a comparison runs every method through one engine.

    Args:
        base: The optimizer that takes the steps. One that calls a closure itself (`GNS`, LBFGS) is
            handed that of `step`, and there are no passes.
        scaler: See `Perturbed`.
        max_grad_norm: See `Perturbed`.

    Raises:
        InputError: as `Perturbed`; a scaler or clipping for a base that takes gradients itself.
    """

    card = Card(
        name="plain",
        title="Plain training",
        equation="g(W)",
        gradients="1",
        buffers="0",
        strength="",
        suggested="",
        source="",
        aliases=("none",),
    )
    strength_name = "strength"
    takes_closures: ClassVar[bool] = True

    def __init__(
        self,
        base: Optimizer,
        *,
        scaler: torch.amp.GradScaler | None = None,
        max_grad_norm: float | None = None,
    ) -> None:
        super().__init__(base, strength=0.0, scaler=scaler, max_grad_norm=max_grad_norm)
        if calls_closure(base) and (scaler is not None or max_grad_norm is not None):
            raise InputError(
                f"{type(base).__name__} takes its gradients itself, so nothing can scale or clip "
                "them in between: leave scaler and max_grad_norm out"
            )

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step; see `Perturbed.step`. A base that calls a closure itself is given it."""
        if not calls_closure(self.base):
            return super().step(closure)
        if closure is None:
            raise InputError(f"{type(self.base).__name__} calls a closure: step(closure)")
        loss = self.base.step(closure)
        self._steps += 1
        return loss

    def plan(self, turn: Turn) -> list[Pass]:
        """One pass at W."""
        return [Pass()]
