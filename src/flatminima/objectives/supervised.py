"""The loss of a prediction against its target, averaged over the batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from flatminima.errors import InputError

Batch: TypeAlias = Any
"""What a loader yields: `(inputs, targets)`, or a mapping with "inputs" and "targets"."""

Objective: TypeAlias = Callable[[nn.Module, Batch], Tensor]
"""`(model, batch) -> loss`, a scalar: the mean over the samples of the batch."""


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
        return self.criterion(logits(model, inputs), targets)


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
