"""The two faces of a loss with a memory: a module for a plain loop, and an objective of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from flatminima.errors import InputError
from flatminima.objectives.memory import Memory, in_full
from flatminima.objectives.remembering import (
    Remembering,
    Setting,
    check_places,
    sample_index,
    without_index,
)
from flatminima.objectives.supervised import (
    Batch,
    check_classes,
    class_loss,
    inputs_and_targets,
    logits,
)


class RememberingLoss(nn.Module):
    """A loss of logits, labels and the samples' places in the training set.

    In training mode each call remembers what it saw, once its loss is computed; calls within
    `one_step` are passes or parts of one step, which all see what was remembered before it, and
    their mean is remembered at its end. In evaluation mode it is the cross-entropy and remembers
    nothing.

    Args:
        memory: Of as many rows as there are training samples, a number for each class.
    """

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        self.memory = memory
        self._within_step = False

    def forward(self, logits: Tensor, labels: Tensor, index: Tensor | None = None) -> Tensor:
        """The mean loss of a batch, a scalar tensor, in single precision at least.

        Args:
            logits: Shape (samples, classes).
            labels: Class indices, int64, shape (samples,).
            index: Places in the training set, int64, shape (samples,); in evaluation mode there
                need be none.

        Raises:
            InputError: no index, shapes or types that do not fit, or samples that there are not.
        """
        if not self.training:
            return class_loss(in_full(logits), labels)
        try:
            loss = self.of_pass(logits, labels, index)
        except BaseException:
            if not self._within_step:
                self.memory.forget()
            raise
        if not self._within_step:
            self.remember()
        return loss

    def of_pass(self, logits: Tensor, labels: Tensor, index: Tensor | None) -> Tensor:
        """The loss as `forward` has it in training, noting what `remember` is to remember."""
        classes = self.memory.rows.shape[1]
        if logits.dim() != 2 or logits.shape[1] != classes:
            raise InputError(
                f"the model gives outputs of shape {tuple(logits.shape)}, and {classes} classes "
                "are remembered of each sample: give logits of shape (samples, classes)"
            )
        places = check_places(index)
        check_classes(labels)
        if not len(logits) == len(labels) == len(places):
            raise InputError(
                f"there are {len(logits)} rows of logits, {len(labels)} labels and {len(places)} "
                "indices: give one of each for a sample"
            )
        # 0.9999 is 1 in 16 bits.
        with torch.autocast(logits.device.type, enabled=False):
            return self.loss(in_full(logits), labels, places)

    def loss(self, logits: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        """The equation; notes what is to be remembered."""
        raise NotImplementedError

    def row(self, index: Tensor, seen: Tensor) -> Tensor:
        """What is remembered of samples of which `seen` was noted."""
        raise NotImplementedError

    @torch.no_grad()
    def remember(self) -> None:
        """Remember what was noted; called by all processes or none."""
        index, seen = self.memory.noted()
        self.memory.write(index, self.row(index, seen))

    @contextmanager
    def one_step(self) -> Iterator[None]:
        """Calls within are of one step: its passes, as those of NSO, or its micro-batches.

        If the step is broken off by an error, nothing of it is remembered.
        """
        self._within_step = True
        try:
            yield
        except BaseException:
            self.memory.forget()
            raise
        finally:
            self._within_step = False
        self.remember()


class RemembersSamples(Remembering):
    """An objective that is a `RememberingLoss` of the run it is minimized in."""

    kept: RememberingLoss | None

    def __init__(self) -> None:
        super().__init__()
        self.kept = None

    def make(self, setting: Setting) -> RememberingLoss:
        """The loss for a run."""
        raise NotImplementedError

    def begin(self, setting: Setting) -> None:
        """Make room for a run; called once, before the first step and before state is loaded."""
        self.kept = self.make(setting)

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss of `model` on `batch`, a scalar tensor.

        Raises:
            InputError: in training, the batch does not say which samples it holds, or `begin` was
                not called.
        """
        index = sample_index(batch) if model.training else None
        inputs, targets = inputs_and_targets(without_index(batch))
        outputs = logits(model, inputs)
        if index is None:
            return class_loss(in_full(outputs), targets)
        return self.begun().of_pass(outputs, targets, index)

    def after_step(self, taken: bool = True) -> None:
        """Remember what the passes of the step saw, unless it was skipped."""
        loss = self.begun()
        if taken:
            loss.remember()
        else:
            loss.memory.forget()

    def begun(self) -> RememberingLoss:
        """The loss with its memory.

        Raises:
            InputError: `begin` was not called.
        """
        if self.kept is None:
            raise InputError(
                "this objective does not know how many samples to remember: call begin(Setting(...)"
                ") before the first step"
            )
        return self.kept
