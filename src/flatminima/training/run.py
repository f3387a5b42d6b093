"""One run from recipe to results."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from flatminima.errors import InputError
from flatminima.files import write_json
from flatminima.progress import TrainingProgress, silent
from flatminima.training import checkpoint, loop
from flatminima.training.assemble import assemble, make_accelerator
from flatminima.training.curvature import headline, look, measure
from flatminima.training.data.encode import encode
from flatminima.training.directory import RunDirectory
from flatminima.training.interrupts import Interrupted
from flatminima.training.loader import loader
from flatminima.training.memory import peak_bytes, reset_peak
from flatminima.training.predictions import Predictions
from flatminima.training.prepared import Prepared, prepare
from flatminima.training.recipe import Recipe
from flatminima.training.settled import settle
from flatminima.training.state import Run, State
from flatminima.training.threads import fitting_threads

Say = Callable[[str], None]


def finetune(
    recipe: Recipe, out: Path, *, progress: TrainingProgress = silent, say: Say = print
) -> dict[str, Any]:
    """Start a run, train, measure, and leave its results in a new directory.

    Args:
        recipe: All settings.
        out: The run directory, which must not hold a run.
        progress: Told how far each stage is.
        say: Told what a user should read.

    Returns:
        The content of results.json.

    Raises:
        InputError: something given cannot work.
        Interrupted: Ctrl-C; the run was saved.
    """
    directory = RunDirectory(out)
    if is_main_process():
        directory.check_free()
    accelerator = make_accelerator(recipe)
    prepared = prepare(recipe, progress)
    asked = prepared.recipe
    if accelerator.is_main_process:
        directory.create(asked)
        write_json(directory.data, prepared.data.report)
    with fitting_threads(prepared.built.model):
        try:
            prepared = settle(prepared, directory, job, progress)
            run = assemble(prepared, directory, accelerator)
            loop.save(run, State())
        except InputError:
            directory.abandon()
            raise
        return _train_and_measure(prepared, run, State(), progress, say)


CHANGEABLE = ("lr", "max_grad_norm", "on_nan")
"""What may be changed when a run is resumed: how to get past a loss that is not finite."""


def resume(
    out: Path,
    *,
    changes: Mapping[str, Any] | None = None,
    progress: TrainingProgress = silent,
    say: Say = print,
) -> dict[str, Any]:
    """Continue a run exactly where its last whole checkpoint stands.

    Args:
        out: The run directory.
        changes: New values for `CHANGEABLE` fields of the recipe.
        progress: Told how far each stage is.
        say: Told what a user should read.

    Raises:
        InputError: there is no run, none of its checkpoints is whole, its data are not what they
            were, or a change is not possible.
    """
    directory = RunDirectory(out)
    recipe = directory.read_recipe().but(**(changes or {}))
    if directory.finished:
        say(f"{out} is finished already")
        return directory.read_results()
    found = None
    if checkpoint.any_in(directory.checkpoints):
        found = checkpoint.find(directory.checkpoints)
    if found is not None and found.warning:
        say(found.warning)
    accelerator = make_accelerator(recipe)
    if is_main_process():
        checkpoint.set_aside_damaged(directory.checkpoints)
    prepared = prepare(recipe, progress)
    directory.check_data(prepared.data.report)
    asked = prepared.recipe
    with fitting_threads(prepared.built.model):
        prepared = settle(prepared, directory, job, progress)
        run = assemble(prepared, directory, accelerator)
        state = State() if found is None else loop.load(run, found)
        # Also where an earlier resume changed it and ended before it saved.
        rate = prepared.recipe.optimizer.lr
        if rate is not None and rate not in run.scheduler.base_lrs:
            loop.change_learning_rate(run, rate)
        if accelerator.is_main_process:
            directory.write_recipe(asked)
            write_json(directory.data, prepared.data.report)
            directory.drop_metrics_after(state.step)
        return _train_and_measure(prepared, run, state, progress, say)


def job(payload: Mapping[str, Any], directory: Path) -> None:
    """A run as a job of a study: `payload` is a flat recipe. Continues what was left unfinished."""
    if (directory / "recipe.yaml").exists():
        resume(directory, say=_to_stderr)
    else:
        finetune(Recipe.from_flat(payload), directory, say=_to_stderr)


def _train_and_measure(
    prepared: Prepared, run: Run, state: State, progress: TrainingProgress, say: Say
) -> dict[str, Any]:
    run.look = partial(look, prepared, run)
    reset_peak()
    try:
        state = loop.train(run, state, progress)
    except Interrupted:
        _end_processes()
        raise
    run.log.close()
    _end_processes()
    peak = peak_bytes()
    directory, accelerator = run.directory, run.accelerator
    if not accelerator.is_main_process:
        return {}
    model = accelerator.unwrap_model(run.model)
    if prepared.recipe.loop.keep == "best":
        best = checkpoint.find(directory.checkpoints, ("best", "last", "previous"))
        if best.warning:
            say(best.warning)
        best.load_model(model)
        if run.tuned is not None:
            run.tuned.stand_where(model)
    elif run.average is not None:
        model = run.average.finish(loop.full_batches(run), accelerator.device)
        checkpoint.save(
            directory.checkpoints / checkpoint.AVERAGED,
            model,
            None,
            {"step": state.step},
            run.companions,
        )
    if run.reparam is not None and run.reparam.changes_modules:
        run.reparam.write(model, directory.path)
        run.reparam.bake(model)
        progress_of = {"step": state.step}
        checkpoint.save(
            directory.checkpoints / checkpoint.BAKED, model, None, progress_of, run.companions
        )
    metrics: dict[str, Any] = {}
    task, predictions = prepared.task, Predictions(prepared.data)
    for part, examples in (("test", prepared.data.test), ("validation", prepared.data.validation)):
        if len(examples):
            encoded = encode(examples, prepared.data, prepared.built.encoding)
            batches = loader(encoded, prepared.recipe.loop.batch_size)
            saw = predictions.saw if part == "test" else None
            score = task.score(model, batches, accelerator.device, saw)
            metrics |= {f"{part}_{metric}": value for metric, value in score.items()}
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
    }
    tuned = prepared.tuned if run.tuned is None else run.tuned.found()
    if tuned is not None:
        results["tuned"] = tuned
    if run.remembering is not None:
        found = run.remembering.findings(torch.as_tensor(prepared.data.train.targets))
        for name, content in found.items():
            write_json(directory.path / f"{name}.json", content)
    if predictions.taken:
        write_json(directory.path / "predictions.json", predictions.to_dict())
    write_json(directory.path / "results.json", results)
    if not prepared.recipe.loop.keep_checkpoints:
        shutil.rmtree(directory.checkpoints, ignore_errors=True)
    return results


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr)


def is_main_process() -> bool:
    """Whether this is the first of the processes that torchrun started."""
    return int(os.environ.get("RANK", "0")) == 0


def _end_processes() -> None:
    """Leave the process group together; a process that exits within it may be aborted."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
