"""From a recipe to the parts of a run: data, model, optimizer, schedules, accelerator."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from flatminima.errors import InputError, require
from flatminima.objectives import Supervised
from flatminima.perturb import Perturbed, card, make, options, schedules
from flatminima.training import loop, models
from flatminima.training.batches import batches_per_epoch
from flatminima.training.data.encode import encode
from flatminima.training.data.examples import DataSet
from flatminima.training.data.load import load as load_data
from flatminima.training.data.progress import Progress, silent
from flatminima.training.directory import RunDirectory
from flatminima.training.logs import Log
from flatminima.training.pretrain import pretrain
from flatminima.training.recipe import OptimizerSpec, Recipe, parse_method
from flatminima.training.threads import fitting_threads


@dataclass
class Prepared:
    """A recipe turned into data and model.

    Attributes:
        recipe: With its defaults filled in.
        data: The data set.
        built: The model on the CPU, pretrained, and what it needs of its inputs.
    """

    recipe: Recipe
    data: DataSet
    built: models.Built


def prepare(recipe: Recipe, progress: Progress = silent) -> Prepared:
    """Load the data and build the model of a recipe, from its seed.

    Raises:
        InputError: the data or the model cannot be had, or do not fit.
    """
    seed = recipe.loop.seed
    data = load_data(recipe.data, seed, progress)
    name = recipe.model.model or models.default_model(data)
    torch.manual_seed(seed)
    built = models.build(name, data, new_head=recipe.model.new_head)
    recipe = recipe.but(model=name).resolved(built.family, built.random_weights)
    if built.family == "builtin" and recipe.model.pretrain and data.source is not None:
        with fitting_threads(built.model):
            pretrain(built.model, data, built.encoding, seed)
        torch.manual_seed(seed)  # what follows is the same whether that was cached or not
    return Prepared(recipe, data, built)


def assemble(prepared: Prepared, directory: RunDirectory, accelerator: Any) -> loop.Run:
    """What the loop works with.

    Raises:
        InputError: settings that do not fit the data or each other.
    """
    recipe, data = prepared.recipe, prepared.data
    model = accelerator.prepare_model(prepared.built.model)
    base = _base_optimizer(model, recipe.optimizer)
    per_epoch = batches_per_epoch(
        len(data.train), recipe.loop.batch_size, accelerator.num_processes
    )
    if per_epoch == 0:
        raise InputError(f"{len(data.train)} training samples are too few for the processes")
    epochs = recipe.loop.epochs
    assert epochs is not None
    optimizer = _perturbed(base, recipe, epochs * per_epoch, per_epoch)
    total = epochs * per_epoch
    if recipe.loop.equal == "gradients":
        total = max(1, round(total / optimizer.gradients_per_step(recipe.loop.batch_size)))
    validation = None
    if len(data.validation):
        validation = encode(data.validation, data, prepared.built.encoding)
    elif recipe.loop.keep == "best" or recipe.loop.early_stopping is not None:
        raise InputError(
            "--keep best and --early-stopping choose by validation accuracy, and "
            f"{data.name} has no validation samples: set --validation-fraction"
        )
    return loop.Run(
        accelerator=accelerator,
        model=model,
        optimizer=optimizer,
        scheduler=_lr_scheduler(optimizer, recipe.optimizer, total),
        objective=Supervised(),
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
    )


def _perturbed(
    base: torch.optim.Optimizer, recipe: Recipe, total_steps: int, steps_per_epoch: int
) -> Perturbed:
    """The recipe's method around a base optimizer.

    Raises:
        InputError: the recipe sets an option that the method does not have.
    """
    spec = recipe.perturb
    name, own = parse_method(spec.perturb)
    strength = card(name).strength
    takes = options(name)
    given: dict[str, Any] = {}
    for option, default in (("num_perturbations", 1), ("clean_weight", 0.0), ("noise", "normal")):
        value = getattr(spec, option)
        if option in takes:
            given[option] = value
        elif value != default:
            raise InputError(f"{name!r} has no option --{option.replace('_', '-')}: leave it out")
    if strength:
        size = own.get(strength, getattr(spec, strength))
        given |= {strength: size, "seed": recipe.loop.seed} if "seed" in takes else {strength: size}
        given["schedule"] = {
            "constant": schedules.constant(),
            "linear": schedules.linear(total_steps, every=steps_per_epoch),
            "exponential": schedules.exponential(
                total_steps, every=steps_per_epoch, start=_exponential_start(size)
            ),
        }[spec.strength_schedule]
    return make(name, base, **{**given, **own})


def check_method(asked: str) -> None:
    """Find what is wrong with a method and its options before anything is run.

    Raises:
        InputError: no such method or option, or a value out of its range.
    """
    name, own = parse_method(asked)
    strength = card(name).strength
    default = {strength: 0.1} if strength else {}
    weight = torch.nn.Parameter(torch.zeros(1))
    make(name, torch.optim.SGD([weight], lr=1.0), **{**default, **own})


def _exponential_start(strength: Any) -> float:
    """The factor that starts at 1e-5, as the released code of the NSO paper does."""
    known = isinstance(strength, (int, float)) and strength > 1e-5
    return 1e-5 / strength if known else 1.0


def _base_optimizer(model: torch.nn.Module, spec: OptimizerSpec) -> torch.optim.Optimizer:
    """The base optimizer; weight decay spares biases and norms, as fine-tuning does."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.dim() > 1], "weight_decay": spec.weight_decay},
        {"params": [p for p in trainable if p.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    assert spec.lr is not None
    if spec.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=spec.lr, momentum=spec.momentum)
    kind = torch.optim.Adam if spec.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr=spec.lr)


def _lr_scheduler(optimizer: Perturbed, spec: OptimizerSpec, total: int) -> LambdaLR:
    warmup = round(spec.warmup * total)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        rest = min(1.0, (step - warmup) / max(1, total - warmup))
        if spec.lr_schedule == "linear":
            return 1 - rest
        if spec.lr_schedule == "cosine":
            return (1 + math.cos(math.pi * rest)) / 2
        return 1.0

    return LambdaLR(optimizer, factor)


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
    if state._shared_state and state().mixed_precision != mixed:
        state._reset_state()
    return accelerate.Accelerator(mixed_precision=mixed, cpu=not cuda)
