"""From data and model to the parts of a run: optimizer, schedules, accelerator."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from flatminima.errors import InputError, require
from flatminima.measure import LiveTrace
from flatminima.objectives import ConR, Remembering, Setting
from flatminima.perturb import NSO, Perturbed, card
from flatminima.reparam import Reparam
from flatminima.training.averaging import Average
from flatminima.training.batches import batches_per_epoch
from flatminima.training.data.augment import views_of
from flatminima.training.data.encode import encode
from flatminima.training.directory import RunDirectory
from flatminima.training.input_noise import NoisyInputs
from flatminima.training.logs import Log
from flatminima.training.methods import perturbed, strength_schedule
from flatminima.training.minimized import check_gathering, objective
from flatminima.training.named import check_choosing
from flatminima.training.optimizers import base_optimizer, lr_scheduler
from flatminima.training.prepared import Prepared
from flatminima.training.recipe import Recipe, parse_method
from flatminima.training.reparametrized import reparam, self_tuned_knobs
from flatminima.training.self_tuned import SelfTunedRun
from flatminima.training.specs import LoopSpec, OptimizerSpec
from flatminima.training.state import Run
from flatminima.tuning import Knob, Knobs


def assemble(prepared: Prepared, directory: RunDirectory, accelerator: Any) -> Run:
    """What the loop works with.

    Raises:
        InputError: settings that do not fit the data or each other.
    """
    recipe, data = prepared.recipe, prepared.data
    # Parameters that it adds must be there before they are shared among processes and optimized.
    free = reparam(recipe, prepared.built.model.to(accelerator.device))
    model = accelerator.prepare_model(prepared.built.model)
    knobs = self_tuned_knobs(recipe)
    base = base_optimizer(model, _but_tuned(recipe), len(data.train), _responses(recipe, knobs))
    per_epoch = batches_per_epoch(
        len(data.train), recipe.loop.batch_size, accelerator.num_processes
    )
    if per_epoch == 0:
        raise InputError(f"{len(data.train)} training samples are too few for the processes")
    epochs = recipe.loop.epochs
    assert epochs is not None
    optimizer = perturbed(base, recipe)
    optimizer.scaler = accelerator.scaler  # some methods must know how gradients are scaled
    total = epochs * per_epoch
    if recipe.loop.equal == "gradients":
        total = max(1, round(total / optimizer.gradients_per_step(recipe.loop.batch_size)))
    # Only now: a schedule that starts at 0 would make the first step, and so all, look cheap.
    optimizer.schedule = strength_schedule(optimizer, recipe, total, per_epoch)
    minimized = objective(recipe, data)
    if isinstance(minimized, ConR) and not prepared.built.encoding.flatten:
        minimized.views = views_of(data, prepared.built.encoding)
    remembering = minimized if isinstance(minimized, Remembering) else None
    if remembering is not None:
        bare = accelerator.unwrap_model(model)
        remembering.begin(Setting(len(data.train), data.outputs, total, per_epoch, bare))
        remembering.to(accelerator.device)
    check_gathering(minimized, recipe, accelerator.num_processes)
    if recipe.objective.input_noise:
        minimized = NoisyInputs(minimized, recipe.objective.input_noise)
    validation = None
    if len(data.validation):
        validation = encode(data.validation, data, prepared.built.encoding)
    else:
        check_choosing(recipe, data.name)
    tuned = None
    if knobs:
        tuned = SelfTunedRun(
            accelerator,
            accelerator.unwrap_model(model),
            optimizer,
            Knobs(knobs, device=accelerator.device, seed=recipe.loop.seed, from_start=True),
            minimized,
            prepared.task.loss,
            validation,
            recipe,
            total,
        )
        minimized = tuned.objective
    return Run(
        accelerator=accelerator,
        model=model,
        optimizer=optimizer,
        scheduler=lr_scheduler(optimizer, recipe, total, per_epoch),
        objective=free.objective(minimized),
        reparam=free,
        task=prepared.task,
        remembering=remembering,
        tuned=tuned,
        train=encode(data.train, data, prepared.built.encoding, augment=True),
        validation=validation,
        spec=recipe.loop,
        max_grad_norm=recipe.optimizer.max_grad_norm,
        total_steps=total,
        directory=directory,
        log=Log(
            directory if accelerator.is_main_process else None, tensorboard=recipe.loop.tensorboard
        ),
        companions=prepared.built.companions,
        average=_average(accelerator.unwrap_model(model), recipe.loop, total, per_epoch, free),
        meter=_meter(optimizer, recipe.loop) if recipe.loop.live_trace else None,
    )


def _responses(recipe: Recipe, knobs: Mapping[str, Knob]) -> dict[str, Any] | None:
    """The settings of the responses: noise is of the weights that they make, so not of them."""
    if not knobs:
        return None
    strength = card(parse_method(recipe.perturb.perturb)[0]).strength
    return {strength: 0.0} if strength else {"weight_decay": 0.0}


def _but_tuned(recipe: Recipe) -> OptimizerSpec:
    """The optimizer's settings, without a weight decay that is tuned in the loss."""
    tuned = "weight_decay" in self_tuned_knobs(recipe)
    return recipe.but(weight_decay=0.0).optimizer if tuned else recipe.optimizer


def _meter(optimizer: Perturbed, spec: LoopSpec) -> LiveTrace | None:
    """What reads the trace off the passes; of the methods of a study, some say nothing of it."""
    if not isinstance(optimizer, NSO) or optimizer.scale.name != "absolute":
        return None
    return LiveTrace(optimizer, every=spec.live_trace_every)


def _average(
    model: torch.nn.Module, spec: LoopSpec, total: int, per_epoch: int, free: Reparam
) -> Average | None:
    """What gathers the mean of the weights, where the recipe keeps one."""
    if spec.keep not in ("swa", "ema"):
        return None
    return Average(
        model,
        decay=spec.ema_decay if spec.keep == "ema" else None,
        start=int(spec.average_from * total),
        total=total,
        per_epoch=per_epoch,
        frozen_statistics=free.freezes_statistics,
        bake=free.bake if free.averages_baked else None,
    )


def make_accelerator(recipe: Recipe) -> Any:
    """Hugging Face's accelerator: device, processes, mixed precision.

    Raises:
        InputError: a precision that this machine does not have.
    """
    accelerate = require("accelerate", "cli")
    precision = recipe.loop.precision
    cuda = torch.cuda.is_available()
    if precision == "fp16" and not cuda:
        raise InputError("--precision fp16 needs a GPU: use bf16 on this machine")
    state = accelerate.state.AcceleratorState
    mixed = "no" if precision == "fp32" else precision
    # The state is one per process, and a worker of a study runs recipes of its own precision each.
    ended = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.distributed.is_initialized()
    if state._shared_state and (ended or state().mixed_precision != mixed):
        state._reset_state(reset_partial_state=ended)
    return accelerate.Accelerator(mixed_precision=mixed, cpu=not cuda)
