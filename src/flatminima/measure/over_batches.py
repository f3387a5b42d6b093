"""Operators that are a mean over samples: batches outside, vectors inside."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import TypeAlias

import torch
from torch import Tensor, nn

from flatminima.errors import InputError
from flatminima.measure.batches import Batches, MeanLoss, weighted
from flatminima.measure.untouched import free_parameters, untouched
from flatminima.objectives import Batch, Objective

EachBatch: TypeAlias = Callable[[int, Tensor], None]
"""`(samples, products) -> None`: the products, shape (n, m), with one batch's own matrix."""


_NO_SECOND_DERIVATIVE = re.compile(
    r"differentiate twice|double backward|double-backward|once_differentiable"
    r"|derivative for .* is not implemented|does not support higher order",
    re.IGNORECASE,
)


class OverBatches(ABC):
    r"""$A = \frac1N \sum_b n_b A_b$, with $A_b$ the matrix of batch b's mean and $n_b$ its samples.

    Parameters are flattened and concatenated in the model's order. The batches are the outer loop
    and the vectors the inner one: a batch's graph is built once for all vectors of a call. The
    model runs in eval mode and is left as it was: weights, `.grad`, buffers, training flags and the
    global random state. An operator belongs to the weights it first met: make a new one after
    training on.

    Args:
        model: The model, its parameters float32 or float64, on one device.
        objective: `(model, batch) -> scalar`, the mean over the batch's samples.
        batches: Batches that can be gone through again and again: a list, a DataLoader. They are
            moved to the model's device.
        params: Which parameters: tensors, or names with wildcards ("encoder.*"); default: all that
            require a gradient.
        chunk: How many products run vectorized at once. More saves launches where kernels are
            small on a GPU, multiplies the memory of the backward pass, and gains nothing on a CPU.
        eval_mode: False leaves the training flags as they are. BatchNorm in training mode then
            makes the samples of a batch depend on each other.

    Raises:
        InputError: no parameter to measure, or of a wrong type (see `free_parameters`); chunk < 1.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        batches: Batches,
        *,
        params: Iterable[Tensor] | Iterable[str] | str | None = None,
        chunk: int = 1,
        eval_mode: bool = True,
    ) -> None:
        if chunk < 1:
            raise InputError(f"chunk is {chunk}: give at least 1")
        named = free_parameters(model, params)
        self._model, self._objective, self._batches = model, objective, batches
        self._params, self._chunk, self._eval_mode = list(named.values()), chunk, eval_mode
        self._seen: MeanLoss | None = None
        blocks: dict[str, slice] = {}
        size = 0
        for name, parameter in named.items():
            blocks[name] = slice(size, size + parameter.numel())
            size += parameter.numel()
        self.shape = (size, size)
        self.blocks: Mapping[str, slice] = MappingProxyType(blocks)
        self.dtype, self.device = self._params[0].dtype, self._params[0].device
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
        return None if self._seen is None else float(self._seen.value())

    @property
    def samples(self) -> int | None:
        """The number of samples, known after the first product."""
        return None if self._seen is None else self._seen.samples

    def matmat(self, vectors: Tensor, each: EachBatch | None = None) -> Tensor:
        """The products with the columns of `vectors`, shapes (n, m) -> (n, m).

        The transpose of a contiguous (m, n) tensor is read, and returned, without a copy.

        Args:
            vectors: Shape (n, m).
            each: Called after each batch with the batch's own products, in a buffer that the next
                batch overwrites. It costs that buffer and nothing else.

        Raises:
            InputError: wrong shape; bad batches or a bad loss; the batches gave other samples or
                another loss than at the first product.
        """
        if vectors.ndim != 2 or vectors.shape[0] != self.shape[0]:
            raise InputError(
                f"the vectors have shape {tuple(vectors.shape)}: give ({self.shape[0]}, m)"
            )
        rows = vectors.detach().to(self.device, self.dtype).T.contiguous()
        products = torch.zeros_like(rows)
        own = None if each is None else torch.empty_like(rows)
        seen = MeanLoss()
        with (
            untouched(self._model, self._objective, self.device, eval_mode=self._eval_mode),
            torch.enable_grad(),
        ):
            for batch, count in weighted(self._batches, self.device):
                if each is None or own is None:
                    seen.add(self._add_products(batch, count, rows, products), count)
                    continue
                seen.add(self._add_products(batch, 1, rows, own.zero_()), count)
                products.add_(own, alpha=count)
                each(count, own.T)
        self._check_same(seen)
        self.gradients += 1
        self.hvps += len(rows)
        return products.div_(seen.samples).T

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
                into[:, where].add_(part.reshape(len(into), -1), alpha=count)

    def _check_same(self, seen: MeanLoss) -> None:
        """Refuse a pass that differs from the first: its products are of another matrix."""
        loss = float(seen.value())
        first = self._seen
        if first is None:
            self._seen = seen
            return
        before = float(first.value())
        if seen.samples != first.samples or abs(loss - before) > 1e-4 * abs(before) + 1e-6:
            raise InputError(
                f"the loss was {before:.6g} over {first.samples} samples and is now {loss:.6g} "
                f"over {seen.samples}: give batches that stay the same (no random augmentation), "
                f"and make a new {type(self).__name__} when the weights have moved"
            )


def rows_of_derivative(
    outputs: list[Tensor], inputs: list[Tensor], cotangents: list[Tensor], *, keep: bool
) -> tuple[Tensor | None, ...]:
    """The outputs' derivative in the inputs, transposed, times each row of the cotangents.

    Args:
        outputs: What is differentiated.
        inputs: In what.
        cotangents: For each output, shape (m, *output.shape).
        keep: Whether the graph is needed again.

    Returns:
        For each input, shape (m, *input.shape), or None where nothing depends on it.

    Raises:
        TwiceError: the outputs are derivatives, and of a function that has no second one.
    """
    batched = len(cotangents[0]) > 1
    try:
        found = torch.autograd.grad(
            outputs,
            inputs,
            cotangents if batched else [part[0] for part in cotangents],
            retain_graph=keep,
            allow_unused=True,
            is_grads_batched=batched,
        )
    except RuntimeError as error:
        if _NO_SECOND_DERIVATIVE.search(str(error)):
            raise TwiceError(str(error).splitlines()[0]) from error
        raise
    return found if batched else tuple(None if f is None else f[None] for f in found)


def check_twice(derivatives: Iterable[Tensor]) -> None:
    """Refuse derivatives that cannot be differentiated themselves.

    A custom function that is marked once_differentiable leaves an error in the graph, which torch
    passes over silently where it looks for the way to given inputs: the products would be wrong.

    Args:
        derivatives: What is to be differentiated again.

    Raises:
        TwiceError: there is such a function.
    """
    todo = [d.grad_fn for d in derivatives if d.grad_fn is not None]
    met = set(todo)
    while todo:
        node = todo.pop()
        if node.name().endswith("autograd::Error"):
            raise TwiceError("a custom function is marked once_differentiable")
        new = {parent for parent, _ in node.next_functions if parent is not None} - met
        met |= new
        todo += new


class TwiceError(InputError):
    """Torch cannot differentiate a gradient."""

    def __init__(self, reason: str, mend: str = "give Hessian(..., backend='differences')") -> None:
        super().__init__(f"torch has no second derivative here ({reason}): {mend}")
        self.reason = reason
