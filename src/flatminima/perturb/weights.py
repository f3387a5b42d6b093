"""The weights while passes run: where they are, and the way home."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flatminima.perturb.drawing import Draw, add_all
from flatminima.perturb.resolution import Resolution
from flatminima.perturb.shards import local

TOGETHER = 1 << 20
"""Numbers from which on a tensor is moved by itself. Smaller ones are moved together: on a GPU a
launch costs more than they do."""


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


def _add(pairs: list[tuple[Tensor, Tensor]]) -> None:
    """Add to the first of each pair the second, in place."""
    if pairs:
        tensors, offsets = zip(*pairs, strict=True)
        torch._foreach_add_(tensors, offsets)
