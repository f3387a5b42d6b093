"""Cutting a batch into the shares that the passes of a step work on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from flatminima.errors import InputError

Share = tuple[int, int]
"""(i, n): the i-th of n nearly equal parts of a batch, in order."""

WHOLE: Share = (0, 1)


def sample_count(batch: Any) -> int:
    """How many samples a batch holds: the first dimension of the first tensor found in it.

    Args:
        batch: A tensor, or a mapping, tuple or list of batches.

    Raises:
        InputError: there is no tensor with a first dimension in it.
    """
    count = _count(batch)
    if count == 0:
        raise InputError("passes() was given an empty batch: leave it out")
    if count is None:
        raise InputError(
            f"cannot cut a {type(batch).__name__} into parts: passes() takes tensors, or mappings, "
            "tuples and lists of them, whose first dimension counts the samples"
        )
    return count


def _count(batch: Any) -> int | None:
    if isinstance(batch, Tensor):
        return batch.shape[0] if batch.dim() else None
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    if isinstance(batch, (tuple, list)):
        return next((count for part in batch if (count := _count(part)) is not None), None)
    return None


def bounds(share: Share, samples: int) -> tuple[int, int]:
    """First and one past the last sample of a share."""
    part, parts = share
    return part * samples // parts, (part + 1) * samples // parts


def fraction(share: Share, samples: int | None) -> float:
    """The part of the batch's samples that a share holds."""
    if share == WHOLE or samples is None:
        return 1.0
    start, stop = bounds(share, samples)
    return (stop - start) / samples


def cut(batch: Any, start: int, stop: int, samples: int) -> Any:
    """The samples [start, stop) of a batch; what does not count the samples is kept whole.

    A list with one entry for each sample (names; dictionaries of boxes) is cut too.
    """
    if isinstance(batch, Tensor):
        return batch[start:stop] if batch.dim() and batch.shape[0] == samples else batch
    if isinstance(batch, Mapping):
        return {key: cut(value, start, stop, samples) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(cut(part, start, stop, samples) for part in batch))
    if isinstance(batch, list) and _by_sample(batch, samples):
        return batch[start:stop]
    if isinstance(batch, (tuple, list)):
        parts = [cut(part, start, stop, samples) for part in batch]
        return tuple(parts) if isinstance(batch, tuple) else parts
    return batch


def _by_sample(batch: list[Any], samples: int) -> bool:
    """Whether a list holds samples, rather than tensors that each hold all of them."""
    if len(batch) != samples:
        return False
    return all(isinstance(part, Mapping) for part in batch) or not any(
        _holds(part, samples) for part in batch
    )


def _holds(part: Any, samples: int) -> bool:
    if isinstance(part, Tensor):
        return part.dim() > 0 and part.shape[0] == samples
    if isinstance(part, Mapping):
        part = list(part.values())
    return isinstance(part, (tuple, list)) and (
        len(part) == samples or any(_holds(inner, samples) for inner in part)
    )
