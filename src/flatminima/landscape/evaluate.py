"""The mean loss and accuracy at points of a frame, by forward passes only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.modules.batchnorm import _BatchNorm

from flatminima.landscape.frame import Mover, Point
from flatminima.measure.batches import Batches, MeanLoss, scalar_loss, weighted
from flatminima.objectives import Batch, Objective, Supervised
from flatminima.objectives.supervised import inputs_and_targets, logits

READ_AT_ONCE = 64
"""Points evaluated on each batch while it is there, where reading the batches again costs."""


class Evaluator:
    """Losses and accuracies of a model that a `Mover` moves.

    Batches in memory (a list) are gone through for each point, so that weights move once for each.
    What must be read anew, such as a DataLoader, is read once for many points.

    Args:
        model: In the state that `untouched` gives it.
        objective: The mean over the batch's samples; of `Supervised` the accuracy is known too.
        batches: Batches that can be gone through again and again.
        mover: Has been entered.
        batchnorm: "running", "batch" or "recalibrate".
        at_once: Points evaluated by one vectorized pass.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        batches: Batches,
        mover: Mover,
        device: torch.device,
        *,
        batchnorm: str,
        at_once: int,
    ) -> None:
        self._model, self._objective, self._batches = model, objective, batches
        self._mover, self._device, self._batchnorm = mover, device, batchnorm
        self._vectorized = _Vectorized(model, objective, mover) if at_once > 1 else None
        self.samples = 0
        in_memory = isinstance(batches, Sequence)
        self.chunk = max(at_once, 1 if in_memory or batchnorm == "recalibrate" else READ_AT_ONCE)
        self._at_once = at_once

    @torch.no_grad()
    def scores(self, points: Sequence[Point]) -> Tensor:
        """Loss and accuracy at each point, shape (points, 2), float64 on the CPU."""
        if self._batchnorm == "recalibrate":
            for point in points:
                self._mover.go(point)
                self._recalibrate()
        seen = MeanLoss()
        for batch, count in weighted(self._batches, self._device):
            if self._vectorized is None:
                rows = torch.stack([self._at(point, batch) for point in points])
            else:
                pieces = [
                    points[i : i + self._at_once] for i in range(0, len(points), self._at_once)
                ]
                rows = torch.cat([self._vectorized(piece, batch) for piece in pieces])
            seen.add(rows.flatten(), count)
        self.samples = seen.samples
        return seen.value(finite=False).view(len(points), 2)

    def _at(self, point: Point, batch: Batch) -> Tensor:
        self._mover.go(point)
        return loss_and_accuracy(self._model, self._objective, batch)

    def _recalibrate(self) -> None:
        """Running statistics that are the mean over the batches, each counting the same."""
        norms = batchnorms(self._model)
        for norm in norms:
            norm.reset_running_stats()
            norm.train()
        try:
            for batch, _ in weighted(self._batches, self._device):
                self._objective(self._model, batch)
        finally:
            for norm in norms:
                norm.eval()


@contextmanager
def normalizing(model: nn.Module, batchnorm: str) -> Iterator[None]:
    """BatchNorm layers set for one of the ways, and back, inside `untouched`."""
    norms = batchnorms(model)
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            if batchnorm == "batch":
                norm.train()
            elif batchnorm == "recalibrate":
                norm.momentum = None  # torch's word for the mean over all batches
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def batchnorms(model: nn.Module) -> list[_BatchNorm]:
    """The BatchNorm layers that keep running statistics."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


def loss_and_accuracy(model: nn.Module, objective: Objective, batch: Batch) -> Tensor:
    """Both for a batch, shape (2,); the accuracy is NaN where the loss is no classifier's."""
    if not isinstance(objective, Supervised):
        loss = scalar_loss(model, objective, batch)
        return torch.stack([loss, torch.full_like(loss, torch.nan)])
    inputs, targets = inputs_and_targets(batch)
    outputs = logits(model, inputs)
    loss = scalar_loss(model, lambda *_: objective.criterion(outputs, targets), batch)
    if targets.is_floating_point() or outputs.ndim != targets.ndim + 1:
        return torch.stack([loss, torch.full_like(loss, torch.nan)])
    right = outputs.argmax(1) == targets
    # Where all logits are NaN, argmax would still name a class.
    accuracy = torch.where(loss.isfinite(), right.to(loss).mean(), torch.nan)
    return torch.stack([loss, accuracy])


class _Vectorized:
    """Many points by one pass, `torch.func.vmap` over their weights."""

    def __init__(self, model: nn.Module, objective: Objective, mover: Mover) -> None:
        self._asked, self._mover, self._basis = _Asked(model, objective), mover, mover.basis

    def __call__(self, points: Sequence[Point], batch: Batch) -> Tensor:
        factors = [self._mover.coefficients(point) for point in points]
        weights = {
            f"model.{name}": torch.tensordot(torch.tensor(factors).to(basis), basis, 1)
            for name, basis in self._basis.items()
        }
        found: Tensor = vmap(lambda own: functional_call(self._asked, own, (batch,)))(weights)
        return found


class _Asked(nn.Module):
    """A model that answers a batch with its loss and accuracy."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model = model
        # In a list, so that the objective's own parameters are not taken for the model's.
        self._objective = [objective]

    def forward(self, batch: Batch) -> Tensor:
        return loss_and_accuracy(self.model, self._objective[0], batch)
