"""Objectives that remember something of the training samples from one step to the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from flatminima.errors import InputError
from flatminima.objectives.supervised import Batch


@dataclass(frozen=True)
class Setting:
    """What an objective may have to know of the run that it is minimized in.

    Attributes:
        samples: Of the training set; a batch's "index" is below it.
        outputs: Numbers that the model gives for a sample: the classes, or 1.
        steps: Of the whole run.
        steps_per_epoch: Batches of an epoch.
        model: The model in training, not wrapped for data parallelism; None where it is not said.
    """

    samples: int
    outputs: int
    steps: int
    steps_per_epoch: int
    model: nn.Module | None = None

    @property
    def epochs(self) -> int:
        """Epochs of the run, a begun one included."""
        return -(-self.steps // self.steps_per_epoch)


class Remembering(nn.Module):
    """An objective `(model, batch) -> loss` whose memory is in its buffers, saved with a run.

    A step may evaluate it several times on the same samples, at different weights (the passes of
    NSO or SAM) or on parts of them (micro-batches, processes); what it remembers changes once, in
    `after_step`, so that no pass of a step sees what another one left behind.
    """

    def begin(self, setting: Setting) -> None:
        """Make room for a run; called once, before the first step and before state is loaded."""

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss of `model` on `batch`, a scalar tensor."""
        raise NotImplementedError

    def after_step(self, taken: bool = True) -> None:
        """Remember what the passes of the step saw.

        Args:
            taken: False for a step that was skipped, of which nothing is to be remembered.
        """

    def findings(self, targets: Tensor) -> dict[str, Any]:
        """What a finished run found out about its training samples, JSON values by name.

        Args:
            targets: As they were given, shape (samples,).
        """
        return {}


def sample_index(batch: Batch) -> Tensor:
    """Which samples of the training set a batch holds, int64, shape (samples,).

    Raises:
        InputError: the batch does not say.
    """
    index = batch.get("index") if isinstance(batch, Mapping) else None
    if not isinstance(index, Tensor):
        raise InputError(
            "this objective remembers each training sample, and the batch does not say which ones "
            'it holds: give batches {"inputs": ..., "targets": ..., "index": ...}, the index '
            "being the sample's place in the training set, whatever the order"
        )
    return index


def without_index(batch: Batch) -> Batch:
    """The batch as a model is to be given it, which does not know "index"."""
    if isinstance(batch, Mapping):
        return {key: value for key, value in batch.items() if key != "index"}
    return batch


def check_places(index: Any) -> Tensor:
    """The index of a loss that needs one.

    Raises:
        InputError: there is none, or it is no tensor.
    """
    if not isinstance(index, Tensor):
        kind = "not given" if index is None else f"a {type(index).__name__}"
        raise InputError(
            f"the index is {kind}: say which samples these are, by each one's place in the "
            "training set, an int64 tensor of shape (samples,)"
        )
    return index
