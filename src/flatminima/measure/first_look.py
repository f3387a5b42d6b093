"""What the first batch tells before the first product: whether its loss can be measured at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from flatminima.errors import InputError
from flatminima.measure.batches import scalar_loss, tensors_in
from flatminima.measure.memory import Full, SavedBytes
from flatminima.measure.untouched import RandomState
from flatminima.objectives import Batch, Objective

MOST_NAMED = 3
"""Modules named in a message."""


@dataclass(frozen=True)
class FirstLook:
    """What was found.

    Attributes:
        kept: What the forward pass keeps for the backward pass, in bytes.
        whole: Whether `kept` is all of it; otherwise the pass was stopped there.
        random: Whether torch's random state changes the loss.
        remarks: What the user should know of the loss, in words; empty if nothing.
    """

    kept: int
    whole: bool
    random: bool
    remarks: str


def first_look(
    model: nn.Module,
    objective: Objective,
    batch: Batch,
    count: int,
    device: torch.device,
    most_kept: float | None = None,
) -> FirstLook:
    """Evaluate the loss of one batch, and again, and see what changes.

    Twice is enough for most: on the batch, and on its two halves. Where the halves' mean is not the
    loss, or the batch cannot be cut, the batch is evaluated again with other random numbers, and if
    that changes the loss, with the same ones. A loss that is not finite is left for later.

    Cost: 2 to 4 forward passes on the batch.

    Args:
        model: The model.
        objective: The objective.
        batch: On the model's device.
        count: Its number of samples.
        device: Whose random state counts, besides the CPU's.
        most_kept: Stop when the forward pass keeps more bytes than that.

    Raises:
        InputError: the loss is a sum over samples; it changes though weights, batch and torch's
            random state are the same.
    """
    start = RandomState(device)
    try:
        saved = SavedBytes((*model.parameters(), *model.buffers()), most_kept)
        try:
            with saved:
                loss = scalar_loss(model, objective, batch).detach()
        except Full:
            return FirstLook(saved.bytes, False, False, "")
        except RuntimeError as error:
            # Where the objective uses torch.func, nothing can be counted.
            if "saved tensor hooks" not in str(error):
                raise
            start.restore()
            loss = scalar_loss(model, objective, batch).detach()
        random, uneven = False, False
        if loss.isfinite():
            random, uneven = _changes(model, objective, batch, count, loss, start)
        return FirstLook(saved.bytes, True, random, _remarks(model, random, uneven))
    finally:
        start.restore()


def _changes(
    model: nn.Module,
    objective: Objective,
    batch: Batch,
    count: int,
    loss: Tensor,
    start: RandomState,
) -> tuple[bool, bool]:
    """Whether other random numbers give another loss, and whether it is no mean over samples."""

    def again() -> Tensor:
        return scalar_loss(model, objective, batch).detach()

    halves = _halves(model, objective, batch, count)
    if halves is not None:
        sizes, losses = halves
        mean = sum(n / count * half for n, half in zip(sizes, losses, strict=True))
        if _same(loss, mean):
            return False, False
        if loss and _same(loss, losses[0] + losses[1]):
            raise InputError(
                f"the loss of the first batch, {loss.item():.6g}, is the sum of the losses of its "
                "halves, not their mean: return the mean over samples (reduction='mean')"
            )
    other = again()
    if _same(loss, other):
        return False, halves is not None
    start.restore()
    repeated = again()
    if not _same(loss, repeated):
        raise InputError(
            f"the loss of the first batch was {loss.item():.6g} and is now {repeated.item():.6g}, "
            "with the same weights, samples and random state of torch: take out of model and "
            "objective what is random by other generators, or remembers earlier calls"
            + _listed("; random are ", _droppers(model))
        )
    return True, False


def _halves(
    model: nn.Module, objective: Objective, batch: Batch, count: int
) -> tuple[list[int], list[Tensor]] | None:
    """The sizes and losses of a batch's halves; None where it cannot be cut."""
    sizes = [count // 2, count - count // 2]
    if count < 2 or not all(t.ndim and len(t) == count for t in tensors_in(batch)):
        return None
    try:
        parts = (slice(0, sizes[0]), slice(sizes[0], count))
        losses = [scalar_loss(model, objective, _cut(batch, part)).detach() for part in parts]
    except Exception:
        # Models of fixed batch size, batches of types unknown here: no reason not to measure.
        return None
    return sizes, losses


def _cut(part: Any, where: slice) -> Any:
    if isinstance(part, Tensor):
        return part[where]
    if isinstance(part, Mapping):
        return {key: _cut(inner, where) for key, inner in part.items()}
    if isinstance(part, (tuple, list)):
        inner = [_cut(one, where) for one in part]
        return type(part)(*inner) if hasattr(part, "_fields") else type(part)(inner)
    return part


def _same(a: Tensor, b: Tensor | float) -> bool:
    """Whether losses are equal but for rounding."""
    return bool((a - b).abs() <= 1e-5 * a.abs() + 1e-7)


def _remarks(model: nn.Module, random: bool, uneven: bool) -> str:
    """What is random, and what ties the samples of a batch together."""
    found = ""
    if random:
        found += "; one draw of what is random: "
        found += _listed("", _droppers(model)) or "no module known for it, so a function"
    coupled = _named(model, lambda m: isinstance(m, _NormBase) and m.training)
    if uneven and not coupled:
        found += "; a batch's loss is not the mean of its parts' (weighted, labels left out, or "
        found += "samples compared): results depend on the batches"
    return found + _listed("; each batch by its own statistics: ", coupled)


def _droppers(model: nn.Module) -> list[str]:
    """Modules in training mode that drop at random, as far as they are known."""

    def drops(module: nn.Module) -> bool:
        if not module.training or isinstance(module, nn.Sequential):
            return False
        if isinstance(module, (_DropoutNd, nn.RReLU)):
            return getattr(module, "p", 1) > 0
        rates = (v for k, v in vars(module).items() if "drop" in k and isinstance(v, float))
        return any(rate > 0 for rate in rates)

    return _named(model, drops)


def _named(model: nn.Module, holds: Callable[[nn.Module], bool]) -> list[str]:
    return [f"{type(m).__name__} {name!r}" for name, m in model.named_modules() if holds(m)]


def _listed(before: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return before + ", ".join(names[:MOST_NAMED]) + more
