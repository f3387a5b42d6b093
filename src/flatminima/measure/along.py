"""How gradients slope along the displacement of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors

from flatminima.perturb.shards import local
from flatminima.perturb.weights import Slot, Weights

Terms: TypeAlias = list[tuple[float, Tensor | float]]
"""A sum of scalars on their device, each with its factor: added up when somebody wants the number,
since on a small model one addition costs as much as the dot product."""

FINE = (torch.float32, torch.float64)
"""Types in which dot products are good enough as they are."""

SMALL, TOGETHER = 2**12, 16
"""Tensors of so few numbers are laid end to end, since a call costs more than a copy; and so many
of them at most, since memory that does not fit a cache costs more than a call."""


def scaled(terms: Terms, factor: float) -> Terms:
    """A sum times a number."""
    return [(factor * own, scalar) for own, scalar in terms]


class Displacement:
    """Where the weights are while a pass runs: U.

    Small tensors of it are kept for the next pass, which may be its mirror image; large ones are
    made when they are needed, in the memory of one.

    Attributes:
        mirrors: Whether weights that are mirrored at W are displaced by -U, up to little rounding.

    Args:
        weights: Away from W, and to be so whenever `along_gradients` is called. Both want
            `torch.no_grad`.
    """

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._sign = 1.0
        self._kept: list[_Kept] = []
        self._single: list[int] = []
        self.mirrors = True
        gathered: dict[tuple[torch.device, torch.dtype, float], list[list[int]]] = {}
        positions = list(weights.positions())
        for index, (moved, _) in enumerate(positions):
            dtype = moved.dtype
            if dtype not in FINE:
                self.mirrors = False
            elif moved.numel() <= SMALL:
                kind = moved.device, dtype, _factor(weights.slots[index])
                parts = gathered.setdefault(kind, [[]])
                if len(parts[-1]) == TOGETHER:
                    parts.append([])
                parts[-1].append(index)
                continue
            self._single.append(index)
        for (_, _, factor), parts in gathered.items():
            for part in parts:
                there, home = zip(*(positions[i] for i in part), strict=True)
                self._kept.append(_Kept(part, factor, _end_to_end(there) - _end_to_end(home)))

    def mirror(self) -> None:
        """The weights went from W + U to W - U; only where `mirrors`."""
        self._sign = -self._sign

    def along_gradients(self) -> Terms:
        """U'g / sigma^2 over all parameters, g what is in `.grad`, unscaled.

        Cost: one difference and one dot product.
        """
        found: Terms = []
        slots = self._weights.slots
        single = self._single
        for kept in self._kept:
            gradients = [slots[i].tensor.grad for i in kept.indices]
            dense = [local(g) for g in gradients if g is not None and _plain(g, kept.offset.dtype)]
            if len(dense) == len(gradients):
                dot = torch.dot(kept.offset, _end_to_end(dense))
                found.append((self._sign * kept.factor, dot))
            else:
                single = [*single, *kept.indices]
        if single:
            positions = list(self._weights.positions())
            for index in single:
                gradient = slots[index].tensor.grad
                if gradient is not None:
                    dot = _dot(*positions[index], local(gradient))
                    found.append((_factor(slots[index]), dot))
        return found


@dataclass
class _Kept:
    """Small tensors of U end to end, with what their slopes are multiplied by."""

    indices: list[int]
    factor: float
    offset: Tensor


def _dot(moved: Tensor, home: Tensor, gradient: Tensor) -> Tensor:
    if _plain(gradient, moved.dtype):
        return torch.dot((moved - home).flatten(), gradient.flatten())
    product = ((moved - home) * gradient.to_dense().conj()).real
    return product.sum(dtype=torch.promote_types(product.dtype, torch.float32))


def _end_to_end(tensors: Sequence[Tensor]) -> Tensor:
    flat: Tensor = _flatten_dense_tensors(tensors)  # type: ignore[no-untyped-call]
    return flat


def _plain(gradient: Tensor, dtype: torch.dtype) -> bool:
    """Whether the dot product with a tensor of that type is good enough."""
    return gradient.dtype == dtype and dtype in FINE and gradient.layout is torch.strided


def _factor(slot: Slot) -> float:
    return 1 / (slot.gradient_scale * slot.strength**2)
