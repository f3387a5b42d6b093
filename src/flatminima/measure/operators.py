"""Symmetric linear operators: the one interface between a model and the estimators."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from flatminima.errors import InputError
from flatminima.measure.batches import Batches, MeanLoss, scalar_loss, weighted
from flatminima.measure.untouched import free_parameters, untouched
from flatminima.objectives import Batch, Objective


class Operator(Protocol):
    """A symmetric n x n matrix known by its products.

    Attributes:
        shape: (n, n).
        dtype: Of the products.
        device: Of the products.
        blocks: Named slices of the n coordinates, which together make up the whole.
        gradients: Gradients computed so far, each over all batches.
        hvps: Products with a vector computed so far, each over all batches.
    """

    shape: tuple[int, int]
    dtype: torch.dtype
    device: torch.device
    blocks: Mapping[str, slice]
    gradients: int
    hvps: int

    def matmat(self, vectors: Tensor) -> Tensor:
        """The products with the columns of `vectors`, shapes (n, m) -> (n, m)."""
        ...


class Dense:
    """A symmetric matrix as an operator.

    Args:
        matrix: Shape (n, n), symmetric.
        blocks: Named slices of the coordinates. Default: one block, "all".

    Raises:
        InputError: the matrix is not square.
    """

    def __init__(self, matrix: Tensor, blocks: Mapping[str, slice] | None = None) -> None:
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise InputError(f"the matrix has shape {tuple(matrix.shape)}: give a square one")
        self.matrix = matrix
        self.shape = (len(matrix), len(matrix))
        self.dtype, self.device = matrix.dtype, matrix.device
        self.blocks: Mapping[str, slice] = blocks or {"all": slice(0, len(matrix))}
        self.gradients = self.hvps = 0

    def matmat(self, vectors: Tensor) -> Tensor:
        """The products with the columns of `vectors`, shapes (n, m) -> (n, m)."""
        self.hvps += vectors.shape[1]
        return self.matrix @ vectors


class Hessian:
    r"""The Hessian of the mean loss over all samples, in the model's parameters.

    $H = \frac{1}{N} \sum_b n_b \nabla^2 f_b(W)$, with $f_b$ the objective on batch b, $n_b$ its
    number of samples and $N = \sum_b n_b$. Parameters are flattened and concatenated in the model's
    order. The products are exact up to rounding, by reverse mode over reverse mode (Pearlmutter,
    Fast exact multiplication by the Hessian, 1994); at kinks (ReLU) the second derivative is 0.

    The batches are the outer loop and the vectors the inner one: the graph of a batch's gradient is
    built once for all vectors of a call. m products cost m + 1 backward passes and one forward pass
    per batch, and each of the m takes about twice a gradient's time. Attention runs in the math
    kernel, since the fused ones have no second derivative.

    The model runs in eval mode and is left as it was: weights, `.grad`, buffers, training flags
    and the global random state. An operator belongs to the weights it first met: make a new one
    after training on.

    Args:
        model: The model, its parameters float32 or float64, on one device.
        objective: `(model, batch) -> scalar`, the mean over the batch's samples.
        batches: Batches that can be gone through again and again: a list, a DataLoader. They are
            moved to the model's device.
        params: Which parameters; default: all that require a gradient.
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
        params: Iterable[Tensor] | None = None,
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
    def loss(self) -> float | None:
        """The mean loss at the weights, known after the first product."""
        return None if self._seen is None else float(self._seen.value())

    @property
    def samples(self) -> int | None:
        """The number of samples, known after the first product."""
        return None if self._seen is None else self._seen.samples

    def matmat(self, vectors: Tensor) -> Tensor:
        """The products with the columns of `vectors`, shapes (n, m) -> (n, m).

        The transpose of a contiguous (m, n) tensor is read, and returned, without a copy.

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
        seen = MeanLoss()
        with (
            untouched(self._model, self._objective, self.device, eval_mode=self._eval_mode),
            torch.enable_grad(),
            sdpa_kernel(SDPBackend.MATH),
        ):
            for batch, count in weighted(self._batches, self.device):
                seen.add(self._add_products(batch, count, rows, products), count)
        self._check_same(seen)
        self.gradients += 1
        self.hvps += len(rows)
        return products.div_(seen.samples).T

    def _add_products(self, batch: Batch, count: int, rows: Tensor, products: Tensor) -> Tensor:
        """Add `count` times the products of one batch; returns its loss."""
        loss = scalar_loss(self._model, self._objective, batch)
        if not loss.requires_grad:
            raise InputError("the loss does not depend on the parameters: check the objective")
        slices = list(self.blocks.values())
        gradient = torch.autograd.grad(loss, self._params, create_graph=True, allow_unused=True)
        # A gradient without a graph is constant in all parameters: its rows of H are zero.
        curved = [i for i, g in enumerate(gradient) if g is not None and g.requires_grad]
        outputs = [gradient[i] for i in curved]
        for start in range(0, len(rows) if curved else 0, self._chunk):
            stop = min(start + self._chunk, len(rows))
            block = rows[start:stop]
            parts = [block[:, slices[i]].reshape(-1, *self._params[i].shape) for i in curved]
            batched = stop - start > 1
            product = torch.autograd.grad(
                outputs,
                self._params,
                parts if batched else [part[0] for part in parts],
                retain_graph=stop < len(rows),
                allow_unused=True,
                is_grads_batched=batched,
            )
            for part, where in zip(product, slices, strict=True):
                if part is not None:
                    products[start:stop, where].add_(part.reshape(stop - start, -1), alpha=count)
        return loss.detach()

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
                "and make a new Hessian when the weights have moved"
            )
