"""The loss of a prediction against its target, averaged over the batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from flatminima.errors import InputError

Batch: TypeAlias = Any
"""What a loader yields: `(inputs, targets)`, or a mapping with "inputs" and "targets"."""

NO_CLASSES = """the targets are {dtype} of shape {shape}, which are no classes: give \
class indices, int64{soft}; to predict numbers take squared-error, absolute-error or conr"""

Objective: TypeAlias = Callable[[nn.Module, Batch], Tensor]
"""`(model, batch) -> loss`, a scalar: the mean over the samples of the batch."""


def check_classes(targets: Tensor, soft: torch.Size | None = None) -> None:
    """Refuse numbers where classes are meant.

    Args:
        targets: Of a batch.
        soft: The shape that probabilities of classes may have; None where they may not be given.

    Raises:
        InputError: they are floating-point numbers of another shape.
    """
    if targets.is_floating_point() and targets.shape != soft:
        shape, more = tuple(targets.shape), "" if soft is None else ", or a probability for each"
        raise InputError(NO_CLASSES.format(dtype=targets.dtype, shape=shape, soft=more))


def class_loss(outputs: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """The mean cross-entropy of logits.

    Args:
        outputs: Logits, shape (samples, classes).
        targets: Class indices, int64, shape (samples,), or probabilities, like `outputs`.
        label_smoothing: As of `torch.nn.functional.cross_entropy`.

    Raises:
        InputError: the targets are numbers that are neither.
    """
    check_classes(targets, outputs.shape)
    return nn.functional.cross_entropy(outputs, targets, label_smoothing=label_smoothing)


class Supervised:
    """`criterion(model(inputs), targets)`: the usual supervised objective.

    Inputs that are a mapping (token ids, attention mask, ...) are passed to the model by name, and
    an output that carries `logits`, as those of transformers do, is taken for its logits.

    Args:
        criterion: `(outputs, targets) -> scalar`, the mean over samples. Default: cross-entropy.
    """

    def __init__(
        self, criterion: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy
    ) -> None:
        self.criterion = criterion

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss of `model` on `batch`, a scalar tensor."""
        inputs, targets = inputs_and_targets(batch)
        outputs = logits(model, inputs)
        if self.criterion is nn.functional.cross_entropy:
            check_classes(targets, outputs.shape)
        return self.criterion(outputs, targets)


def inputs_and_targets(batch: Batch) -> tuple[Any, Tensor]:
    """The parts of a batch.

    Args:
        batch: `(inputs, targets)`, or more inputs before the targets, `(x, z, targets)`, for a
            model of several; a mapping with "inputs" and "targets"; or one with "labels", as for
            transformers, whose other entries are the inputs.

    Raises:
        InputError: it is none of these.
    """
    if isinstance(batch, Mapping):
        if "targets" in batch:
            return batch["inputs"], batch["targets"]
        if "labels" in batch:
            return {k: v for k, v in batch.items() if k != "labels"}, batch["labels"]
    elif isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    elif isinstance(batch, (tuple, list)) and len(batch) > 2:
        return tuple(batch[:-1]), batch[-1]
    raise InputError(
        'a batch must be (inputs, targets), or a mapping with "inputs" and "targets" or with '
        f'"labels"; this one is a {type(batch).__name__}'
        + (f" with {', '.join(map(str, batch))}" if isinstance(batch, Mapping) else "")
    )


def logits(model: nn.Module, inputs: Any) -> Tensor:
    """What the model predicts, shape (samples, classes)."""
    if isinstance(inputs, Mapping):
        outputs = model(**inputs)
    else:
        outputs = model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)
    predicted = getattr(outputs, "logits", outputs)
    if not isinstance(predicted, torch.Tensor):
        raise TypeError(f"the model returned {type(outputs).__name__}, not a tensor or .logits")
    return predicted
