"""The mean loss and accuracy at points of a frame, by forward passes only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.modules.batchnorm import _BatchNorm

from flatminima.landscape.frame import Mover, Point
from flatminima.measure.batches import Batches, MeanLoss, scalar_loss, weighted
from flatminima.measure.passes import Passes
from flatminima.objectives import Batch, Objective, Supervised
from flatminima.objectives.supervised import inputs_and_targets, logits

READ_AT_ONCE = 64
"""Points evaluated on each batch while it is there, where reading the batches again costs."""


BETWEEN_LOOKS = 0.05
"""Seconds after which losses are fetched and the clock is looked at."""


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
        self._in_memory = isinstance(batches, Sequence)
        self._at_once = at_once
        self._passes = Passes(batches, device)
        self._kept: list[tuple[Batch, int]] | None = None

    def chunk(self, seconds: float | None) -> int:
        """How many points to evaluate by one call.

        Args:
            seconds: What a point took; None before the first.
        """
        if not self._in_memory and self._batchnorm != "recalibrate":
            return max(self._at_once, READ_AT_ONCE)
        some = 1 if seconds is None else int(BETWEEN_LOOKS / max(seconds, 1e-9))
        return max(self._at_once, min(some, READ_AT_ONCE))

    @torch.no_grad()
    def scores(self, points: Sequence[Point]) -> Tensor:
        """Loss and accuracy at each point, shape (points, 2), float64 on the CPU."""
        found: list[list[Tensor]] = []
        counts: list[int] = []
        if self._in_memory or self._batchnorm == "recalibrate":
            pieces = [points[i : i + self._at_once] for i in range(0, len(points), self._at_once)]
        else:
            pieces = [points]
        for piece in pieces:
            if self._batchnorm == "recalibrate":
                self._mover.go(piece[0])
                self._recalibrate()
            for number, (batch, count) in enumerate(self._weighted()):
                if number == len(found):
                    found.append([])
                    counts.append(count)
                found[number].append(self._on(piece, batch))
        seen = MeanLoss()
        for rows, count in zip(found, counts, strict=True):
            seen.add(torch.cat(rows).flatten(), count)
        self.samples = seen.samples
        return seen.value(finite=False).view(len(points), 2)

    def _weighted(self) -> Iterable[tuple[Batch, int]]:
        if not self._in_memory:
            return self._passes
        if self._device.type != "cpu":
            return weighted(self._batches, self._device)
        if self._kept is None:
            self._kept = list(weighted(self._batches, self._device))
        return self._kept

    def _on(self, points: Sequence[Point], batch: Batch) -> Tensor:
        """Loss and accuracy of one batch at some points, shape (points, 2)."""
        rows = []
        for start in range(0, len(points), self._at_once):
            piece = points[start : start + self._at_once]
            if self._vectorized is not None:
                rows.append(self._vectorized(piece, batch))
                continue
            self._mover.go(piece[0])
            rows.append(loss_and_accuracy(self._model, self._objective, batch)[None])
        return torch.cat(rows)

    def _recalibrate(self) -> None:
        """Running statistics that are the mean over the batches, each counting the same."""
        norms = batchnorms(self._model)
        for norm in norms:
            norm.reset_running_stats()
            norm.train()
        try:
            for batch, _ in self._weighted():
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
    return torch.stack([loss, (outputs.argmax(1) == targets).to(loss).mean()])


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
