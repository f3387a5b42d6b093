"""Directions scaled to the weights they start from, so that pictures can be compared."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from flatminima.errors import InputError, unknown

NORMALIZATIONS = ("filter", "layer", "whole", "unit", "none")
BIASES = ("ignore", "scale")


@dataclass(frozen=True)
class Direction:
    """A direction in the space of the weights.

    Attributes:
        name: What it is, as a picture's axis says it: "random, seed 0".
        parts: A tensor for each parameter that moves, by the parameter's name.
        normalization: How its length was chosen; see `normalized`.
        biases: What became of tensors of one dimension; see `normalized`.
    """

    name: str
    parts: Mapping[str, Tensor] = field(repr=False, compare=False)
    normalization: str = "none"
    biases: str = "scale"

    @property
    def length(self) -> float:
        """Its Euclidean length, in the units of the weights."""
        return math.sqrt(inner(self, self))


def inner(one: Direction, other: Direction) -> float:
    """The inner product of two directions, computed in float64."""
    return sum(
        torch.dot(part.double().flatten(), other.parts[name].double().flatten()).item()
        for name, part in one.parts.items()
        if name in other.parts
    )


@torch.no_grad()
def normalized(
    direction: Direction,
    weights: Mapping[str, Tensor],
    normalization: str = "filter",
    biases: str = "ignore",
) -> Direction:
    r"""The direction with its length fitted to the weights.

    A network with ReLU or BatchNorm computes the same with weights of another scale, and a step of
    one length then means something else; only pictures with fitted directions can be compared.

    - "filter": each slice $d_{l,i}$ along a tensor's first dimension (a filter, or a unit's
      incoming weights) becomes $d_{l,i} \|w_{l,i}\| / \|d_{l,i}\|$;
    - "layer": each tensor becomes $d_l \|w_l\| / \|d_l\|$;
    - "whole": the direction becomes $d \|w\| / \|d\|$;
    - "unit": the direction becomes $d / \|d\|$, so that radii are distances;
    - "none": it stays as it is.

    Tensors of one dimension or none are biases and the scales and shifts of normalization layers.
    "ignore" makes the direction 0 there; "scale" treats each of them as one filter.

    Source: Li, Xu, Taylor, Studer, Goldstein, Visualizing the Loss Landscape of Neural Nets, 2018,
    arXiv 1712.09913 (with "filter" and "ignore").

    Args:
        direction: A new one is returned.
        weights: The weights it starts from, by name.
        normalization: One of `NORMALIZATIONS`.
        biases: One of `BIASES`.

    Raises:
        InputError: an unknown way; nothing is left of the direction.
    """
    if normalization not in NORMALIZATIONS:
        raise unknown("normalization", normalization, NORMALIZATIONS)
    if biases not in BIASES:
        raise unknown("treatment of biases", biases, BIASES)
    moving = {
        name: part
        for name, part in direction.parts.items()
        if biases == "scale" or weights[name].ndim > 1
    }
    if normalization == "filter":
        moving = {n: part * _ratio(weights[n], part, _filter(part)) for n, part in moving.items()}
    elif normalization == "layer":
        every = {name: tuple(range(part.ndim)) for name, part in moving.items()}
        moving = {n: part * _ratio(weights[n], part, every[n]) for n, part in moving.items()}
    elif normalization in ("whole", "unit"):
        length = _norm(moving)
        target = _norm({n: weights[n] for n in moving}) if normalization == "whole" else 1.0
        factor = target / length if length else 0.0
        moving = {name: part * factor for name, part in moving.items()}
    if not any(bool(part.any()) for part in moving.values()):
        raise InputError(
            f"nothing is left of the direction {direction.name!r} with normalization "
            f"{normalization!r} and biases {biases!r}: it is 0 in all tensors that may move"
        )
    return replace(direction, parts=moving, normalization=normalization, biases=biases)


def _filter(part: Tensor) -> tuple[int, ...]:
    return tuple(range(1, part.ndim)) if part.ndim > 1 else tuple(range(part.ndim))


def _ratio(weight: Tensor, part: Tensor, dims: tuple[int, ...]) -> Tensor:
    """||w|| / ||d|| over some dimensions, 0 where d is 0."""
    if not dims:
        return torch.where(part == 0, 0, weight.abs() / part.abs())
    lengths = [torch.linalg.vector_norm(t, dim=dims, keepdim=True) for t in (weight, part)]
    return torch.where(lengths[1] == 0, 0, lengths[0] / lengths[1])


def _norm(parts: Mapping[str, Tensor]) -> float:
    squares = [torch.linalg.vector_norm(p, dtype=torch.float64).square() for p in parts.values()]
    return torch.stack(squares).sum().sqrt().item() if squares else 0.0
