"""What a run works with, and how far it has come."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from flatminima.measure import LiveTrace
from flatminima.objectives import Objective, Remembering
from flatminima.perturb import Perturbed
from flatminima.reparam import Reparam
from flatminima.training.averaging import Average
from flatminima.training.batches import batches_per_epoch
from flatminima.training.directory import RunDirectory
from flatminima.training.logs import Log
from flatminima.training.self_tuned import SelfTunedRun
from flatminima.training.specs import LoopSpec
from flatminima.training.tasks import Classification, Task


@dataclass
class State:
    """How far a run has come; it is checkpointed, and nothing else is needed beside the tensors.

    Attributes:
        step: Steps taken, skipped ones included.
        gradients: Gradients computed, in batches.
        seconds: Time spent in steps.
        skipped: Steps left out because a loss or gradient was not finite.
        best_score: Best validation score so far, such that more is better.
        best_step: The step it was reached at.
        stale_epochs: Epochs since then.
        stopped_early: Whether that ended the run.
    """

    step: int = 0
    gradients: float = 0.0
    seconds: float = 0.0
    skipped: int = 0
    best_score: float = -math.inf
    best_step: int = 0
    stale_epochs: int = 0
    stopped_early: bool = False


@dataclass
class Run:
    """What a run works with.

    Attributes:
        accelerator: Of Hugging Face accelerate: device, processes, mixed precision.
        model: As prepared by the accelerator.
        optimizer: Decides where gradients are taken.
        scheduler: Of the learning rate, stepped after each step.
        objective: What is minimized.
        train: Encoded training set.
        validation: Encoded validation set; None where there is none.
        spec: The loop's settings, defaults filled in.
        max_grad_norm: Clips the averaged gradient; None does not.
        total_steps: When to end.
        directory: Where to write; None on processes that write nothing.
        log: Takes the records of steps and epochs.
        companions: Writes what belongs beside the weights of a checkpoint.
        average: Gathers the mean of the weights; None where none is kept.
        meter: Reads the Hessian's trace off the passes; None where none is asked for.
        reparam: Which weights are free, and where.
        task: How a model is scored.
        remembering: The objective, where it remembers samples from step to step.
        tuned: What tunes it while it trains; None where nothing does.
        look: Given the number of an epoch that has ended, what is to be logged of it too.
    """

    accelerator: Any
    model: nn.Module
    optimizer: Perturbed
    scheduler: LambdaLR
    objective: Objective
    train: Any
    validation: Any | None
    spec: LoopSpec
    max_grad_norm: float | None
    total_steps: int
    directory: RunDirectory
    log: Log
    companions: Callable[[Path], None]
    average: Average | None = None
    meter: LiveTrace | None = None
    reparam: Reparam | None = None
    task: Task = field(default_factory=Classification)
    remembering: Remembering | None = None
    tuned: SelfTunedRun | None = None
    look: Callable[[int], dict[str, float]] = lambda epoch: {}

    def __post_init__(self) -> None:
        # accelerate steps the optimizer through this, for its gradient scaler.
        self.stepper = self.accelerator.prepare_optimizer(self.optimizer)
        self.parameters = [p for g in self.optimizer.param_groups for p in g["params"]]
        self.per_epoch = batches_per_epoch(
            len(self.train), self.spec.batch_size, self.accelerator.num_processes
        )
