"""Whether SGD could have stayed at the minimum that was found."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from flatminima.errors import InputError
from flatminima.measure.batches import Batches, MeanLoss, weighted
from flatminima.measure.cost import Meter
from flatminima.measure.results import Result
from flatminima.measure.thresholds import LinearSGD
from flatminima.measure.untouched import check_recording, free_parameters, untouched
from flatminima.objectives import Supervised
from flatminima.objectives.supervised import inputs_and_targets, logits
from flatminima.perturb.shares import cut
from flatminima.progress import Progress

MOST_BYTES = 4 * 2**30
"""What the Jacobian of all samples may take."""


Criterion: TypeAlias = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class StabilityReport(Result):
    """Learning rates at which gradient descent and SGD stay at a minimum, to first order.

    Attributes:
        lr: The learning rate asked about.
        batch_size: B, the batch size asked about.
        loss: The mean loss over all samples.
        residual: The largest norm of the gradient of a sample's loss in the model's outputs: 0
            where every sample is fitted, which is what the theory assumes.
        lambda_max: The largest eigenvalue of H, here the Gauss-Newton matrix.
        trace: Tr H.
        frobenius: The Frobenius norm of H.
        mean_threshold: 2 / lambda_max.
        threshold: The learning rate up to which SGD with batches of B is stable in mean square.
        converged: Whether its eigenvalue has converged; if not, `threshold` is too large.
        trace_bound: 2 C / (p Tr H), an upper bound on `threshold`.
        frobenius_bound: A nearer one; see `LinearSGD.frobenius_bound`.
        samples: n.
        outputs: C, the most directions in which a sample's loss is curved.
    """

    lr: float
    batch_size: int
    loss: float
    residual: float
    lambda_max: float
    trace: float
    frobenius: float
    mean_threshold: float
    threshold: float
    converged: bool
    trace_bound: float
    frobenius_bound: float
    samples: int
    outputs: int

    @property
    def stable_gd(self) -> bool:
        """Whether gradient descent at `lr` stays."""
        return self.lr <= self.mean_threshold

    @property
    def stable_sgd(self) -> bool:
        """Whether SGD at `lr` and `batch_size` stays."""
        return self.lr <= self.threshold

    @property
    def margin(self) -> float:
        """The distance to instability: threshold / lr, above 1 where SGD is stable."""
        return self.threshold / self.lr

    @property
    def verdict(self) -> str:
        """What all this says, in a sentence."""
        sgd = f"SGD with batches of {self.batch_size} at learning rate {self.lr:.4g}"
        if self.stable_sgd:
            return (
                f"{sgd} can stay at this minimum: it would leave above {self.threshold:.4g}, "
                f"{self.margin:.3g} times as much."
            )
        also = (
            "gradient descent would stay" if self.stable_gd else "gradient descent would leave too"
        )
        return (
            f"{sgd} cannot stay at this minimum: it leaves above {self.threshold:.4g}, "
            f"1/{1 / self.margin:.3g} of that; {also}."
        )

    def __str__(self) -> str:
        rows = [
            ("loss", self.loss, f"largest residual {self.residual:.3g}"),
            ("top eigenvalue", self.lambda_max, f"2 / lr is {2 / self.lr:.4g}"),
            ("trace", self.trace, f"Frobenius norm {self.frobenius:.4g}"),
            ("lr, gradient descent", self.mean_threshold, "2 / lambda_max"),
            (
                f"lr, SGD, B = {self.batch_size}",
                self.threshold,
                "in mean square" if self.converged else "in mean square, too large: not converged",
            ),
            ("  necessary", self.frobenius_bound, "Frobenius bound"),
            ("  necessary", self.trace_bound, f"2 C / (p trace), C = {self.outputs}"),
        ]
        lines = [f"{name:<22}  {value:<10.4g}  {note}" for name, value, note in rows]
        return "\n".join([*lines, self.verdict])

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types, and the verdict."""
        return {**super().to_dict(), "verdict": self.verdict}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The report that `to_dict` wrote."""
        own = {key: value for key, value in data.items() if key != "verdict"}
        rates = ("mean_threshold", "threshold", "trace_bound", "frobenius_bound")
        return cls(**{**own, **{k: math.inf if own[k] is None else own[k] for k in rates}})


def dynamical_stability(
    model: nn.Module,
    objective: Supervised,
    batches: Batches,
    *,
    lr: float,
    batch_size: int,
    params: Iterable[Tensor] | Iterable[str] | str | None = None,
    progress: Progress | None = None,
) -> StabilityReport:
    r"""Whether gradient descent and SGD, at a learning rate and a batch size, stay at this minimum.

    Linearized at a minimum, gradient descent stays iff $\lambda_{\max}(H) \le 2/\eta$; SGD stays in
    mean square iff $\eta$ is at most a threshold that falls with the batch size and is at most
    $2C/(p\,\mathrm{Tr}\,H)$, $p = (n-B)/(B(n-1))$: small batches also bound the trace. See
    `LinearSGD` for the exact threshold.

    H is the Gauss-Newton matrix $\frac1n \sum_i J_i^\top (\nabla^2_f \ell_i) J_i$ of the loss that
    is given (with its factors: `nn.MSELoss` has no 1/2 and divides by the outputs), which is the
    Hessian where every sample is fitted. Where `residual` is not small, it is not.

    It is a statement about this point and about SGD without momentum, weight decay, dropout and
    with BatchNorm in evaluation mode; unstable means that SGD leaves the point, usually for a
    flatter one. Momentum, Adam and noise in the weights are outside the theory.

    Cost: for each sample as many gradients as its loss has curved directions, C; their Jacobian,
    n C x parameters, is held in memory, twice for a moment; an eigendecomposition of n C x n C
    numbers, and some 40 products of such matrices. 200 samples of 10 classes: half a minute on
    one core.

    Source: Mulayoff, Michaeli, arXiv 2306.07850; Wu, Su, 2023, arXiv 2305.17490.

    Args:
        model: The model, its parameters float32 or float64, on one device.
        objective: `Supervised(criterion)`, the criterion a mean over samples and convex in the
            outputs, such as cross-entropy or squared error.
        batches: The training set, or a part of it: the thresholds are then those of that part.
        lr: The learning rate.
        batch_size: Samples in a step, drawn without replacement.
        params: Which parameters were trained: tensors, or names with wildcards ("encoder.*");
            default: all that require a gradient.
        progress: Called with ("stability", samples done, samples of the batches so far).

    Raises:
        InputError: lr is not above 0; batch_size is not in 1 to n; an objective without outputs,
            not a mean over samples or not convex in them; a Jacobian of more than 4 GiB; bad
            parameters or batches.
    """
    if not (math.isfinite(lr) and lr > 0):
        raise InputError(f"lr is {lr}: give a finite number above 0, such as 0.01")
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}: give at least 1")
    check_recording()
    if not isinstance(objective, Supervised):
        raise InputError(
            f"the objective is a {type(objective).__name__}, and the Jacobian of the outputs is "
            "needed: give flatminima.Supervised(criterion)"
        )
    weights = list(free_parameters(model, params).values())
    device = weights[0].device
    meter = Meter(device, weights[0].dtype)
    losses, residual = MeanLoss(), 0.0
    rows: list[Tensor] = []
    size = sum(weight.numel() for weight in weights) * weights[0].element_size()
    with (
        untouched(model, objective, device),
        torch.enable_grad(),
        sdpa_kernel(SDPBackend.MATH),
    ):
        done = 0
        for batch, count in weighted(batches, device):
            loss, slopes, roots = output_curvature(model, objective, batch, count)
            losses.add(loss, count)
            residual = max(residual, float(slopes.flatten(1).norm(dim=1).max()))
            if size * (done + count) * roots.shape[1] > MOST_BYTES:
                raise InputError(
                    f"the Jacobian of {done + count} samples in {roots.shape[1]} directions takes "
                    f"more than {MOST_BYTES / 2**30:.0f} GiB: give fewer samples, or "
                    "fewer parameters by params="
                )
            for i in range(count):
                inputs, _ = inputs_and_targets(cut(batch, i, i + 1, count))
                rows.append(_jacobian(logits(model, inputs), roots[i], weights))
            done += count
            if progress is not None:
                progress("stability", done, done)
    if batch_size > done:
        raise InputError(
            f"batch_size is {batch_size} and the batches have {done} samples: give at most so many"
        )
    outputs = max(len(row) for row in rows)
    padded = [nn.functional.pad(row, (0, 0, 0, outputs - len(row))) for row in rows]
    linear = LinearSGD(torch.stack(padded))
    threshold = linear.threshold(batch_size)
    cost = meter.read()
    return StabilityReport(
        lr,
        batch_size,
        losses.value().item(),
        residual,
        linear.top,
        linear.trace,
        linear.frobenius,
        linear.mean_threshold(),
        threshold.value,
        threshold.converged,
        linear.trace_bound(batch_size),
        linear.frobenius_bound(batch_size),
        done,
        outputs,
        method="per-sample Jacobians, Lanczos method on the second moment",
        **cost,
    )


def output_curvature(
    model: nn.Module, objective: Supervised, batch: Any, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The mean loss; each sample's gradient and root of the Hessian in the outputs.

    Shapes (), (count, C), (count, rank, C): root' root is the Hessian of the sample's loss.

    Raises:
        InputError: outputs without a sample dimension, a loss that is not the mean over samples, or
            not convex.
    """
    inputs, targets = inputs_and_targets(batch)
    with torch.no_grad():
        predicted = logits(model, inputs)
        if predicted.ndim == 0 or len(predicted) != count:
            raise InputError(
                f"the model's outputs have shape {tuple(predicted.shape)} for {count} samples: "
                "samples must come first"
            )
        alone = [
            objective.criterion(predicted[i : i + 1], targets[i : i + 1]) for i in range(count)
        ]
        mean = float(torch.stack(alone).mean())
        value = float(objective.criterion(predicted, targets))
    if abs(value - mean) > 1e-4 * abs(mean) + 1e-6:
        raise InputError(
            f"the loss of a batch is {value:.6g} and the mean over its samples "
            f"{mean:.6g}: give a criterion that is a mean over samples (no class weights)"
        )
    outputs = predicted.detach().double().requires_grad_()
    targets = targets.double() if targets.is_floating_point() else targets
    loss = _in_double(objective.criterion, outputs, targets)
    # Each sample's loss depends on its own outputs alone: sums over samples keep them apart.
    (slope,) = torch.autograd.grad(loss * count, outputs, create_graph=True)
    slopes = slope.flatten(1)
    columns = [
        torch.autograd.grad(column.sum(), outputs, retain_graph=True)[0].flatten(1)
        if slopes.requires_grad
        else torch.zeros_like(slopes)
        for column in slopes.unbind(1)
    ]
    values, vectors = torch.linalg.eigh(torch.stack(columns, 2))
    largest = float(values.max())
    if float(values.min()) < -1e-6 * max(largest, float(slopes.detach().abs().max())):
        raise InputError(
            "the loss is not convex in the model's outputs: the theory has no answer there"
        )
    rank = max(1, int((values > 1e-12 * largest).sum(1).max()))
    roots = values[:, -rank:, None].clamp(min=0).sqrt() * vectors[:, :, -rank:].mT
    return loss.detach(), slopes.detach(), roots.to(predicted.dtype)


def _in_double(criterion: Criterion, outputs: Tensor, targets: Tensor) -> Tensor:
    """The loss of outputs of float64; a module's buffers, such as class weights, follow them."""
    if isinstance(criterion, nn.Module):
        criterion = copy.deepcopy(criterion).double()
    try:
        return criterion(outputs, targets)
    except RuntimeError as error:
        raise InputError(
            f"the criterion does not take outputs of float64 ({str(error).splitlines()[0]}): give "
            "a module that keeps its tensors as buffers, as torch.nn.CrossEntropyLoss does"
        ) from error


def _jacobian(outputs: Tensor, root: Tensor, weights: list[Tensor]) -> Tensor:
    """Root times the Jacobian of one sample's outputs, shape (rank, parameters)."""
    rows = []
    for row in root:
        parts = torch.autograd.grad(
            outputs, weights, row.view_as(outputs), retain_graph=True, allow_unused=True
        )
        filled = (
            torch.zeros_like(weight) if part is None else part
            for part, weight in zip(parts, weights, strict=True)
        )
        rows.append(torch.cat([part.flatten() for part in filled]))
    return torch.stack(rows)
