"""Averages of the weights along a run: SWA and EMA, by torch.optim.swa_utils."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from flatminima.objectives.supervised import inputs_and_targets, logits
from flatminima.training.data.device import to_device


class Average:
    """The mean of the weights, over epochs' ends (SWA) or over steps (EMA).

    SWA: the equal mean of the weights at the end of each epoch after `start`, and of the last ones.
    EMA: a <- decay a + (1 - decay) W at each step after `start`, a = W at the first.

    Statistics of BatchNorm are not averaged: those of the averaged weights are other numbers, and
    `finish` computes them from the data, unless they are frozen.

    Of a reparametrized model the mean is that of the weights which it makes, where `bake` is given,
    at the cost of a copy of the model each time; else that of what is trained.

    Source: Izmailov, Podoprikhin, Garipov, Vetrov, Wilson, "Averaging Weights Leads to Wider Optima
    and Better Generalization", 2018, arXiv 1803.05407.

    Args:
        model: The model in training, not wrapped for data parallelism.
        decay: Of EMA; None makes it SWA.
        start: Steps after which averaging begins.
        total: Steps of the run.
        per_epoch: Steps of an epoch.
        frozen_statistics: Whether BatchNorm's are not those of the data at hand, but given.
        bake: Makes an ordinary model of a copy of `model`; None where it is one.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        decay: float | None,
        start: int,
        total: int,
        per_epoch: int,
        frozen_statistics: bool = False,
        bake: Callable[[nn.Module], None] | None = None,
    ) -> None:
        rule = None if decay is None else get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        self._model, self._bake = model, bake
        self._average = AveragedModel(self._ordinary(), multi_avg_fn=rule)
        self._every = per_epoch if decay is None else 1
        self._start, self._total = start, total
        self._frozen_statistics = frozen_statistics

    def after(self, step: int) -> None:
        """Take in the weights after a step, if it is one that counts."""
        if step > self._start and (step % self._every == 0 or step == self._total):
            self._average.update_parameters(self._ordinary())

    def finish(self, batches: Iterable[Any], device: torch.device) -> nn.Module:
        """The averaged model, with the BatchNorm statistics of its own weights.

        Args:
            batches: Of the training set, of equal sizes: each counts the same.
            device: Where the model is.
        """
        inputs = (_Inputs(inputs_and_targets(to_device(batch, device))[0]) for batch in batches)
        if not self._frozen_statistics:
            update_bn(inputs, _ByInputs(self._average.module))
        return self._average.module

    def state_dict(self) -> dict[str, Any]:
        """The average so far."""
        return self._average.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from an average."""
        self._average.load_state_dict(state)

    def _ordinary(self) -> nn.Module:
        if self._bake is None:
            return self._model
        copied = copy.deepcopy(self._model)
        self._bake(copied)
        return copied


class _Inputs:
    """The inputs of a batch, in a form that `update_bn` hands on as it is."""

    def __init__(self, content: Any) -> None:
        self.content = content


class _ByInputs(nn.Module):
    """A model that takes inputs by name too."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: _Inputs) -> torch.Tensor:
        """The model's logits."""
        return logits(self.model, inputs.content)
