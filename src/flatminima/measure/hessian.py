"""The Hessian of a model's mean loss."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from flatminima.errors import InputError, unknown
from flatminima.measure.batches import Batches, scalar_loss
from flatminima.measure.differences import Differences
from flatminima.measure.forward import ForwardOverReverse
from flatminima.measure.over_batches import EachBatch, OverBatches
from flatminima.measure.twice import TwiceError, check_twice, rows_of_derivative
from flatminima.measure.untouched import RandomState, check_recording
from flatminima.objectives import Batch, Objective

BACKENDS = ("auto", "autograd", "forward", "differences")

DIFFERENCES_TIMES = 1.0
"""Memory of a gradient; see `OverBatches.graph_times`."""


class Hessian(OverBatches):
    r"""The Hessian of the mean loss over all samples, in the model's parameters.

    $H = \frac{1}{N} \sum_b n_b \nabla^2 f_b(W)$, with $f_b$ the objective on batch b, $n_b$ its
    number of samples and $N = \sum_b n_b$. At kinks (ReLU) the second derivative is 0.

    Backends. "autograd": products exact up to rounding, by reverse mode over reverse mode. m
    products cost m + 1 backward passes and one forward pass per batch, and each of the m takes
    about twice a gradient's time. Attention runs in the math kernel, since the fused ones have no
    second derivative. "differences": central differences of gradients,
    $Hv \approx \frac{\|v\|}{2h} [\nabla f(W + h v/\|v\|) - \nabla f(W - h v/\|v\|)]$, 2 gradients a
    product and the memory of one; works wherever a gradient does (fused kernels, cuDNN's recurrent
    layers, any checkpointing), with the error that `difference_error` states. "forward": exact too,
    by forward mode over reverse mode, one vector at a time without a graph shared between them; an
    independent check of autograd. In our measurements (`docs/measuring.md`) it is never cheaper, so
    nothing chooses it. "auto": autograd, and differences from the moment that torch says it has no
    second derivative. `description` says which was used, and what of the loss is random.

    Memory, in multiples of what the forward pass of a batch keeps: 3 to 5 for autograd and forward,
    1 to 1.5 for differences, besides the vectors and their products. Before the first product it is
    estimated, at the low end, from a forward pass on the first batch, and refused where it does not
    fit in what is free.

    What the first batch is looked at for, random losses, 16-bit models and `data_parallel`: see
    `OverBatches`.

    Source: Pearlmutter, Fast exact multiplication by the Hessian, 1994.

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
        backend: "auto", "autograd", "forward" or "differences".
        dtype: torch.float64 computes in double precision whatever the model; None in the model's
            own type, float32 at least.
        data_parallel: Whether `batches` are this rank's part, and products are to be summed over
            the ranks of a `torchrun`.

    Raises:
        InputError: no parameter to measure, or of a wrong type (see `free_parameters`); chunk < 1;
            an unknown backend; another dtype; data_parallel without a process group.
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
        backend: str = "auto",
        dtype: torch.dtype | None = None,
        data_parallel: bool = False,
    ) -> None:
        super().__init__(
            model,
            objective,
            batches,
            params=params,
            chunk=chunk,
            eval_mode=eval_mode,
            dtype=dtype,
            data_parallel=data_parallel,
        )
        if backend not in BACKENDS:
            raise unknown("backend", backend, BACKENDS)
        self._may_change = backend == "auto"
        self._forward = ForwardOverReverse(self._params) if backend == "forward" else None
        self._differences: Differences | None = None
        if backend == "differences":
            self._differ()

    @property
    def description(self) -> str:
        """Which matrix it is and how its products are made, in words."""
        if self._differences is not None:
            how = f"central differences of gradients{self._differences.steps}"
        else:
            how = "reverse over reverse" if self._forward is None else "forward over reverse"
        return f"Hessian, {how}{self.remarks}"

    @property
    def difference_error(self) -> float | None:
        """The relative error of products by differences, as the self-check found it.

        The change of a product when the step is divided by 4, for the first vector multiplied; None
        before it and for autograd.
        """
        return None if self._differences is None else self._differences.error

    def matmat(self, vectors: Tensor, each: EachBatch | None = None) -> Tensor:
        """The products with the columns of `vectors`, shapes (n, m) -> (n, m).

        The transpose of a contiguous (m, n) tensor is read, and returned, without a copy.

        Args:
            vectors: Shape (n, m).
            each: Called after each batch with the batch's own products, in a buffer that the next
                batch overwrites.

        Raises:
            InputError: wrong shape; bad batches or a bad loss; the batches gave other samples or
                another loss than at the first product; a product does not fit in memory; another
                rank failed; no second derivative, or differences without a step that can be
                trusted.
        """
        if self._differences is not None:
            self._settle(vectors)
            return super().matmat(vectors, each)
        try:
            with sdpa_kernel(SDPBackend.MATH):
                return super().matmat(vectors, each)
        except TwiceError:
            # Only before the first product: an operator is one matrix from then on.
            if not self._may_change or self.hvps:
                raise
        self._differ()
        return self.matmat(vectors, each)

    def _differ(self) -> None:
        """Make products by differences from here on."""
        self._differences = Differences(self._params)
        self.graph_times = DIFFERENCES_TIMES

    def _settle(self, vectors: Tensor) -> None:
        """Find the step of the differences, once, on the first vector that is not zero."""
        assert self._differences is not None
        nonzero = vectors.any(0).nonzero() if vectors.ndim == 2 else vectors
        if self._differences.step is not None or vectors.ndim != 2 or not len(nonzero):
            return
        column = vectors[:, nonzero[0]]
        self._differences.settle(lambda: super(Hessian, self).matmat(column))

    def _add_products(self, batch: Batch, count: int, rows: Tensor, products: Tensor) -> Tensor:
        """Add `count` times the products of one batch; returns its loss."""
        check_recording()

        # Each evaluation draws what is random anew from the same state.
        start = RandomState(self.device) if self._look is not None and self._look.random else None

        def loss() -> Tensor:
            if start is not None:
                start.restore()
            value = scalar_loss(self._model, self._objective, batch)
            if not value.requires_grad:
                raise InputError("the loss does not depend on the parameters: check the objective")
            return value

        way = self._differences or self._forward
        if way is not None:
            return way.add(loss, self._split(rows), self.blocks, count, products)
        value = loss()
        # A slope that requires a gradient gives every gradient a graph, in which functions without
        # a second derivative show; after a constant slope they would pass for linear ones.
        slope = torch.ones_like(value, requires_grad=True)
        gradient = torch.autograd.grad(
            value, self._params, slope, create_graph=True, allow_unused=True
        )
        curved = [i for i, g in enumerate(gradient) if g is not None]
        outputs = [g for g in gradient if g is not None]
        if not self.hvps:
            check_twice(outputs)
        for piece in self._chunks(len(rows)) if curved else []:
            parts = self._split(rows[piece])
            found = rows_of_derivative(
                outputs, self._params, [parts[i] for i in curved], keep=piece.stop < len(rows)
            )
            self._add(found, count, products[piece])
        return value.detach()
