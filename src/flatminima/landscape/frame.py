"""The line or plane that is looked at, and moving a model's weights over it and home again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn

from flatminima.errors import InputError
from flatminima.landscape.directions import check_same
from flatminima.landscape.normalization import Direction, inner

Point = tuple[float, ...]


@dataclass(frozen=True)
class Frame:
    """A line or plane in the space of the weights, with coordinates.

    Make one with `around` or `through`.

    Attributes:
        directions: One for each axis.
        corner: The tensors at the origin, by name; None for a model's own weights.
        corners: What is at the origin, at (1, 0) and at (0, 1), where that is checkpoints.
        centre: What is at the origin, in words.
    """

    directions: tuple[Direction, ...]
    corner: Mapping[str, Tensor] | None
    corners: tuple[str, ...]
    centre: str

    @property
    def gram(self) -> tuple[tuple[float, ...], ...]:
        """The inner products of the axes: squared lengths, and how far they are from orthogonal."""
        return tuple(tuple(inner(a, b) for b in self.directions) for a in self.directions)


def around(
    directions: Direction | Sequence[Direction], *, centre: str = "the model's weights"
) -> Frame:
    """The line or plane W + a d1 (+ b d2) about the weights W that the model will have.

    Args:
        directions: One or two, made for these weights.
        centre: What W is, in words, for captions.

    Raises:
        InputError: not one or two; two along one line.
    """
    given = (directions,) if isinstance(directions, Direction) else tuple(directions)
    frame = Frame(given, None, (), centre)
    _check(frame)
    return frame


@torch.no_grad()
def through(
    model: nn.Module,
    states: Mapping[str, Mapping[str, Tensor]],
) -> Frame:
    r"""The line through two checkpoints, or the plane through three.

    $W = (1 - a - b) A + a B + b C$ in all parameters, also frozen ones, and in all buffers of
    floating point (the running statistics of BatchNorm; see `batchnorm` of `loss_slice` for
    estimating them anew). At the checkpoints the sum is exact: they are met bit for bit.

    Source: Goodfellow, Vinyals, Saxe, 2015, arXiv 1412.6544 (lines); Garipov, Izmailov,
    Podoprikhin, Vetrov, Wilson, 2018, arXiv 1802.10026 (planes).

    Args:
        model: Of the checkpoints' architecture.
        states: Two or three state dicts, by the names that captions use.

    Raises:
        InputError: not two or three; another architecture; checkpoints that are the same or lie on
            one line.
    """
    if len(states) not in (2, 3):
        raise InputError(f"there are {len(states)} checkpoints: give two or three")
    tensors = moving_tensors(model)
    for name, state in states.items():
        check_same(tensors, state, name)
    (first, origin), *others = states.items()
    # Copies, since a state dict of the model itself would move with it.
    corner = {n: origin[n].detach().to(t).clone() for n, t in tensors.items()}
    directions = tuple(
        Direction(
            f"towards {name}", {n: state[n].detach().to(t).clone() for n, t in tensors.items()}
        )
        for name, state in others
    )
    frame = Frame(directions, corner, tuple(states), first)
    _check(frame)
    return frame


def moving_tensors(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and floating-point buffers of a model, by name."""
    buffers = {n: b for n, b in model.named_buffers() if b.is_floating_point()}
    return {**dict(model.named_parameters()), **buffers}


class Mover:
    """Moves the weights of a model over a frame, and brings them home bit for bit.

    Use as a context: leaving it, also by an exception, copies the weights back. No step is added to
    another: each point is computed from the origin, so nothing drifts.

    Args:
        model: The model.
        frame: The directions' tensors are brought to the model's device.

    Raises:
        InputError: the frame is of another model.
    """

    def __init__(self, model: nn.Module, frame: Frame) -> None:
        known = moving_tensors(model)
        names = list(frame.corner or dict.fromkeys(n for d in frame.directions for n in d.parts))
        for direction in frame.directions:
            check = {n: known[n] for n in direction.parts if n in known}
            missing = [n for n in direction.parts if n not in known]
            if missing:
                raise InputError(
                    f"the direction {direction.name!r} is of another model: this one has no "
                    f"{missing[0]!r}"
                )
            check_same(check, direction.parts, f"the direction {direction.name!r}")
        self._model = model
        self.names = names
        self._tensors = [known[n] for n in names]
        self._affine = frame.corner is not None
        self._axes = [
            [
                d.parts[n].to(t) if n in d.parts else torch.zeros_like(t)
                for n, t in zip(names, self._tensors, strict=True)
            ]
            for d in frame.directions
        ]
        self._corner = (
            None
            if frame.corner is None
            else [frame.corner[n].to(t) for n, t in zip(names, self._tensors, strict=True)]
        )
        self._home: list[Tensor] = []
        self._at: Point | None = None

    def coefficients(self, point: Point) -> tuple[float, ...]:
        """What the tensors of the origin and of each axis count at a point."""
        return (1 - sum(point) if self._affine else 1.0, *point)

    @property
    def basis(self) -> dict[str, Tensor]:
        """The tensors of the origin and of each axis, stacked, by name."""
        rows = [self._corner or self._home, *self._axes]
        return {n: torch.stack(parts) for n, *parts in zip(self.names, *rows, strict=True)}

    @torch.no_grad()
    def go(self, point: Point) -> None:
        """Put the weights at a point of the frame."""
        if point == self._at:
            return
        first, *rest = self.coefficients(point)
        self._at = None
        torch._foreach_copy_(self._tensors, self._corner or self._home)
        if first != 1.0:
            torch._foreach_mul_(self._tensors, first)
        for axis, factor in zip(self._axes, rest, strict=True):
            if factor:
                torch._foreach_add_(self._tensors, axis, alpha=factor)
        self._at = point

    @torch.no_grad()
    def __enter__(self) -> Self:
        self._home = [tensor.detach().clone() for tensor in self._tensors]
        self._tensors = [tensor.detach() for tensor in self._tensors]
        return self

    @torch.no_grad()
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        torch._foreach_copy_(self._tensors, self._home)
        self._at = None


def lengths(frame: Frame) -> tuple[tuple[float, ...], ...]:
    """The inner products of the axes in the units of the weights.

    An axis of a frame through checkpoints goes from the first to another one.
    """
    if frame.corner is None:
        return frame.gram
    corner = frame.corner
    steps = [
        Direction(d.name, {n: part - corner[n] for n, part in d.parts.items()})
        for d in frame.directions
    ]
    return tuple(tuple(inner(a, b) for b in steps) for a in steps)


def _check(frame: Frame) -> None:
    if len(frame.directions) not in (1, 2):
        raise InputError(f"there are {len(frame.directions)} directions: give one or two")
    gram = lengths(frame)
    for row, direction in zip(gram, frame.directions, strict=True):
        if not all(map(_finite, row)):
            raise InputError(f"the direction {direction.name!r} is not finite")
    for i, direction in enumerate(frame.directions):
        if gram[i][i] == 0:
            raise InputError(f"the direction {direction.name!r} is 0: there is nothing to see")
    if len(gram) == 2 and gram[0][1] ** 2 >= (1 - 1e-9) * gram[0][0] * gram[1][1]:
        raise InputError(
            f"{frame.directions[0].name!r} and {frame.directions[1].name!r} lie on one line: "
            "take another direction, or only one of them"
        )


def _finite(value: float) -> bool:
    return value - value == 0
