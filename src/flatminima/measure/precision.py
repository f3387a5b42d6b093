"""Measuring a model of 16 bits in 32, or any in 64."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from flatminima.errors import InputError
from flatminima.measure.batches import Batches
from flatminima.objectives import Batch, Objective

COARSE = (torch.bfloat16, torch.float16)
FINE = (torch.float32, torch.float64)


class Precision:
    """What a model is computed in while it is measured.

    Differences of gradients and second derivatives drown in the rounding of 16 bits, so a model
    with parameters of 16 bits is computed in float32: the function is that of its weights as they
    were rounded, evaluated without further rounding. Inside `swapped` every parameter and buffer is
    the same object with other data; on leaving, it has the data that it had, bit for bit.

    Args:
        model: The model.
        objective: Its parameters and buffers change too, or its criterion's, if they are modules.
        dtype: torch.float32 or torch.float64, to which all floating-point parameters and buffers
            are taken; None takes those of 16 bits to float32 and leaves the rest.

    Raises:
        InputError: another dtype.
    """

    def __init__(
        self, model: nn.Module, objective: Objective | None, dtype: torch.dtype | None = None
    ) -> None:
        if dtype not in (None, *FINE):
            raise InputError(f"dtype is {dtype}: give torch.float32 or torch.float64, or leave it")
        # Class weights are buffers of the criterion.
        parts = (model, objective, getattr(objective, "criterion", None))
        self._parts = [part for part in parts if isinstance(part, nn.Module)]
        self._from = COARSE if dtype is None else (*COARSE, *FINE)
        self._to = dtype or torch.float32
        coarse = any(parameter.dtype in COARSE for parameter in model.parameters())
        self.changes = dtype is not None or coarse

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Compute in the other type inside; it costs a copy of the weights in that type."""
        if not self.changes:
            yield
            return
        home: dict[Tensor, Tensor] = {}
        try:
            for part in self._parts:
                for tensor in (*part.parameters(), *part.buffers()):
                    if tensor not in home and self._other(tensor):
                        home[tensor] = tensor.data
                        tensor.data = tensor.data.to(self._to)
            yield
        finally:
            for tensor, data in home.items():
                tensor.data = data

    def batch(self, part: Batch) -> Batch:
        """The batch, its floating-point tensors in the type that the model is computed in."""
        if not self.changes:
            return part
        if isinstance(part, Tensor):
            return part.to(self._to) if self._other(part) else part
        if isinstance(part, Mapping):
            return {key: self.batch(inner) for key, inner in part.items()}
        if isinstance(part, (tuple, list)):
            parts = [self.batch(inner) for inner in part]
            return type(part)(*parts) if hasattr(part, "_fields") else type(part)(parts)
        return part

    def _other(self, tensor: Tensor) -> bool:
        return tensor.dtype in self._from and tensor.dtype != self._to


@contextmanager
def in_float32(
    model: nn.Module,
    objective: Objective | None,
    batches: Batches,
    dtype: torch.dtype | None = None,
) -> Iterator[Batches]:
    """Compute in float32 inside, for measures that refuse a model of 16 bits.

    `with in_float32(model, objective, batches) as fine: perturbation_gap(model, objective, fine)`.
    A model of float32 is left alone. `Hessian` and its kin do this by themselves.

    Args:
        model: The model. Its parameters stay the same objects, and have their data back bit for bit
            on leaving.
        objective: The objective; changed too, if it is a module.
        batches: The batches.
        dtype: torch.float64 computes everything in float64, a float32 model too.

    Yields:
        The batches, their floating-point tensors in the type that the model is computed in.

    Raises:
        InputError: a dtype other than float32 and float64.
    """
    precision = Precision(model, objective, dtype)
    with precision.swapped():
        readable = isinstance(batches, Iterable) and not isinstance(batches, Iterator)
        yield _Converted(batches, precision) if precision.changes and readable else batches


class _Converted:
    """Batches, each converted when it is read."""

    def __init__(self, batches: Batches, precision: Precision) -> None:
        self._batches, self._precision = batches, precision

    def __len__(self) -> int:
        return len(self._batches) if isinstance(self._batches, Sized) else 0

    def __iter__(self) -> Iterator[Batch]:
        return map(self._precision.batch, self._batches)
