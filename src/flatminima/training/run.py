"""One run from recipe to results."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Subset

from flatminima.errors import InputError, require
from flatminima.files import write_json
from flatminima.measure import CurvatureReport, curvature
from flatminima.objectives import Supervised
from flatminima.perturb import Perturbed, card, make, options, schedules
from flatminima.training import checkpoint, loop, models
from flatminima.training.batches import batches_per_epoch
from flatminima.training.data.encode import encode
from flatminima.training.data.examples import DataSet
from flatminima.training.data.load import load as load_data
from flatminima.training.data.progress import Progress, silent
from flatminima.training.directory import RunDirectory
from flatminima.training.evaluate import evaluate, loader, to_device
from flatminima.training.logs import Log
from flatminima.training.memory import peak_bytes, reset_peak
from flatminima.training.pretrain import pretrain
from flatminima.training.recipe import OptimizerSpec, Recipe
from flatminima.training.threads import fitting_threads

Say = Callable[[str], None]


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


def finetune(recipe: Recipe, out: Path, *, progress: Progress = silent) -> dict[str, Any]:
    """Start a run, train, measure, and leave its results in a new directory.

    Args:
        recipe: All settings.
        out: The run directory, which must not hold a run.
        progress: Told how far each stage is.

    Returns:
        The content of results.json.

    Raises:
        InputError: something given cannot work.
        Interrupted: Ctrl-C; the run was saved.
    """
    directory = RunDirectory(out)
    accelerator = _accelerator(recipe)
    prepared = prepare(recipe, progress)
    if accelerator.is_main_process:
        directory.create(prepared.recipe)
        write_json(out / "data.json", prepared.data.report)
    with fitting_threads(prepared.built.model):
        return _train_and_measure(prepared, directory, accelerator, None, progress)


def resume(out: Path, *, progress: Progress = silent, say: Say = print) -> dict[str, Any]:
    """Continue a run exactly where its last whole checkpoint stands.

    Raises:
        InputError: there is no run, or none of its checkpoints is whole.
    """
    directory = RunDirectory(out)
    recipe = directory.read_recipe()
    if directory.finished:
        say(f"{out} is finished already")
        return directory.read_results()
    accelerator = _accelerator(recipe)
    found = checkpoint.find(directory.checkpoints) if directory.checkpoints.is_dir() else None
    if found is not None and found.warning:
        say(found.warning)
    prepared = prepare(recipe, progress)
    with fitting_threads(prepared.built.model):
        return _train_and_measure(prepared, directory, accelerator, found, progress)


def job(payload: Mapping[str, Any], directory: Path) -> None:
    """A run as a job of a study: `payload` is a flat recipe. Continues what was left unfinished."""
    if (directory / "recipe.yaml").exists():
        resume(directory, say=_to_stderr)
    else:
        finetune(Recipe.from_flat(payload), directory)


def measure(
    prepared: Prepared,
    model: torch.nn.Module,
    device: torch.device,
    progress: Progress = silent,
) -> CurvatureReport:
    """The curvature of a model's loss on a recipe's training set, as trained on.

    Args:
        prepared: Its recipe says how, its data on what.
        model: The weights in question.
        device: Where to compute.
        progress: Told how far each stage is.
    """
    spec = prepared.recipe.measure
    assert spec.probes is not None
    assert spec.draws is not None
    encoded = encode(prepared.data.train, prepared.data, prepared.built.encoding)
    samples = min(len(encoded), spec.measure_samples or len(encoded))
    chosen = torch.randperm(
        len(encoded), generator=torch.Generator().manual_seed(prepared.recipe.loop.seed)
    )
    part = Subset(encoded, chosen[:samples].sort().values.tolist())
    batches = [to_device(batch, device) for batch in loader(part, prepared.recipe.loop.batch_size)]
    with fitting_threads(model):
        return curvature(
            model.to(device),
            Supervised(),
            batches,
            sigma=spec.measure_sigma,
            probes=spec.probes,
            draws=spec.draws,
            seed=prepared.recipe.loop.seed,
            progress=progress,
        )


def _train_and_measure(
    prepared: Prepared,
    directory: RunDirectory,
    accelerator: Any,
    found: checkpoint.Checkpoint | None,
    progress: Progress,
) -> dict[str, Any]:
    reset_peak()
    run = _assemble(prepared, directory, accelerator)
    state = loop.State()
    if found is not None:
        state = loop.load(run, found)
    if accelerator.is_main_process:
        directory.drop_metrics_after(state.step)
    state = loop.train(run, state, progress)
    run.log.close()
    peak = peak_bytes()
    model = accelerator.unwrap_model(run.model)
    if prepared.recipe.loop.keep == "best":
        checkpoint.read(directory.checkpoints / "best").load_model(model)
    if not accelerator.is_main_process:
        return {}
    test = encode(prepared.data.test, prepared.data, prepared.built.encoding)
    batches = loader(test, prepared.recipe.loop.batch_size)
    score = evaluate(model, batches, accelerator.device)
    metrics: dict[str, Any] = {"test_accuracy": score.accuracy, "test_loss": score.loss}
    report = None
    if prepared.recipe.measure.measure:
        report = measure(prepared, model, accelerator.device, progress)
        metrics |= headline(report)
    metrics |= {
        "gradients": state.gradients,
        "gradients_per_step": state.gradients / state.step,
        "seconds_per_step": state.seconds / state.step,
        "peak_bytes": peak,
    }
    results = {
        "task": prepared.data.name,
        "method": prepared.recipe.perturb.perturb,
        "seed": prepared.recipe.loop.seed,
        "metrics": metrics,
        "steps": state.step,
        "skipped_steps": state.skipped,
        "stopped_early": state.stopped_early,
        "curvature": None if report is None else report.to_dict(),
        "data": prepared.data.report,
    }
    write_json(directory.path / "results.json", results)
    return results


def headline(report: CurvatureReport) -> dict[str, float]:
    """The numbers of a curvature report that a comparison is about."""
    numbers = {
        "train_loss": report.loss,
        "hessian_trace": report.trace.value,
        "top_eigenvalue": report.top_eigenvalue.value,
    }
    if report.perturbation_gap is not None:
        numbers["perturbation_gap"] = report.perturbation_gap.value
    return numbers


def _assemble(prepared: Prepared, directory: RunDirectory, accelerator: Any) -> loop.Run:
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
    optimizer = perturbed(base, recipe, epochs * per_epoch, per_epoch)
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


def perturbed(
    base: torch.optim.Optimizer, recipe: Recipe, total_steps: int, steps_per_epoch: int
) -> Perturbed:
    """The recipe's method around a base optimizer.

    Raises:
        InputError: the recipe sets an option that the method does not have.
    """
    spec = recipe.perturb
    name = spec.perturb
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
        size = getattr(spec, strength)
        given |= {strength: size, "seed": recipe.loop.seed} if "seed" in takes else {strength: size}
        given["schedule"] = {
            "constant": schedules.constant(),
            "linear": schedules.linear(total_steps, every=steps_per_epoch),
            "exponential": schedules.exponential(
                total_steps, every=steps_per_epoch, start=min(1.0, 1e-5 / max(size, 1e-5))
            ),
        }[spec.strength_schedule]
    return make(name, base, **given)


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


def _accelerator(recipe: Recipe) -> Any:
    """Hugging Face's accelerator: device, processes, mixed precision."""
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


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr)


def is_main_process() -> bool:
    """Whether this is the first of the processes that torchrun started."""
    return int(os.environ.get("RANK", "0")) == 0
