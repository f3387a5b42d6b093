"""Operators that are a mean over samples: batches outside, vectors inside."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from flatminima.errors import InputError
from flatminima.measure.batches import Batches, Contents, MeanLoss, weighted
from flatminima.measure.first_look import FirstLook, first_look
from flatminima.measure.memory import free_bytes, refuse
from flatminima.measure.precision import Precision
from flatminima.measure.ranks import Ranks, fingerprint
from flatminima.measure.seen import Seen, apart, changed, other_samples
from flatminima.measure.untouched import RandomState, free_parameters, untouched
from flatminima.objectives import Batch, Objective

EachBatch: TypeAlias = Callable[[int, Tensor], None]
"""`(samples, products) -> None`: the products, shape (n, m), with one batch's own matrix."""

NUMBERS = 5
"""What a rank tells the others at each product."""


class OverBatches(ABC):
    r"""$A = \frac1N \sum_b n_b A_b$, with $A_b$ the matrix of batch b's mean and $n_b$ its samples.

    Parameters are flattened and concatenated in the model's order. The batches are the outer loop
    and the vectors the inner one: a batch's graph is built once for all vectors of a call. The
    model runs in eval mode and is left as it was: weights, `.grad`, buffers, training flags and the
    global random state. An operator belongs to the weights it first met: make a new one after
    training on.

    Before the first product the first batch is looked at: whether its loss is a mean over samples,
    what is random in it, and whether a product fits in memory (see `first_look`). What is random
    through torch's global state is drawn once: each pass starts from the state of the first, so
    that dropout, left on by `eval_mode=False`, has the same masks in all products.

    A model of bfloat16 or float16 is computed in float32 meanwhile (see `Precision`).

    With `data_parallel=True` every rank of a `torchrun` gives its own part of the batches, the same
    weights and the same vectors. Its products are summed over the ranks by one all-reduce a call,
    and all ranks get the same ones, as one process would with all batches. Losses and sample counts
    travel in the same message, and so does a rank's failure, which then raises on all. What stops
    by the clock (`max_seconds`) may stop ranks at different times, and hang: leave it out.

    Args:
        model: The model, on one device; DistributedDataParallel is taken off.
        objective: `(model, batch) -> scalar`, the mean over the batch's samples.
        batches: Batches that can be gone through again and again: a list, a DataLoader. They are
            moved to the model's device.
        params: Which parameters: tensors, or names with wildcards ("encoder.*"); default: all that
            require a gradient.
        chunk: How many products run vectorized at once, at most; fewer where memory is short. More
            saves launches where kernels are small on a GPU, multiplies the memory of the backward
            pass, and gains nothing on a CPU.
        eval_mode: False leaves the training flags as they are. BatchNorm in training mode then
            makes the samples of a batch depend on each other.
        dtype: torch.float64 computes in double precision whatever the model; None in the model's
            own type, float32 at least.
        data_parallel: Whether `batches` are this rank's part.

    Raises:
        InputError: no parameter to measure, or of a wrong type (see `free_parameters`); chunk < 1;
            another dtype; data_parallel without a process group.
    """

    graph_times = 3.0
    """Memory of a product at least, as a multiple of what the forward pass keeps: 3.2 to 4.7 were
    measured on an MLP, a CNN and a transformer."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        batches: Batches,
        *,
        params: Iterable[Tensor] | Iterable[str] | str | None = None,
        chunk: int = 1,
        eval_mode: bool = True,
        dtype: torch.dtype | None = None,
        data_parallel: bool = False,
    ) -> None:
        if chunk < 1:
            raise InputError(f"chunk is {chunk}: give at least 1")
        if isinstance(model, DistributedDataParallel):
            model = model.module
        self._precision = Precision(model, objective, dtype)
        with self._precision.swapped():
            named = free_parameters(model, params)
            self._params = list(named.values())
            self.dtype, self.device = self._params[0].dtype, self._params[0].device
        self._model, self._objective, self._batches = model, objective, batches
        self._chunk, self._eval_mode = chunk, eval_mode
        self._ranks = Ranks() if data_parallel else None
        self._look: FirstLook | None = None
        self._start: RandomState | None = None
        self._own: Seen | None = None
        self._seen: Seen | None = None
        self._most_rows = 0
        blocks: dict[str, slice] = {}
        size = 0
        for name, parameter in named.items():
            blocks[name] = slice(size, size + parameter.numel())
            size += parameter.numel()
        self.shape = (size, size)
        self.blocks: Mapping[str, slice] = MappingProxyType(blocks)
        self.gradients = self.hvps = 0

    @property
    @abstractmethod
    def description(self) -> str:
        """Which matrix it is and how its products are made, in words."""

    @abstractmethod
    def _add_products(self, batch: Batch, count: int, rows: Tensor, products: Tensor) -> Tensor:
        """Add `count` times the products of one batch, as rows; returns its loss."""

    @property
    def loss(self) -> float | None:
        """The mean loss at the weights, known after the first product."""
        return None if self._seen is None else self._seen.loss

    @property
    def samples(self) -> int | None:
        """The number of samples, known after the first product."""
        return None if self._seen is None else self._seen.samples

    @property
    def ranks(self) -> Ranks | None:
        """The processes that share the products; None if there is only this one."""
        return self._ranks

    @property
    def remarks(self) -> str:
        """What the first look found that matters for the numbers, in words; mostly nothing."""
        return "" if self._look is None else self._look.remarks

    def matmat(self, vectors: Tensor, each: EachBatch | None = None) -> Tensor:
        """The products with the columns of `vectors`, shapes (n, m) -> (n, m).

        The transpose of a contiguous (m, n) tensor is read, and returned, without a copy.

        Args:
            vectors: Shape (n, m).
            each: Called after each batch of this process with the batch's own products, in a buffer
                that the next batch overwrites. It costs that buffer and nothing else.

        Raises:
            InputError: wrong shape; bad batches or a bad loss; the batches gave other samples or
                another loss than at the first product; a product does not fit in memory; another
                rank failed.
        """
        if vectors.ndim != 2 or vectors.shape[0] != self.shape[0]:
            raise InputError(
                f"the vectors have shape {tuple(vectors.shape)}: give ({self.shape[0]}, m)"
            )
        rows = vectors.detach().to(self.device, self.dtype).T.contiguous()
        room = 0 if self._ranks is None else self._ranks.room(NUMBERS)
        buffer = torch.zeros(rows.numel() + room, dtype=self.dtype, device=self.device)
        products = buffer[: rows.numel()].view_as(rows)
        failure: Exception | None = None
        try:
            seen = self._pass(rows, products, each)
        except Exception as error:
            if self._ranks is None:
                raise
            failure, seen = error, Seen(0.0, 0)
        if self._ranks is not None:
            seen = self._together(self._ranks, buffer, rows, seen, failure)
        if self._seen is None:
            self._seen = seen
        elif apart(self._seen, seen):
            raise changed(self._seen, seen, type(self).__name__)
        self.gradients += 1
        self.hvps += len(rows)
        return products.div_(seen.samples).T

    def _pass(self, rows: Tensor, products: Tensor, each: EachBatch | None) -> Seen:
        """Go through this process's batches, adding up what each one's samples contribute."""
        losses, contents = MeanLoss(), Contents()
        own = None if each is None else torch.empty_like(rows)
        with (
            self._precision.swapped(),
            untouched(self._model, self._objective, self.device, eval_mode=self._eval_mode),
            torch.enable_grad(),
        ):
            if self._start is None:
                self._start = RandomState(self.device)
            self._start.restore()
            for batch, count in weighted(self._batches, self.device):
                contents.add(batch)
                batch = self._precision.batch(batch)
                if not losses.samples:
                    self._fit(batch, count, len(rows), with_own=own is not None)
                if each is None or own is None:
                    losses.add(self._add_products(batch, count, rows, products), count)
                    continue
                losses.add(self._add_products(batch, 1, rows, own.zero_()), count)
                products.add_(own, alpha=count)
                each(count, own.T)
        seen = Seen(float(losses.value()), losses.samples, contents)
        if self._own is None:
            self._own = seen
        elif other_samples(self._own, seen):
            raise changed(self._own, seen, type(self).__name__)
        return seen

    def _fit(self, batch: Batch, count: int, rows: int, *, with_own: bool) -> None:
        """Look at the first batch, once, and refuse what does not fit in memory."""
        if rows <= self._most_rows and self._look is not None:
            return
        free = free_bytes(self.device)
        # The products, a batch's own ones, a gradient and a product that is being made.
        weight = self.shape[0] * self.dtype.itemsize
        vectors = weight * ((2 if with_own else 1) * rows + 2)
        most = math.inf if free is None else (free - vectors) / self.graph_times
        if self._look is None:
            limit = None if free is None else most
            look = first_look(self._model, self._objective, batch, count, self.device, limit)
        else:
            look = self._look
        if free is not None and (not look.whole or look.kept > most):
            raise refuse(
                look.kept, self.graph_times, vectors, free, self.device, more=not look.whole
            )
        self._look, self._most_rows = look, rows
        if free is not None and look.kept:
            self._chunk = min(self._chunk, 1 + int(self.graph_times * (most / look.kept - 1)))

    def _together(
        self, ranks: Ranks, buffer: Tensor, rows: Tensor, own: Seen, failure: Exception | None
    ) -> Seen:
        """Sum the products over the ranks; returns what all of them met."""
        weights = fingerprint(self._params) if self._seen is None else 0.0
        sums = rows.sum(dtype=torch.float64).item()
        numbers = (float(failure is not None), own.loss, float(own.samples), weights)
        finite = sums if math.isfinite(sums) else 0.0
        table = ranks.add_up(buffer, (*numbers, finite))
        if failure is not None:
            raise failure
        failed, losses, samples, weighed, summed = table.unbind(1)
        scale = torch.linalg.vector_norm(rows).item()
        ranks.check(failed, weighed, summed, scale)
        total = samples.sum()
        return Seen(float((losses * samples).sum() / total), int(total))

    def _split(self, rows: Tensor) -> list[Tensor]:
        """The rows, cut into one tensor of shape (m, *parameter.shape) for each parameter."""
        parts = zip(self._params, self.blocks.values(), strict=True)
        return [rows[:, where].reshape(-1, *parameter.shape) for parameter, where in parts]

    def _chunks(self, rows: int) -> list[slice]:
        """The rows that run at once."""
        return [slice(i, min(i + self._chunk, rows)) for i in range(0, rows, self._chunk)]

    def _add(self, parts: Iterable[Tensor | None], count: int, into: Tensor) -> None:
        """Add `count` times the parameters' parts, each (m, *shape), to the rows of `into`."""
        for part, where in zip(parts, self.blocks.values(), strict=True):
            if part is not None:
                dense = part if part.layout == torch.strided else part.to_dense()
                into[:, where].add_(dense.reshape(len(into), -1), alpha=count)
