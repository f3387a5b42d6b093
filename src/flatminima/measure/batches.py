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
        counted = next(tensors_in(batch), None)
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
    """What the batches of a pass held: a few sums over the samples, for each tensor of a batch.

    The order of samples does not count, so a shuffled loader has the same contents each time. Which
    target goes with which input does.
    """

    def __init__(self) -> None:
        # By the number of tensors in a batch.
        self._sums: dict[int, Tensor] = {}
        self._elements: dict[int, list[int]] = {}

    def add(self, batch: Batch) -> None:
        """Take in a batch."""
        every = [t for t in tensors_in(batch) if t.layout == torch.strided and not t.is_complex()]
        if not every:
            return
        found, first = [], None
        for tensor in every:
            tensor = tensor.detach().reshape(len(tensor) if tensor.ndim else 1, -1)
            values = (tensor.cpu() if tensor.device.type == "mps" else tensor).double()
            # Weights without a pattern, so that rows of one sum are told apart.
            across = torch.arange(values.shape[1], device=values.device).double().cos()
            sample = values @ across
            first = sample if first is None else first.to(sample.device)
            paired = first @ sample if len(first) == len(sample) else sample.new_zeros(())
            found.append(torch.stack([values.sum(), values.square().sum(), sample.sum(), paired]))
        sums, key = torch.stack([part.to(found[0].device) for part in found]), len(every)
        sizes = [tensor.numel() for tensor in every]
        if key in self._sums:
            sums = self._sums[key].to(sums.device) + sums
            sizes = [a + b for a, b in zip(self._elements[key], sizes, strict=True)]
        self._sums[key], self._elements[key] = sums, sizes

    def differ(self, other: Contents) -> bool:
        """Whether the other pass held other numbers; NaN is like everything."""
        if self._elements != other._elements:
            return True
        for key, sums in self._sums.items():
            a, b = sums.cpu(), other._sums[key].cpu()
            squares = a[:, 1]
            most = (squares * torch.tensor(self._elements[key])).sqrt()
            scale = torch.stack([most, squares, most, (squares[0] * squares).sqrt()], 1)
            if ((a - b).abs() > 1e-7 * scale).any():
                return True
        return False


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


def tensors_in(part: Any) -> Iterator[Tensor]:
    """The tensors in mappings and sequences, in their order."""
    if isinstance(part, Tensor):
        yield part
    elif isinstance(part, Mapping):
        for inner in part.values():
            yield from tensors_in(inner)
    elif isinstance(part, (tuple, list)):
        for inner in part:
            yield from tensors_in(inner)
