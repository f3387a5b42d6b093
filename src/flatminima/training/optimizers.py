"""The base optimizer of a recipe, and the schedule of its learning rate."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from flatminima.optim import VariationalAdam
from flatminima.perturb import Perturbed
from flatminima.training.recipe import Recipe
from flatminima.training.second_order import BatchGNS
from flatminima.training.self_tuned import RESPONSE
from flatminima.training.specs import OptimizerSpec


def base_optimizer(
    model: torch.nn.Module,
    spec: OptimizerSpec,
    samples: int,
    responses: dict[str, Any] | None = None,
) -> torch.optim.Optimizer:
    """The base optimizer; weight decay spares biases and norms, as fine-tuning does.

    Args:
        model: Whose free parameters it takes, by name.
        spec: Which optimizer, and its settings.
        samples: How many there are to train on; variational Adam's posterior is of so many.
        responses: Settings of the parameters that only answer to knobs, where there are some.
    """
    if spec.optimizer == "gns":
        return BatchGNS(model, spec.weight_decay)
    # Names, so that the noise of a tensor does not depend on the order of the groups.
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    answers = [n for n in trainable if responses and n[0].rpartition(".")[2] in RESPONSE]
    trainable = [n for n in trainable if not (responses and n[0].rpartition(".")[2] in RESPONSE)]
    groups: list[dict[str, Any]] = [
        {"params": [n for n in trainable if n[1].dim() > 1], "weight_decay": spec.weight_decay},
        {"params": [n for n in trainable if n[1].dim() <= 1], "weight_decay": 0.0},
        {"params": answers, "weight_decay": 0.0, **(responses or {})},
    ]
    groups = [group for group in groups if group["params"]]
    assert spec.lr is not None
    if spec.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=spec.lr, momentum=spec.momentum)
    if spec.optimizer == "variational-adam":
        for group in groups:
            group["prior_precision"] = group.pop("weight_decay")
        return VariationalAdam(groups, lr=spec.lr, num_samples=samples)
    kind = torch.optim.Adam if spec.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr=spec.lr, amsgrad=spec.amsgrad)


SWA_ANNEALING = 5
"""Epochs over which the learning rate goes to that of SWA."""


def lr_scheduler(optimizer: Perturbed, recipe: Recipe, total: int, per_epoch: int) -> LambdaLR:
    """The learning rate's schedule over a run, as a factor of that of the recipe.

    Args:
        optimizer: Whose learning rate it sets.
        recipe: Names the schedule, its warmup, and what is averaged at the end.
        total: Steps of the run.
        per_epoch: Steps of an epoch.
    """
    if recipe.optimizer.optimizer == "gns":
        return LambdaLR(optimizer, lambda step: 1.0)
    spec, swa = recipe.optimizer, recipe.loop.keep == "swa"
    warmup = round(spec.warmup * total)
    turn = int(recipe.loop.average_from * total)
    level = 0.5 if recipe.loop.swa_lr is None else recipe.loop.swa_lr / max(spec.lr or 0, 1e-30)

    def with_swa(step: int) -> float:
        if not swa or step < turn:
            return factor(step)
        annealed = min(1.0, (step - turn) / (SWA_ANNEALING * per_epoch))
        return factor(turn) * (1 - annealed) + level * annealed

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        rest = min(1.0, (step - warmup) / max(1, total - warmup))
        if spec.lr_schedule == "linear":
            return 1 - rest
        if spec.lr_schedule == "cosine":
            return (1 + math.cos(math.pi * rest)) / 2
        if spec.lr_schedule == "step":
            return math.pow(0.1, step // per_epoch // spec.lr_step)
        return 1.0

    return LambdaLR(optimizer, with_swa)
