"""Gradients gathered over passes that count differently, and their norms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flatminima.perturb.shards import is_sharded, local, sums

TINY = torch.finfo(torch.float32).tiny
"""Keeps a division by a norm finite where all gradients are 0."""


class Gradients:
    """The `.grad` of the parameters while passes add to it.

    Passes count with different weights although each calls plain `backward()`, which adds. So
    `.grad` is kept in units of the running pass's weight w: scaled by (old w) / (new w) before a
    pass, and by w after the last. Nothing is scaled where all passes count 1, and powers of two
    (NSO with k = 1) scale exactly.

    Args:
        parameters: Every parameter of the optimizer.
    """

    def __init__(self, parameters: list[Tensor]) -> None:
        self._parameters = parameters
        self._unit = 1.0
        self._held: list[Tensor | None] | None = None
        self._seen: list[Tensor | None] = []
        self._versions: list[int | None] = []

    def count(self, weight: float) -> None:
        """From here on backward passes count `weight` times."""
        self._scale(self._unit / weight)
        self._unit = weight
        self.look()

    def look(self) -> None:
        """Remember what is in `.grad` now."""
        self._seen = [parameter.grad for parameter in self._parameters]
        self._versions = [None if grad is None else local(grad)._version for grad in self._seen]

    def grown(self) -> bool:
        """Whether `backward()` ran since `look`."""
        return any(
            parameter.grad is not None
            and (parameter.grad is not before or local(parameter.grad)._version != version)
            for parameter, before, version in zip(
                self._parameters, self._seen, self._versions, strict=True
            )
        )

    def kept(self) -> bool:
        """Whether what `count` found in `.grad` is still there: nobody emptied or replaced it."""
        return not any(
            _replaced(before, parameter.grad)
            for before, parameter in zip(self._seen, self._parameters, strict=True)
        )

    def settle(self) -> None:
        """Put `.grad` back in units of 1."""
        self._scale(self._unit)
        self._unit = 1.0

    def take(self) -> None:
        """Set aside what was gathered, for a pass that must start from an empty `.grad`.

        A view is copied: DistributedDataParallel writes the next gradient into the same bucket.
        """
        self._held = [
            grad.clone() if grad is not None and grad._is_view() else grad
            for grad in (parameter.grad for parameter in self._parameters)
        ]
        self.clear()

    def clear(self) -> None:
        """Empty `.grad`."""
        for parameter in self._parameters:
            parameter.grad = None

    def forget(self) -> None:
        """Drop what was gathered so far, set aside or not."""
        if self._held is not None:
            self._held = [None] * len(self._parameters)
        else:
            self.clear()

    @torch.no_grad()
    def put_back(self, *, add: bool) -> None:
        """Undo `take`: bring back what was set aside, adding `.grad` to it or dropping `.grad`."""
        if self._held is None:
            return
        for parameter, held in zip(self._parameters, self._held, strict=True):
            if held is not None:
                if add and parameter.grad is not None:
                    held.add_(parameter.grad)
                parameter.grad = held
            elif not add:
                parameter.grad = None
        self._held = None

    @torch.no_grad()
    def _scale(self, factor: float) -> None:
        gradients: list[Any] = [local(p.grad) for p in self._parameters if p.grad is not None]
        if factor != 1.0 and gradients:
            torch._foreach_mul_(gradients, factor)


def _replaced(before: Tensor | None, after: Tensor | None) -> bool:
    """Whether a gradient was lost, and not added to by `backward()`.

    That adds in place, but for sparse gradients, DistributedDataParallel's views of its buckets,
    and `create_graph=True`.
    """
    if before is None or after is before:
        return False
    if after is None:
        return True
    return not (before.is_sparse or before._is_view() or after._is_view() or after.requires_grad)


@torch.no_grad()
def global_norm(tensors: list[Tensor]) -> Tensor:
    """The Euclidean norm of all tensors together, float32 at least, on the first one's device.

    Of tensors sharded over processes it is that of the whole.
    """
    norms = [_norm(local(tensor)) for tensor in tensors]
    if any(map(is_sharded, tensors)):
        squares = [norm.double().square() for norm in norms]
        found = sums(zip(tensors, squares, strict=True))
        return torch.stack([square.to(found[0]) for square in found]).sum().sqrt().to(norms[0])
    total: Tensor = torch.linalg.vector_norm(torch.stack([norm.to(norms[0]) for norm in norms]))
    return total


def _norm(tensor: Tensor) -> Tensor:
    dense = tensor.coalesce().values() if tensor.is_sparse else tensor
    dtype = torch.promote_types(dense.dtype, torch.float32)
    norm: Tensor = torch.linalg.vector_norm(dense, dtype=dtype)
    return norm


@torch.no_grad()
def clip(gradients: list[Tensor], most: float) -> None:
    """Scale gradients in place so that their norm, over all of them, is at most `most`."""
    if gradients:
        norm = global_norm(gradients)
        factor = (most / (norm + 1e-6)).clamp(max=1.0)
        for gradient in map(local, gradients):
            gradient.mul_(factor.to(gradient.device))


@torch.no_grad()
def inner_product(ours: list[Tensor], theirs: list[Tensor]) -> Tensor:
    """The real inner product of two lists of tensors, float32 at least, on the first's device.

    Of tensors sharded over processes it is that of the whole.
    """
    # Elementwise, since an autocast region around the passes would do a dot product in 16 bits.
    products = [(local(a) * local(b).conj()).real.sum() for a, b in zip(ours, theirs, strict=True)]
    found = sums(zip(ours, products, strict=True))
    return torch.stack([product.to(products[0]) for product in found]).sum()
