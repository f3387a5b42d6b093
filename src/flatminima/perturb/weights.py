"""The weights while passes run: where they are, and the way home."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from flatminima.perturb.drawing import Draw, add_all
from flatminima.perturb.resolution import Resolution
from flatminima.perturb.shards import is_sharded, local, sums

TOGETHER = 1 << 20
"""Numbers from which on a tensor is moved by itself. Smaller ones are moved together: on a GPU a
launch costs more than they do."""

TINY = torch.finfo(torch.float32).tiny
"""Keeps a division by a norm finite where all gradients are 0."""


@dataclass(frozen=True)
class Slot:
    """One parameter that a method may move.

    Attributes:
        tensor: The parameter, moved in place.
        strength: Its group's sigma or rho at this step, never 0.
        tensor_id: Addresses its noise stream.
        gradient_scale: What a `GradScaler` multiplied the loss by, where the optimizer knows it.
        memory: What the method remembers of it from step to step, by name. A move replaces tensors
            in it and never writes into them: they count only once the step is taken.
    """

    tensor: Tensor
    strength: float
    tensor_id: int
    gradient_scale: float = 1.0
    memory: dict[str, Tensor] = field(default_factory=dict)

    @property
    def gradient(self) -> Tensor | None:
        """The gradient of the pass that ran last, unscaled, float32 at least."""
        gradient = self.tensor.grad
        if gradient is None:
            return None
        gradient = gradient.detach().to(torch.promote_types(gradient.dtype, torch.float32))
        return gradient if self.gradient_scale == 1 else gradient / self.gradient_scale

    def keep_gradient(self) -> Tensor | None:
        """The gradient, to be held over the next pass.

        A view is copied: DistributedDataParallel writes the next gradient into the same bucket.
        """
        own = self.tensor.grad
        gradient = self.gradient
        return (
            gradient.clone()
            if own is not None and own._is_view() and gradient is not None
            else gradient
        )

    def replace_gradient(self, gradient: Tensor) -> None:
        """Let a gradient like `gradient` count instead, scaled as the one that was there."""
        assert self.tensor.grad is not None
        self.tensor.grad = (gradient * self.gradient_scale).to(self.tensor.grad.dtype)


class Spare:
    """The memory of the copy of W between steps, on a CPU.

    There freed memory goes back to the system, which hands it out anew page by page: for a network
    of 11 M weights 25 000 page faults a step, which cost half as much as drawing its noise. A GPU's
    allocator keeps what it has, so there nothing is held. It is no state: copies of it are empty.
    """

    def __init__(self) -> None:
        self._held: list[Tensor] = []

    def take(self, like: list[Tensor]) -> list[Tensor]:
        """Tensors of those shapes, whatever is in them."""
        held, self._held = self._held, []
        if list(map(_form, held)) == list(map(_form, like)):
            return held
        return [torch.empty_like(tensor) for tensor in like]

    def give(self, tensors: list[Tensor]) -> None:
        """Hold them for the next step."""
        if all(tensor.device.type == "cpu" for tensor in tensors):
            self._held = tensors

    def __reduce__(self) -> tuple[type[Spare], tuple[()]]:
        return Spare, ()


def _form(tensor: Tensor) -> tuple[object, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


class Weights:
    """The parameters that may be moved, W where they are at home.

    W is copied at the first move, and at `restore` brought back bit for bit; the copy is the one
    weight-sized buffer of the engine.

    Args:
        slots: The parameters, with their strengths. Those of strength 0 are left out.
        resolution: Told of each displacement, where it matters how it was rounded.
        spare: Where the copy's memory comes from and goes to.
    """

    def __init__(
        self,
        slots: list[Slot],
        resolution: Resolution | None = None,
        spare: Spare | None = None,
    ) -> None:
        self.slots = slots
        self.resolution = resolution
        self._spare = spare or Spare()
        self._tensors = [local(slot.tensor) for slot in slots]
        self._home: list[Tensor] | None = None

    @torch.no_grad()
    def displace(self, offsets: Iterable[Tensor | None]) -> None:
        """Put each weight at W + offset, offsets in the order of `slots`; None stays at W.

        The offsets are consumed a few at a time, so a generator of them needs the memory of one
        that is large, and of `TOGETHER` numbers of those that are small.
        """
        waiting: list[tuple[Tensor, Tensor]] = []
        numbers = 0
        for tensor, home, offset in zip(self._tensors, self._start(), offsets, strict=True):
            if offset is None:
                continue
            if self.resolution is not None or offset.layout is not torch.strided:
                tensor.add_(local(offset))
                if self.resolution is not None:
                    self.resolution.look(home, tensor, local(offset))
                continue
            waiting.append((tensor, local(offset)))
            numbers += tensor.numel()
            if numbers >= TOGETHER:
                _add(waiting)
                waiting, numbers = [], 0
        _add(waiting)
        torch.clear_autocast_cache()  # it holds low-precision copies of the weights as they were

    @torch.no_grad()
    def shake(self, draws: Sequence[Draw | None]) -> None:
        """Put each weight at W + noise, drawn as it is added; None stays at W.

        Only where `drawing.in_pieces` holds for all, and nothing is to be told of displacements.
        """
        self._start()
        add_all(self._tensors, draws)
        torch.clear_autocast_cache()

    def _start(self) -> list[Tensor]:
        """Be at W, of which there is a copy."""
        if self._home is None:
            self._home = self._spare.take(self._tensors)
            torch._foreach_copy_(self._home, self._tensors)
        else:
            torch._foreach_copy_(self._tensors, self._home)
        return self._home

    @torch.no_grad()
    def reflect(self) -> None:
        """Mirror the weights at W: from W + U to W - U, where U is the displacement as rounded.

        W - U = 2 W - (W + U) needs neither a second draw nor a copy of U, and mirrors the
        displacement that the floating-point weights really made.
        """
        self._mirror()  # a plan names this very function, past what a subclass makes of it

    def _mirror(self) -> None:
        if self._home is None:
            return
        torch._foreach_neg_(self._tensors)
        torch._foreach_add_(self._tensors, self._home, alpha=2)
        torch.clear_autocast_cache()

    @torch.no_grad()
    def restore(self) -> None:
        """Bring the weights back to W, bit for bit."""
        if self._home is not None:
            torch._foreach_copy_(self._tensors, self._home)
            torch.clear_autocast_cache()
            self._spare.give(self._home)
            self._home = None

    def positions(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Where each weight is, and its W, in the order of `slots`; of sharded ones this part."""
        return zip(self._tensors, self._home or self._tensors, strict=True)

    @property
    def away(self) -> bool:
        """Whether the weights have left W."""
        return self._home is not None


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


def _add(pairs: list[tuple[Tensor, Tensor]]) -> None:
    """Add to the first of each pair the second, in place."""
    if pairs:
        tensors, offsets = zip(*pairs, strict=True)
        torch._foreach_add_(tensors, offsets)


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
