"""Batches, and the mean loss over them: every sample counts the same, whatever its batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from flatminima.errors import InputError
from flatminima.objectives import Batch, Objective

Batches: TypeAlias = Iterable[Batch]
"""Batches that can be gone through again and again: a list, a DataLoader."""


def sample_count(batch: Batch) -> int:
    """How many samples a batch has: the length of its targets, else of its first tensor.

    Raises:
        InputError: it has no tensor with a sample dimension, or no sample.
    """
    if isinstance(batch, Mapping) and isinstance(batch.get("targets"), Tensor):
        counted = batch["targets"]
    elif isinstance(batch, (tuple, list)) and len(batch) > 1 and isinstance(batch[-1], Tensor):
        counted = batch[-1]
    else:
        counted = _first_tensor(batch)
    if counted is None or counted.ndim == 0:
        raise InputError(
            f"cannot count the samples of a batch ({type(batch).__name__}): "
            "give (inputs, targets) or a mapping with 'targets', tensors with samples first"
        )
    if len(counted) == 0:
        raise InputError("a batch has no samples: leave empty batches out")
    return len(counted)


def weighted(batches: Batches, device: torch.device) -> Iterator[tuple[Batch, int]]:
    """Each batch, moved to `device`, with its number of samples.

    Raises:
        InputError: `batches` cannot be gone through again, or is empty.
    """
    if not isinstance(batches, Iterable):
        raise InputError(f"batches is a {type(batches).__name__}: give a list or a DataLoader")
    if isinstance(batches, Iterator):
        raise InputError(
            f"batches is a {type(batches).__name__}, which can be read only once: "
            "give a list or a DataLoader"
        )
    empty = True
    for batch in batches:
        empty = False
        yield to_device(batch, device), sample_count(batch)
    if empty:
        raise InputError("batches is empty: give at least one batch")


def scalar_loss(model: nn.Module, objective: Objective, batch: Batch) -> Tensor:
    """The loss of one batch.

    Raises:
        InputError: the objective does not return a scalar tensor.
    """
    loss = objective(model, batch)
    if not isinstance(loss, Tensor) or loss.ndim != 0:
        got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise InputError(
            f"the objective returned {got}, not a scalar tensor: "
            "return the mean over the samples of the batch"
        )
    return loss


class MeanLoss:
    """The mean of batch losses, each counting as often as it has samples.

    The losses stay on their device until `value`, which synchronizes once.

    Args:
        mend: What to do about a loss that is not finite.
    """

    def __init__(self, mend: str = "mend the data or the model") -> None:
        self._mend = mend
        self._losses: list[Tensor] = []
        self._counts: list[int] = []

    def add(self, loss: Tensor, count: int) -> None:
        """Take in the mean loss, or the mean losses in several places, of `count` samples."""
        self._losses.append(loss.detach())
        self._counts.append(count)

    @property
    def samples(self) -> int:
        """How many samples were seen."""
        return sum(self._counts)

    def value(self, *, finite: bool = True) -> Tensor:
        """The mean over all samples, float64 on the CPU, of the shape of one loss.

        Args:
            finite: Whether to refuse a loss that is not finite.

        Raises:
            InputError: a batch's loss is not finite.
        """
        losses = torch.stack(self._losses).cpu().double()
        bad = (~losses.isfinite()).nonzero()
        if len(bad) and finite:
            first = tuple(bad[0].tolist())
            raise InputError(
                f"the loss of batch {first[0]} (counting from 0) is {losses[first].item()}: "
                f"{self._mend}"
            )
        counts = torch.tensor(self._counts, dtype=torch.float64)
        return counts / counts.sum() @ losses


class Contents:
    """What the batches of a pass held: sum and squared norm of each one's first tensor, added up.

    The order of samples does not count, so a shuffled loader has the same contents each time.
    """

    def __init__(self) -> None:
        self._total: Tensor | None = None
        self._elements = 0

    def add(self, batch: Batch) -> None:
        """Take in a batch."""
        tensor = _first_tensor(batch)
        if tensor is None or tensor.layout != torch.strided or tensor.is_complex():
            return
        tensor = tensor.detach().flatten()
        values = tensor.cpu().double() if tensor.device.type == "mps" else tensor.double()
        found = torch.stack([values.sum(), values @ values])
        self._total = found if self._total is None else self._total.to(found.device) + found
        self._elements += len(values)

    def differ(self, other: Contents) -> bool:
        """Whether the other pass held other numbers; NaN is like NaN."""
        if self._total is None or other._total is None or self._elements != other._elements:
            return self._elements != other._elements
        a, b = self._total.cpu(), other._total.cpu()
        if a.isnan().any() or b.isnan().any():
            return False
        scale = torch.stack([(a[1] * self._elements).sqrt(), a[1]])
        return bool(((a - b).abs() > 1e-7 * scale).any())


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on `device`; on a CPU the batch itself."""
    if device.type == "cpu":
        return batch
    if hasattr(batch, "to"):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: to_device(part, device) for key, part in batch.items()}
    if isinstance(batch, (tuple, list)):
        parts = [to_device(part, device) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    return batch


def _first_tensor(part: Any) -> Tensor | None:
    if isinstance(part, Tensor):
        return part
    parts: Iterable[Any] = ()
    if isinstance(part, Mapping):
        parts = part.values()
    elif isinstance(part, (tuple, list)):
        parts = part
    return next((found for inner in parts if (found := _first_tensor(inner)) is not None), None)
