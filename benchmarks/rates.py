"""What the experiment on rates keeps, and its table: squared gradients beside their bound."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from flatminima.files import read_json
from flatminima.study import mean_ci
from flatminima.study.numbers import with_error
from flatminima.training.directory import RunDirectory
from flatminima.training.recipe import parse_method


def kept(folder: Path) -> dict[str, Any]:
    """For each method and seed the mean squared gradient, its late part, and the bound."""
    found: dict[str, Any] = {}
    for method in read_json(folder / "study.json")["methods"]:
        runs = sorted((folder / method.replace(":", ",")).glob("seed-*"))
        found[method] = [_one(run) for run in runs]
    return found


def _one(run: Path) -> dict[str, float]:
    """Of one run; C being at most 1, the bound is 2 D^2 / (eta T) + eta sigma^2 d / k."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    squared = [r["validation_squared_gradient"] for r in lines if "validation_loss" in r]
    recipe, details = RunDirectory(run).read_recipe(), read_json(run / "data.json")["details"]
    rate, sigma = recipe.optimizer.lr, recipe.perturb.sigma
    assert rate is not None
    assert sigma is not None
    draws = parse_method(recipe.perturb.perturb)[1].get("num_perturbations", 1)
    d = int(recipe.data.data.partition("d=")[2].partition(";")[0])
    noise = sigma**2 * d / draws
    return {
        "mean": float(np.mean(squared)),
        "late": float(np.mean(squared[len(squared) // 2 :])),
        "bound": 2 * details["range"] / (rate * len(squared)) + rate * noise,
    }


def table(found: dict[str, Any]) -> str:
    """A row for each method; in thousandths."""
    lines = [
        "| method | mean over the run, x 1000 | mean of the later half, x 1000 | bound, x 1000 | "
        "runs above it |",
        "| :-- | --: | --: | --: | --: |",
    ]
    for method, runs in found.items():
        cells = [f"`{method}`"]
        for what in ("mean", "late", "bound"):
            mean = mean_ci([run[what] for run in runs])
            cells.append(with_error(mean.mean, mean.interval, 1000))
        cells.append(str(sum(run["mean"] > run["bound"] for run in runs)))
        lines.append(f"| {' | '.join(cells)} |")
    seeds = len(next(iter(found.values())))
    return "\n".join([*lines, "", f"Squared norm of the gradient of F; {seeds} seeds.", ""])
