"""Knobs that are set before a run begins: by MAID on the head's features, or by a sweep."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from flatminima.errors import InputError
from flatminima.files import read_json, write_json
from flatminima.progress import Progress
from flatminima.training.data.encode import encode
from flatminima.training.directory import RunDirectory
from flatminima.training.interrupts import Interrupted
from flatminima.training.knobs import asked_knobs, with_values
from flatminima.training.loader import loader
from flatminima.training.loop import NonFinite
from flatminima.training.prepared import Prepared
from flatminima.training.recipe import Recipe
from flatminima.tuning import Knob, tune_penalties

Job = Callable[[Mapping[str, Any], Path], None]
"""Trains a flat recipe in a directory, or goes on with what was left there."""


def settle(prepared: Prepared, directory: RunDirectory, train: Job, progress: Progress) -> Prepared:
    """Set the knobs that are tuned before a run; once found they are kept in `tuned.json`.

    Args:
        prepared: The model as it begins; left as it was.
        directory: Of the run.
        train: Runs a trial.
        progress: Told how far it is.

    Raises:
        InputError: a knob that the tuner cannot set, too few epochs to share, or no trial that
            validates.
    """
    tune = prepared.recipe.tune
    if not tune.tune or tune.tuner == "stn":
        return prepared
    if directory.tuned.is_file():
        found = read_json(directory.tuned)
    elif tune.tuner == "maid":
        found = _by_maid(prepared, progress)
    else:
        found = _by_sweep(prepared, directory, train, progress)
    recipe = with_values(prepared.recipe, found["values"])
    if tune.tuner == "sweep":
        recipe = recipe.but(epochs=found["epochs"])
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        if torch.distributed.get_rank():
            return replace(prepared, recipe=recipe, tuned=found)
    write_json(directory.tuned, found)
    return replace(prepared, recipe=recipe, tuned=found)


def _by_maid(prepared: Prepared, progress: Progress) -> dict[str, Any]:
    recipe, data = prepared.recipe, prepared.data
    if data.task != "classification":
        raise InputError(f"--tuner maid tunes the head of a classifier, and {data.name} is none")
    knobs = asked_knobs(recipe)
    parts = [
        loader(encode(part, data, prepared.built.encoding), 256)
        for part in (data.train, data.validation)
    ]
    starts = {name: knob.start for name, knob in knobs.items()}
    if recipe.optimizer.weight_decay:
        # Not tuned, it is still part of the head's problem.
        starts.setdefault("weight_decay", recipe.optimizer.weight_decay)
    found = tune_penalties(
        prepared.built.model, *parts, knobs=list(knobs), start=starts, progress=progress
    )
    return {
        "tuner": "maid",
        "values": found.penalties,
        "head": found.head,
        "validation_of_head": [found.start, found.validation],
        "products": found.descent.products,
        "certified": found.descent.certified,
        "stopped": found.descent.stopped,
    }


def _by_sweep(
    prepared: Prepared, directory: RunDirectory, train: Job, progress: Progress
) -> dict[str, Any]:
    """A grid of runs that share the epochs with the one that follows."""
    recipe = prepared.recipe
    points = grid(asked_knobs(recipe), recipe.tune.tune_trials)
    assert recipe.loop.epochs is not None
    epochs = recipe.loop.epochs // (len(points) + 1)
    if not epochs:
        raise InputError(
            f"--epochs {recipe.loop.epochs} are shared by {len(points)} trials and the run itself: "
            "give more epochs, or fewer --tune-trials"
        )
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        raise InputError("--tuner sweep runs its trials in one process: start it without torchrun")
    trials: list[dict[str, Any]] = []
    for i, values in enumerate(points):
        progress("trials", i, len(points))
        folder = directory.trials / str(i)
        try:
            train(_trial(recipe, values, epochs), folder)
        except Interrupted:
            raise Interrupted(
                f"stopped in trial {i + 1} of {len(points)}, saved; continue with: "
                f"flatminima finetune --resume {directory.path}"
            ) from None
        except NonFinite:
            trials.append({"values": values, "validation_loss": None, "gradients": _spent(folder)})
            continue
        metrics = read_json(folder / "results.json")["metrics"]
        loss = metrics["validation_loss"]
        trials.append(
            {"values": values, "validation_loss": loss, "gradients": metrics["gradients"]}
        )
    finite = [t for t in trials if t["validation_loss"] is not None]
    if not finite:
        raise InputError("no trial has a finite validation loss: give the knobs lower bounds")
    best = min(finite, key=lambda t: t["validation_loss"])
    return {"tuner": "sweep", "values": best["values"], "epochs": epochs, "trials": trials}


def _spent(folder: Path) -> float:
    """The gradients of a trial that ended before its results."""
    metrics = RunDirectory(folder).metrics
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else []
    records = [json.loads(line) for line in lines]
    return max((record.get("gradients", 0.0) for record in records), default=0.0)


def grid(knobs: Mapping[str, Knob], trials: int) -> list[dict[str, float]]:
    """At most so many points, as many values of each knob as fit, evenly within its bounds.

    Evenly on the knob's own scale, and in the middle of equal parts, since the bounds themselves
    are never reached. A knob without an upper bound has no such parts.
    """
    each = int(trials ** (1 / len(knobs)) + 1e-9)
    if each < 2:
        raise InputError(
            f"--tune-trials {trials} are too few for two values of each of {len(knobs)} knobs: "
            f"give {2 ** len(knobs)} or more"
        )
    parts = [(i + 0.5) / each for i in range(each)]
    values = {
        name: [knob.value(torch.tensor(part).double().logit()).item() for part in parts]
        for name, knob in knobs.items()
    }
    return [dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())]


def _trial(recipe: Recipe, values: Mapping[str, float], epochs: int) -> dict[str, Any]:
    return (
        with_values(recipe, values)
        .but(epochs=epochs, measure=False, keep_checkpoints=False, live_trace=False)
        .flat()
    )
