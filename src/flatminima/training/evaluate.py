"""Loss and accuracy of a model on a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Sampler

from flatminima.objectives.supervised import inputs_and_targets, logits
from flatminima.training.data import collate


@dataclass(frozen=True)
class Score:
    """How well a model predicts.

    Attributes:
        accuracy: Part of the samples whose class is predicted, in [0, 1].
        loss: Mean cross-entropy, in nats.
    """

    accuracy: float
    loss: float


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[Any],
    device: torch.device,
    saw: Callable[[torch.Tensor], None] | None = None,
) -> Score:
    """Score a model in evaluation mode; the mode of each module is left as it was.

    Args:
        model: Gives logits.
        batches: Of the data set, on any device.
        device: Where the model is.
        saw: Told the logits of each batch.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    correct = loss = samples = 0.0
    try:
        for batch in batches:
            inputs, targets = inputs_and_targets(to_device(batch, device))
            predicted = logits(model, inputs).float()
            if saw is not None:
                saw(predicted)
            loss += nn.functional.cross_entropy(predicted, targets, reduction="sum").item()
            correct += (predicted.argmax(dim=1) == targets).sum().item()
            samples += len(targets)
    finally:
        for module in training:
            module.training = True
    return Score(correct / samples, loss / samples)


def loader(
    part: Any, batch_size: int = 1, batch_sampler: Sampler[list[int]] | None = None
) -> DataLoader[Any]:
    """The batches of an encoded data set, in order or as a sampler says.

    A DataLoader draws a seed for its workers, by default from torch's global generator: then a run
    resumed within an epoch, which makes one loader more, would go on with other random numbers.
    """
    own = torch.Generator()
    if batch_sampler is not None:
        return DataLoader(part, batch_sampler=batch_sampler, collate_fn=collate, generator=own)
    return DataLoader(part, batch_size=batch_size, collate_fn=collate, generator=own)


def to_device(batch: Any, device: torch.device) -> Any:
    """A batch of tensors and mappings of them, on a device."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    return {key: to_device(value, device) for key, value in batch.items()}
