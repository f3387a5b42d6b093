"""Curvature through the outputs: the Gauss-Newton matrix and the Fisher matrices."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from flatminima.errors import InputError
from flatminima.measure.batches import Batches, scalar_loss
from flatminima.measure.over_batches import EachBatch, OverBatches
from flatminima.measure.twice import TwiceError, check_twice, rows_of_derivative
from flatminima.measure.untouched import check_recording
from flatminima.objectives import Batch, Supervised
from flatminima.objectives.supervised import inputs_and_targets, logits
from flatminima.perturb.noise import Stream

Multiply: TypeAlias = Callable[[Tensor], Tensor]
"""M times rows, shapes (m, *outputs.shape) -> the same."""


class Sandwich(OverBatches):
    """The mean over samples of J' M J; see its kinds below.

    A product is Jv, by differentiating J'u in u, then M, then J': three backward passes on one
    graph per batch for all vectors of a call.

    Args:
        model: The model, on one device.
        objective: A `Supervised`, since its outputs and its criterion must be told apart.
        batches: Batches that can be gone through again and again.
        params: Which parameters: tensors, or names with wildcards ("encoder.*"); default: all that
            require a gradient.
        chunk: How many products run vectorized at once.
        eval_mode: False leaves the training flags as they are.
        dtype: torch.float64 computes in double precision; None in float32 at least.
        data_parallel: Whether `batches` are this rank's part; see `OverBatches`.

    Raises:
        InputError: the objective is no `Supervised`; as `OverBatches`.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Supervised,
        batches: Batches,
        *,
        params: Iterable[Tensor] | Iterable[str] | str | None = None,
        chunk: int = 1,
        eval_mode: bool = True,
        dtype: torch.dtype | None = None,
        data_parallel: bool = False,
    ) -> None:
        if not isinstance(objective, Supervised):
            raise InputError(
                f"{type(self).__name__} must tell outputs from loss: give "
                "flatminima.Supervised(criterion) as the objective"
            )
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
        self._criterion = objective.criterion

    def matmat(self, vectors: Tensor, each: EachBatch | None = None) -> Tensor:
        """The products with the columns of `vectors`, shapes (n, m) -> (n, m).

        Args:
            vectors: Shape (n, m).
            each: Called after each batch with the batch's own products, in a buffer that the next
                batch overwrites.

        Raises:
            InputError: wrong shape; bad batches or a bad loss; the batches gave other samples or
                another loss than at the first product; a function without second derivative.
        """
        # Ranks do not share the draws of their n-th batches.
        self._batch = 0 if self.ranks is None else self.ranks.rank << 32
        try:
            with sdpa_kernel(SDPBackend.MATH):
                return super().matmat(vectors, each)
        except TwiceError as error:
            raise TwiceError(
                error.reason, f"{type(self).__name__} needs it, so write that function with one"
            ) from error

    @abstractmethod
    def _middle(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Multiply]:
        """What J is the Jacobian of, from the outputs of a batch, and M."""

    def _add_products(self, batch: Batch, count: int, rows: Tensor, products: Tensor) -> Tensor:
        """Add `count` times the products of one batch; returns its loss."""
        check_recording()
        inputs, targets = inputs_and_targets(batch)
        predicted = logits(self._model, inputs)
        # The loss of these very outputs, checked to be a scalar.
        loss = scalar_loss(self._model, lambda *_: self._criterion(predicted, targets), batch)
        if not loss.requires_grad:
            raise InputError("the loss does not depend on the parameters: check the objective")
        outputs, middle = self._middle(predicted, targets)
        self._batch += 1
        dual = torch.zeros_like(outputs, requires_grad=True)
        pulled = torch.autograd.grad(
            outputs, self._params, dual, create_graph=True, allow_unused=True
        )
        moving = [i for i, g in enumerate(pulled) if g is not None]
        if not self.hvps:
            check_twice(g for g in pulled if g is not None)
        for piece in self._chunks(len(rows)) if moving else []:
            parts = self._split(rows[piece])
            (pushed,) = rows_of_derivative(
                [g for i in moving if (g := pulled[i]) is not None],
                [dual],
                [parts[i] for i in moving],
                keep=True,
            )
            if pushed is None:
                continue
            found = rows_of_derivative(
                [outputs], self._params, [middle(pushed).detach()], keep=True
            )
            self._add(found, count, products[piece])
        return loss.detach()


class GaussNewton(Sandwich):
    r"""The generalized Gauss-Newton matrix $\frac1N \sum_b n_b J_b^\top (\nabla_z^2 L_b) J_b$.

    J is the Jacobian of the model's outputs z in the parameters and L the criterion. It is the
    Hessian less the part that comes from the model's own curvature, and positive semi-definite for
    a convex criterion. For a model that is linear in its parameters the two are equal; for
    cross-entropy it is the Fisher matrix too.

    Source: Schraudolph, Fast curvature matrix-vector products for second-order gradient descent,
    2002.
    """

    @property
    def description(self) -> str:
        """Which matrix it is and how its products are made, in words."""
        return f"Gauss-Newton, reverse over reverse{self.remarks}"

    def _middle(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Multiply]:
        z = outputs.detach().requires_grad_()
        (slope,) = torch.autograd.grad(self._criterion(z, targets), z, create_graph=True)

        def multiply(rows: Tensor) -> Tensor:
            if not slope.requires_grad:
                return torch.zeros_like(rows)
            (found,) = rows_of_derivative([slope], [z], [rows], keep=True)
            return torch.zeros_like(rows) if found is None else found

        return outputs, multiply


class EmpiricalFisher(Sandwich):
    r"""The second moment of gradients, $\frac1N \sum_i \nabla \ell_i \nabla \ell_i^\top$.

    Of the samples' losses at the data's own targets. It is not the Fisher matrix and no curvature:
    near a perfect fit it goes to zero, whatever the Hessian; but it is the covariance of gradient
    noise, plus the square of the mean gradient.

    Source: Kunstner, Balles, Hennig, Limitations of the empirical Fisher approximation, 2019, arXiv
    1905.12558.

    Samples of a batch must not depend on each other, as in eval mode, and the criterion must be the
    mean over samples and work under `torch.func.vmap`.
    """

    @property
    def description(self) -> str:
        """Which matrix it is and how its products are made, in words."""
        return f"empirical Fisher, reverse over reverse{self.remarks}"

    def _middle(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Multiply]:
        losses = self._losses(outputs, targets)
        return losses, lambda rows: rows / len(losses)

    def _losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each sample, shape (samples,)."""
        losses: Tensor = torch.func.vmap(lambda z, y: self._criterion(z[None], y[None]))(
            outputs, targets
        )
        mean, whole = losses.mean().item(), self._criterion(outputs, targets).item()
        if abs(mean - whole) > 1e-4 * abs(whole) + 1e-6:
            raise InputError(
                f"the mean of the samples' losses is {mean:.6g} and the criterion gives "
                f"{whole:.6g}: give a criterion that is the mean over samples (no class weights)"
            )
        return losses


Sampler: TypeAlias = Callable[[Tensor, torch.Generator], Tensor]
"""`(outputs, generator) -> targets` drawn from what the model predicts."""


class MonteCarloFisher(EmpiricalFisher):
    r"""The Fisher matrix with targets drawn from the model's own predictions.

    $\frac{1}{NS} \sum_{i,s} \nabla \ell(z_i, y_{is}) \nabla \ell(z_i, y_{is})^\top$ with S targets
    $y_{is}$ drawn for each sample. Its mean is the Gauss-Newton matrix for cross-entropy, and, with
    normal targets of variance D/2 around D outputs, for the mean squared error. The draws depend on
    the seed and the place of the batch alone, so that all products are with one matrix.

    Source: Martens, New insights and perspectives on the natural gradient method, 2020,
    arXiv 1412.1193.

    Args:
        model: The model, on one device.
        objective: A `Supervised`.
        batches: Batches that can be gone through again and again, in the same order.
        draws: S.
        seed: Of the targets; the global random state is not touched.
        sampler: How targets are drawn. Default: known for `cross_entropy` of shape (N, C) and
            `mse_loss`, as functions and as modules.
        params: Which parameters: tensors, or names with wildcards ("encoder.*"); default: all that
            require a gradient.
        chunk: How many products run vectorized at once.
        eval_mode: False leaves the training flags as they are.
        dtype: torch.float64 computes in double precision; None in float32 at least.
        data_parallel: Whether `batches` are this rank's part; see `OverBatches`.

    Raises:
        InputError: draws < 1; a criterion whose likelihood is not known; as `Sandwich`.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Supervised,
        batches: Batches,
        *,
        draws: int = 1,
        seed: int = 0,
        sampler: Sampler | None = None,
        params: Iterable[Tensor] | Iterable[str] | str | None = None,
        chunk: int = 1,
        eval_mode: bool = True,
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
        if draws < 1:
            raise InputError(f"draws is {draws}: give at least 1")
        self._draws, self._stream = draws, Stream(seed)
        self._sampler = sampler or _sampler(self._criterion)

    @property
    def description(self) -> str:
        """Which matrix it is and how its products are made, in words."""
        return f"Monte-Carlo Fisher, {self._draws} draws, reverse over reverse{self.remarks}"

    def _middle(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Multiply]:
        generator = self._stream.generator(outputs.device, 0, self._batch)
        with torch.no_grad():
            drawn = [self._sampler(outputs.detach(), generator) for _ in range(self._draws)]
        losses = torch.cat([self._losses(outputs, targets) for targets in drawn])
        return losses, lambda rows: rows / len(losses)


def _sampler(criterion: Callable[[Tensor, Tensor], Tensor]) -> Sampler:
    if criterion is nn.functional.cross_entropy or isinstance(criterion, nn.CrossEntropyLoss):
        return _categorical
    if criterion is nn.functional.mse_loss or isinstance(criterion, nn.MSELoss):
        return _normal
    name = getattr(criterion, "__name__", type(criterion).__name__)
    raise InputError(
        f"what the model predicts is not known for the criterion {name}: "
        "give sampler=(outputs, generator) -> targets"
    )


def _categorical(outputs: Tensor, generator: torch.Generator) -> Tensor:
    if outputs.ndim != 2:
        raise InputError(
            f"the outputs have shape {tuple(outputs.shape)}: give a sampler, or a model that "
            "returns (samples, classes)"
        )
    return torch.multinomial(outputs.softmax(1), 1, generator=generator)[:, 0]


def _normal(outputs: Tensor, generator: torch.Generator) -> Tensor:
    variance = outputs[0].numel() / 2
    noise = torch.empty_like(outputs).normal_(generator=generator)
    return outputs + noise.mul_(variance**0.5)
