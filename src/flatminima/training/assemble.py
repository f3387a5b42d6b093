"""From a recipe to the parts of a run: data, model, optimizer, schedules, accelerator."""

from __future__ import annotations

import copy
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR

from flatminima.errors import InputError, require
from flatminima.measure import LiveTrace
from flatminima.objectives import (
    AcrossDomains,
    ConR,
    Contrastive,
    Objective,
    Remembering,
    Setting,
    make_objective,
    objective_card,
    objective_cards,
)
from flatminima.optim import VariationalAdam
from flatminima.perturb import NSO, Perturbed, card, options
from flatminima.progress import Progress, silent
from flatminima.reparam import Reparam, check_reparam, make_reparam
from flatminima.training import models
from flatminima.training.averaging import Average
from flatminima.training.batches import batches_per_epoch
from flatminima.training.brackets import parse_brackets
from flatminima.training.built import Built
from flatminima.training.checkpoint import BAKED, Checkpoint
from flatminima.training.data.augment import views_of
from flatminima.training.data.domains import NAME_DOMAINS as NAMES
from flatminima.training.data.encode import encode
from flatminima.training.data.examples import DataSet
from flatminima.training.data.load import check_augmentation
from flatminima.training.data.load import load as load_data
from flatminima.training.directory import RunDirectory
from flatminima.training.input_noise import NoisyInputs
from flatminima.training.knobs import asked_knobs, check_data
from flatminima.training.language_models import TINY
from flatminima.training.logs import Log
from flatminima.training.methods import (
    SHARED_OPTIONS,
    perturbed,
    specialize,
    strength_schedule,
)
from flatminima.training.pretrain import pretrain
from flatminima.training.prompting import PromptClassifier
from flatminima.training.recipe import Recipe, parse_method
from flatminima.training.self_tuned import (
    RESPONSE,
    SelfTunedRun,
    SelfTunedWeights,
    check_self_tuned,
)
from flatminima.training.specs import LoopSpec, OptimizerSpec
from flatminima.training.state import Run
from flatminima.training.tasks import Task, task_of
from flatminima.training.threads import fitting_threads
from flatminima.tuning import Knob, Knobs

MIXES = "mixes the numbers of two inputs"
KINDS = {
    "mixup": (("image", "vector"), MIXES),
    "cutmix": (("image",), MIXES),
    "conr": (("image", "vector"), "changes the numbers of inputs at random"),
}
"""The kinds of data that some objectives are for, and why."""


@dataclass
class Prepared:
    """A recipe turned into data and model.

    Attributes:
        recipe: With its defaults filled in.
        data: The data set.
        built: The model on the CPU, pretrained, and what it needs of its inputs.
        tuned: What a tuner before the run found; None where none was asked for.
    """

    recipe: Recipe
    data: DataSet
    built: Built
    tuned: dict[str, Any] | None = None

    @property
    def task(self) -> Task:
        """What it is scored by."""
        return task_of(self.data).read_by(self.data, self.built.encoding)


def prepare(recipe: Recipe, progress: Progress = silent) -> Prepared:
    """Load the data and build the model of a recipe, from its seed.

    Raises:
        InputError: the data or the model cannot be had, or do not fit.
    """
    recipe = specialize(recipe)
    own_base = card(parse_method(recipe.perturb.perturb)[0]).base
    seed = recipe.loop.seed
    data = load_data(recipe.data, seed, progress)
    recipe = recipe.but(objective=recipe.objective.objective or task_of(data).objective)
    objective(recipe, data)
    check_reparam_named(recipe)
    name = recipe.model.model or models.default_model(data)
    torch.manual_seed(seed)
    built = models.build(name, data, new_head=recipe.model.new_head)
    places = {"data": recipe.data.data, "model": name}
    recipe = recipe.but(**{key: _absolute(place) for key, place in places.items()})
    recipe = recipe.resolved(built.family, built.random_weights, own_base)
    if recipe.tune.tune:
        check_data(asked_knobs(recipe), data)
    of_ours = built.family == "builtin" or isinstance(built.model, PromptClassifier)
    starts_anew = name == TINY or (of_ours and built.random_weights)
    if starts_anew and recipe.model.pretrain and data.source is not None:
        with fitting_threads(built.model):
            pretrain(built.model, data, built.encoding, seed, task_of(data), progress)
        torch.manual_seed(seed)  # what follows is the same whether that was cached or not
    return Prepared(recipe, data, built)


def _absolute(place: str) -> str:
    """A path that holds wherever a run is resumed from; names and hub ids as they are."""
    prefix, colon, file = place.rpartition("config:")
    path = Path(file).expanduser()
    return f"{prefix}{colon}{path.resolve()}" if path.exists() else place


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
    base = _base_optimizer(model, _but_tuned(recipe), len(data.train), _responses(recipe, knobs))
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
        _check_choosing(recipe, data)
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
        scheduler=_lr_scheduler(optimizer, recipe, total, per_epoch),
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


def objective(recipe: Recipe, data: DataSet) -> Objective:
    """What the recipe minimizes.

    Raises:
        InputError: no such objective, options that it does not have, or data that it is not for.
    """
    name, given = parse_brackets(recipe.objective.objective or task_of(data).objective)
    found = make_objective(name, **given)
    tasks = objective_card(name).tasks
    if data.task not in tasks and name != parse_brackets(task_of(data).objective)[0]:
        fitting = [card.name for card in objective_cards() if data.task in card.tasks]
        raise InputError(
            f"--objective {name} is a loss of {' or '.join(tasks)}, and "
            f"{data.name} is a task of {data.task}: take {' or '.join(fitting)}"
        )
    instead = "squared-error" if data.task == "regression" else "label-smoothing"
    _check_kind(name, data.kind, data.name, instead)
    if isinstance(found, AcrossDomains):
        _check_domains(name, found, data)
    if isinstance(found, ConR):
        # Its window is in the unit of the labels, which the model sees standardized.
        found = found.standardized(data.scale.deviation)
    return found


def check_gathering(minimized: Objective, recipe: Recipe, processes: int) -> None:
    """Refuse what would have processes wait for each other for ever.

    Raises:
        InputError: micro-batches with an objective that gathers samples from several processes.
    """
    gathers = isinstance(minimized, Contrastive) and minimized.gather
    if gathers and processes > 1 and recipe.loop.micro_batch_size is not None:
        raise InputError(
            "the contrastive loss gathers the samples of all processes at each forward pass, and "
            "with --micro-batch-size one may have more of these than another: leave it out, or say "
            "--objective 'contrastive(gather=false)'"
        )


def _check_domains(name: str, asked: AcrossDomains, data: DataSet) -> None:
    """Refuse to compare domains where there are none, or one alone."""
    domains = data.train.domains
    if domains is None:
        raise InputError(f"--objective {name} compares domains, and {data.name} has none: {NAMES}")
    if asked.penalizes and len(present := np.unique(domains)) < 2:
        raise InputError(
            f"--objective {name} compares domains, and the training examples of {data.name} are of "
            f"the single domain {data.domains[present[0]]!r}: give data of more, or take erm"
        )


def reparam(recipe: Recipe, model: torch.nn.Module) -> Reparam:
    """Which weights are free, and where.

    Args:
        recipe: Names it.
        model: Its weights as training begins.

    Raises:
        InputError: no such reparametrization, or options that it does not have.
    """
    knobs = self_tuned_knobs(recipe)
    if knobs:
        return SelfTunedWeights(model, len(knobs), recipe.loop.seed)
    name, given = parse_brackets(recipe.reparam.reparam)
    return make_reparam(name, model, **given)


def self_tuned_knobs(recipe: Recipe) -> dict[str, Knob]:
    """The knobs that are tuned while training, {} where none are.

    Raises:
        InputError: something that cannot be tuned so.
    """
    if not recipe.tune.tune or recipe.tune.tuner != "stn":
        return {}
    check_self_tuned(recipe)
    return asked_knobs(recipe)


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


def restore(prepared: Prepared, found: Checkpoint) -> None:
    """Put a checkpoint's weights into the model, and leave it an ordinary one.

    Raises:
        InputError: the checkpoint is of another model.
    """
    model = prepared.built.model
    if found.folder.name == BAKED:
        found.load_model(model)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about weights that are replaced at once
        free = reparam(prepared.recipe, model)
    found.load_model(model)
    free.bake(model)


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
    )


def for_methods(recipe: Recipe, methods: Sequence[str]) -> dict[str, Recipe]:
    """The recipe of each method of a study, found able to run as far as can be told beforehand.

    An option that the recipe sets for all is left out where a method does not have it.

    Raises:
        InputError: a method, an option, the data or the model cannot be, or an option is set that
            none of the methods has.
    """
    if not methods:
        raise InputError("--perturb names no method: give at least one")
    check_twice(methods)
    for method in methods:
        check_method(recipe, method)
    said = recipe.flat()
    takes = {method: options(parse_method(method)[0]) for method in methods}
    for option, default in SHARED_OPTIONS.items():
        if said[option] != default and not any(option in known for known in takes.values()):
            raise InputError(
                f"none of {', '.join(methods)} has an option --{option.replace('_', '-')}"
            )
    prepared = prepare(recipe.but(pretrain=False, perturb="plain", tune=None, **SHARED_OPTIONS))
    recipes = {}
    for method, known in takes.items():
        foreign = {k: v for k, v in SHARED_OPTIONS.items() if k not in known}
        recipes[method] = recipe.but(perturb=method, **foreign)
        shared = {k: said[k] for k in (*SHARED_OPTIONS, "optimizer", "lr")}
        ready = specialize(prepared.recipe.but(perturb=method, **{**shared, **foreign}))
        family, random_weights = prepared.built.family, prepared.built.random_weights
        ready = ready.resolved(family, random_weights, card(parse_method(method)[0]).base)
        perturbed(_base_optimizer(torch.nn.Linear(1, 1), ready.optimizer, samples=1), ready)
        check_augmentation(ready.data.augment, prepared.data)
        objective(ready, prepared.data)
        ready = ready.but(tune=ready.tune.tune or said["tune"])
        if ready.tune.tune:
            check_data(asked_knobs(ready), prepared.data)
            self_tuned_knobs(ready)
        if ready.reparam.reparam != "none":
            reparam(ready, copy.deepcopy(prepared.built.model))
        if not len(prepared.data.validation):
            _check_choosing(ready, prepared.data)
    return recipes


def check_twice(methods: Sequence[str]) -> None:
    """Refuse a method that is given twice, by an alias too.

    Raises:
        InputError: one is.
    """
    meant = {(card(name).name, str(own)) for name, own in map(parse_method, methods)}
    if len(meant) < len(methods):
        raise InputError(f"--perturb names a method twice: {', '.join(methods)}")


def check_method(recipe: Recipe, method: str) -> None:
    """Refuse what no data could save, before any are read: names, options, contradictions.

    Raises:
        InputError: no such method, objective or reparametrization, or an option that it does not
            have; a value out of range; what the recipe says of its data does not go with it.
    """
    name, _ = parse_method(method)
    known = options(name)
    foreign = {k: v for k, v in SHARED_OPTIONS.items() if k not in known}
    ready = specialize(recipe.but(perturb=method, **foreign))
    ready = ready.resolved("transformers", True, card(name).base)
    perturbed(_base_optimizer(torch.nn.Linear(1, 1), ready.optimizer, samples=1), ready)
    check_reparam_named(ready)
    text = ready.data.text_column is not None and ready.data.image_column is None
    if ready.objective.objective is not None:
        objective_name, given = parse_brackets(ready.objective.objective)
        make_objective(objective_name, **given)
        if text:
            _check_kind(objective_name, "text", ready.data.data)
    if text and ready.data.augment != "none":
        raise InputError(
            f"--augment {ready.data.augment} changes images, and --text-column says that "
            f"{ready.data.data} holds texts: leave it out"
        )
    if ready.data.task == "regression" and ready.data.label_noise:
        raise InputError(
            "--label-noise draws classes anew, and --task is regression: leave one out"
        )


def check_reparam_named(recipe: Recipe) -> None:
    """Refuse a reparametrization that does not exist, or options that it does not have.

    Raises:
        InputError: as said.
    """
    name, given = parse_brackets(recipe.reparam.reparam)
    check_reparam(name, **given)


def _check_kind(name: str, kind: str, source: str, instead: str = "label-smoothing") -> None:
    """Refuse an objective that is not for data of a kind."""
    kinds, why = KINDS.get(objective_card(name).name, ((kind,), ""))
    if kind not in kinds:
        raise InputError(
            f"--objective {name} {why}, and {source} holds {kind}s: take another, such as {instead}"
        )


def _check_choosing(recipe: Recipe, data: DataSet) -> None:
    """Refuse to choose by validation where there are no validation samples."""
    if recipe.loop.keep == "best" or recipe.loop.early_stopping is not None:
        raise InputError(
            "--keep best and --early-stopping choose by validation score, and "
            f"{data.name} has no validation samples: set --validation-fraction"
        )


def _base_optimizer(
    model: torch.nn.Module,
    spec: OptimizerSpec,
    samples: int,
    responses: dict[str, Any] | None = None,
) -> torch.optim.Optimizer:
    """The base optimizer; weight decay spares biases and norms, as fine-tuning does.

    `responses` are the settings of the parameters that only answer to knobs, where there are some.
    """
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


def _lr_scheduler(optimizer: Perturbed, recipe: Recipe, total: int, per_epoch: int) -> LambdaLR:
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
