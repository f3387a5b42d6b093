"""Where the weights are: what a closure says there, moves that may be taken back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flatminima.errors import InputError
from flatminima.optim.metric import Metric

if TYPE_CHECKING:
    from flatminima.measure.operators import Operator

ROUNDING = 10
"""Units in the last place of the loss that a step may seem to lose."""


@dataclass(frozen=True)
class Point:
    """What the closure says at some weights.

    Attributes:
        value: The loss, as the closure gave it.
        loss: The loss.
        slack: Its rounding error, roughly.
        gradient: Shape (n,).
        dual: The gradient in the metric's coordinates, shape (n,).
        norm: The gradient's dual norm.
    """

    value: Any
    loss: float
    slack: float
    gradient: Tensor
    dual: Tensor
    norm: float

    @property
    def finite(self) -> bool:
        """Whether loss and gradient are."""
        return math.isfinite(self.loss) and math.isfinite(self.norm)


@dataclass
class Trial:
    """Whether a move is kept; it is not, unless someone says so."""

    kept: bool = False


class Place:
    """The free parameters of an optimizer's group, as one vector.

    Args:
        group: With "params", and "param_names" where they were given.
        data_parallel: Whether losses and gradients are the mean over processes.

    Raises:
        InputError: no free parameter, or of a type or of types that one vector cannot hold.
    """

    def __init__(self, group: Mapping[str, Any], *, data_parallel: bool = False) -> None:
        names = group.get("param_names") or [None] * len(group["params"])
        pairs = zip(names, group["params"], strict=True)
        free = [(name, p) for name, p in pairs if p.requires_grad]
        self.names: list[str | None] = [name for name, _ in free]
        self.parameters: list[Tensor] = [p for _, p in free]
        self.sizes = [p.numel() for p in self.parameters]
        self.data_parallel = data_parallel
        kinds = {(p.dtype, p.device) for p in self.parameters}
        if not free:
            raise InputError("no parameter requires a gradient: requires_grad_(True) on some")
        if {dtype for dtype, _ in kinds} - {torch.float32, torch.float64}:
            raise InputError("the parameters must be float32 or float64: model.float()")
        if len(kinds) > 1:
            raise InputError("the parameters are of several dtypes or devices: bring them to one")

    def evaluate(self, closure: Callable[[], Any], metric: Metric) -> Point:
        """The loss and the gradient here.

        Raises:
            InputError: the closure gives no scalar, or no gradient.
        """
        with torch.enable_grad():
            value = closure()
        value = _scalar(value)
        gradients = [p.grad for p in self.parameters]
        if all(gradient is None for gradient in gradients):
            raise InputError("the closure left no gradient: call loss.backward() in it")
        pairs = zip(self.parameters, gradients, strict=True)
        parts = [torch.zeros_like(p) if g is None else g.to_dense() for p, g in pairs]
        gradient = torch.cat([part.detach().reshape(-1) for part in parts])
        if self.data_parallel:
            value, gradient = _mean_over_ranks(torch.as_tensor(value), gradient)
            for parameter, part in zip(self.parameters, self._parts(gradient), strict=True):
                parameter.grad = part.clone()
        dual = metric.dual(gradient[:, None])[:, 0]
        norm = torch.linalg.vector_norm(dual, dtype=torch.float64).item()
        coarse, loss = torch.finfo(gradient.dtype).eps, float(value)
        if isinstance(value, Tensor) and value.is_floating_point():
            coarse = max(coarse, torch.finfo(value.dtype).eps)
        return Point(value, loss, ROUNDING * coarse * abs(loss), gradient, dual, norm)

    @contextmanager
    def trial(self, step: Tensor, here: Point) -> Iterator[Trial]:
        """Move by `step` inside; afterwards, unless it is kept, nothing has happened.

        Args:
            step: Shape (n,).
            here: What was found before the move; its gradient is put back too.
        """
        saved = [p.detach().clone() for p in self.parameters]
        trial = Trial()
        try:
            with torch.no_grad():
                for parameter, part in zip(self.parameters, self._parts(step), strict=True):
                    parameter.add_(part.to(parameter.dtype))
            yield trial
        finally:
            if not trial.kept:
                with torch.no_grad():
                    for parameter, old in zip(self.parameters, saved, strict=True):
                        parameter.copy_(old)
                for parameter, part in zip(
                    self.parameters, self._parts(here.gradient), strict=True
                ):
                    parameter.grad = part.clone()

    def _parts(self, vector: Tensor) -> list[Tensor]:
        parts = torch.split(vector, self.sizes)
        return [part.view_as(p) for part, p in zip(parts, self.parameters, strict=True)]


def _mean_over_ranks(value: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and gradient by one all-reduce, so that all processes decide by the same numbers."""
    own = torch.cat([gradient, value.to(gradient).reshape(1)])
    torch.distributed.all_reduce(own)
    own /= torch.distributed.get_world_size()
    return own[-1].clone(), own[:-1]


def check_fit(operator: Operator, place: Place) -> None:
    """Refuse a curvature that is not in the coordinates of the free parameters.

    Raises:
        InputError: it is no operator, or of other parameters, or in another order.
    """
    if not hasattr(operator, "matmat"):
        raise InputError(
            f"curvature() gave a {type(operator).__name__}: return an operator, such as "
            "flatminima.GaussNewton(...) or flatminima.measure.Dense(matrix)"
        )
    sizes = [part.stop - part.start for part in operator.blocks.values()]
    mend = "make both of the same parameters, in the same order"
    if operator.shape[0] != sum(place.sizes) or (len(sizes) > 1 and sizes != place.sizes):
        raise InputError(
            f"the curvature has blocks of {_short(sizes)} coordinates and the free parameters "
            f"have {_short(place.sizes)}: {mend}"
        )
    if len(sizes) > 1 and None not in place.names and place.names != list(operator.blocks):
        raise InputError(
            f"the curvature is of {_short(list(operator.blocks))} and the optimizer of "
            f"{_short(place.names)}: {mend}"
        )


def _scalar(value: Any) -> Any:
    if isinstance(value, Tensor):
        if value.numel() == 1 and not value.is_complex():
            return value.detach()
        got = f"a tensor of shape {tuple(value.shape)}"
    elif isinstance(value, int | float):
        return value
    else:
        got = type(value).__name__
    raise InputError(f"the closure returned {got}: end it with `return loss`, a scalar")


def _short(items: list[Any]) -> str:
    return ", ".join(map(str, items[:6])) + (", ..." if len(items) > 6 else "")
