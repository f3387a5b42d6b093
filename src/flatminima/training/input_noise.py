"""Noise on what the model is given, the augmentation that any numbers have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flatminima.errors import InputError
from flatminima.objectives import Batch, Objective
from flatminima.objectives.supervised import inputs_and_targets


def with_noise(batch: Batch, strength: Tensor | float) -> Batch:
    """The batch with normal noise on its inputs.

    Args:
        batch: Of images or vectors.
        strength: Standard deviation; a tensor has one for each sample.

    Raises:
        InputError: inputs that are no numbers.
    """
    inputs, targets = inputs_and_targets(batch)
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        raise InputError(
            "input_noise adds noise to numbers, and these inputs are token ids or the like: "
            "leave it out"
        )
    if isinstance(strength, Tensor):
        strength = strength.to(inputs.dtype).view(-1, *[1] * (inputs.dim() - 1))
    # Drawn on a CPU from torch's global generator, which the passes of a step share.
    noise = torch.randn(inputs.shape, dtype=inputs.dtype).to(inputs.device)
    noisy = inputs + strength * noise
    rest: Mapping[str, Any] = batch if isinstance(batch, Mapping) else {}
    return {**rest, "inputs": noisy, "targets": targets} if rest else (noisy, targets)


class NoisyInputs:
    """An objective on inputs with noise, in training mode.

    Args:
        objective: On the inputs as they are.
        strength: Standard deviation of the noise.
    """

    def __init__(self, objective: Objective, strength: float) -> None:
        self.objective, self.strength = objective, strength

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """The objective's loss."""
        return self.objective(model, with_noise(batch, self.strength) if model.training else batch)
