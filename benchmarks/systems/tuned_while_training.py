"""Knobs of a run set while training, by MAID, by a sweep or not at all, at equal gradients.

A sweep of whole runs stands beside them, at four times their cost.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from flatminima.study import mean_ci, paired
from flatminima.training.knobs import asked_knobs, with_values
from flatminima.training.prepared import prepare
from flatminima.training.recipe import Recipe
from flatminima.training.run import finetune
from flatminima.training.settled import grid

DIGITS = {"data": "digits", "validation_fraction": 0.4, "epochs": 60}
PYDOCS = {"data": "pydocs", "model": "bert-small", "train_size": 200, "max_length": 16}
PYDOCS |= {"validation_fraction": 0.2, "epochs": 15, "lr": 1e-3}
PENALTY_TUNERS, STRENGTH_TUNERS = ("stn", "maid", "sweep"), ("stn", "sweep")
TASKS: dict[str, dict[str, Any]] = {
    "digits, sigma of NSO": {
        "recipe": {**DIGITS, "perturb": "nso"},
        "tune": "sigma",
        "tuners": STRENGTH_TUNERS,
    },
    "digits, weight decay": {
        "recipe": DIGITS,
        "tune": "weight_decay",
        "tuners": PENALTY_TUNERS,
    },
    "pydocs, sigma of NSO": {
        "recipe": {**PYDOCS, "perturb": "nso"},
        "tune": "sigma",
        "tuners": STRENGTH_TUNERS,
    },
    "pydocs, weight decay": {
        "recipe": PYDOCS,
        "tune": "weight_decay",
        "tuners": PENALTY_TUNERS,
    },
}
SEEDS, TRIALS = 10, 4
METRICS = ("validation_loss", "test_loss", "test_accuracy")
WORDS = {
    "none": "defaults",
    "stn": "tuned while training (`stn`)",
    "maid": "by `maid` on the head, before",
    "sweep": "by a sweep of 4, before",
    "whole": "by a sweep of 4 whole runs",
}


def run(tasks: tuple[str, ...] = tuple(TASKS)) -> dict:
    torch.set_num_threads(1)
    found: dict = {}
    for name in tasks:
        task = TASKS[name]
        runs = []
        for number in range(SEEDS):
            runs.append(seed(task, number))
            print(name, number, flush=True)
        found[name] = {"runs": runs, "paired": _compared(runs)}
    return {"tasks": found}


def seed(task: dict, number: int) -> dict:
    """All tuners on one seed; what is not tuned while training trains longer, at equal cost."""
    recipe = {**task["recipe"], "seed": number}
    tuned = _run({**recipe, "tune": task["tune"]})
    passes = 2 if recipe.get("perturb") == "nso" else 1
    more = tuned["gradients"] / (tuned["steps"] * passes)
    recipe["epochs"] = round(recipe["epochs"] * more)
    found = {"none": _run(recipe), "stn": tuned}
    for tuner in task["tuners"]:
        if tuner != "stn":
            found[tuner] = _run({**recipe, "tune": task["tune"], "tuner": tuner})
    found["whole"] = _best_of_whole_runs(recipe, task["tune"])
    return found


def _best_of_whole_runs(recipe: dict, knob: str) -> dict:
    """The run that validates best, each with a value of the grid; all of them are its cost."""
    resolved = prepare(Recipe.from_flat({**recipe, "tune": knob})).recipe
    trials = []
    for values in grid(asked_knobs(resolved), TRIALS):
        flat = with_values(Recipe.from_flat(recipe), values).flat()
        trials.append({**_run(flat), "value": values[knob]})
    best = min(trials, key=lambda trial: trial["validation_loss"])
    return {**best, "gradients": sum(trial["gradients"] for trial in trials)}


def _run(values: dict) -> dict:
    values = {**values, "measure": False, "keep_checkpoints": False}
    with tempfile.TemporaryDirectory() as folder:
        results = finetune(Recipe.from_flat(values), Path(folder) / "run", say=lambda text: None)
    metrics, tuned = results["metrics"], results.get("tuned", {})
    trials = sum(trial["gradients"] for trial in tuned.get("trials", []))
    return {
        **{name: metrics[name] for name in METRICS},
        "gradients": metrics["gradients"] + trials,
        "steps": results["steps"],
        "value": next(iter(tuned.get("values", {}).values()), None),
    }


def _compared(runs: list[dict]) -> dict:
    """Tuned while training less each other; below 0 its loss is lower."""
    return {
        other: {
            metric: paired(
                {i: r["stn"][metric] for i, r in enumerate(runs)},
                {i: r[other][metric] for i, r in enumerate(runs)},
            ).to_dict()
            for metric in METRICS
        }
        for other in runs[0]
        if other != "stn"
    }


def table(found: dict) -> str:
    return "\n\n".join(_one(name, task) for name, task in found["tasks"].items())


def _one(name: str, task: dict) -> str:
    runs = task["runs"]
    lines = [
        f"### {name[0].upper()}{name[1:]}, {len(runs)} seeds",
        "",
        "| | value: smallest, median, largest | gradients | validation loss | test loss | "
        "test accuracy |",
        "|---|---|---|---|---|---|",
    ]
    for tuner in runs[0]:
        values = sorted(r[tuner]["value"] for r in runs if r[tuner]["value"] is not None)
        shown = "; ".join(f"{v:.2g}" for v in _three(values)) if values else ""
        cost = mean_ci(r[tuner]["gradients"] for r in runs).mean
        cells = [_mean([r[tuner] for r in runs], metric) for metric in METRICS]
        lines.append(f"| {WORDS[tuner]} | {shown} | {cost:.0f} | {' | '.join(cells)} |")
    lines += [
        "",
        "| tuned while training, less | validation loss | test loss | test accuracy |",
        "|---|---|---|---|",
    ]
    for other, compared in task["paired"].items():
        cells = [_difference(compared[metric]) for metric in METRICS]
        lines.append(f"| {WORDS[other]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _three(values: list[float]) -> list[float]:
    return [values[0], values[len(values) // 2], values[-1]]


def _mean(runs: list[dict], metric: str) -> str:
    found = mean_ci(run[metric] for run in runs)
    return f"{found.mean:.3f} ± {found.half_width:.3f}"


def _difference(one: dict) -> str:
    low, high = one["t_interval"]
    return f"{one['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"
