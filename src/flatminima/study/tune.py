"""Which sigma, or which rho: a sweep that is decided by validation loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flatminima.errors import InputError
from flatminima.files import write_json, write_text
from flatminima.study.jobs import Job, Outcome, run_jobs
from flatminima.study.runs import Runs, check_counts, check_free, run_methods
from flatminima.study.summary import summarize
from flatminima.study.sweep_table import sweep_markdown
from flatminima.training.checks import for_methods
from flatminima.training.data.load import load
from flatminima.training.methods import tuned_strength
from flatminima.training.prepared import prepare
from flatminima.training.recipe import Recipe

PLAIN = "plain"
VALIDATION_FRACTION = 0.2
"""Of the training samples, where the data set by itself keeps none for validation."""

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""The values of a sweep for which none are given, times the start value."""

REPORTED = (
    "validation_loss",
    "validation_recall",
    "validation_accuracy",
    "validation_mae",
    "hessian_trace",
)


def tune_sigma(
    recipe: Recipe,
    method: str,
    values: Sequence[float] | None = None,
    seeds: int = 3,
    *,
    out: Path,
    workers: int | None = None,
    ray: str | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    on_outcome: Callable[[Outcome], None] | None = None,
) -> dict[str, Any]:
    """Sweep a method's strength, sigma or rho, and choose by mean validation loss.

    Each value trains once for each seed, and so does plain training, the value 0. The best value is
    that of the lowest mean; a tie is a value whose paired difference to the best has a 95 %
    Student's t interval (over seeds, not corrected for the choice) with 0 in it. Test samples play
    no part. Called again, finished runs are kept.

    Args:
        recipe: What all runs have in common; its seed is the first, its sigma and rho are not used.
            Where the data keep no samples for validation, a fifth of the training samples is taken
            away for it.
        method: As on the command line, without its strength: `nso`, `nso:interval=2`.
        values: Of sigma or rho, above 0. Default: 1/4, 1/2, 1, 2 and 4 times the start value of
            `start_value`, for a method of sigma; times the recipe's default, for one of rho.
        seeds: How many, counted up from the recipe's.
        out: Where to write; `tune.json` and `table.md` among it.
        workers: Processes; default: one for each core.
        ray: The address of a Ray cluster to run on instead.
        progress: Told how many runs are done.
        on_outcome: Told of each run as it ends.

    Returns:
        The content of `tune.json`: "task", "method", "strength", "seeds"; "values", for each, 0
        first, its "value", the mean, interval and values of what was measured, the paired
        "difference" in validation loss to the best, and whether it is "tied" with it (null for one
        seed; false where a seed failed or diverged, which is not chosen either); "best"; "edge",
        whether the best is the smallest or largest value tried; "start", the start value or null;
        "validation", how many samples, and the fraction if it was chosen here; "failed".

    Raises:
        InputError: something given cannot work, `out` holds something else, or no value ran on
            every seed.
    """
    check_counts(seeds, workers)
    strength = tuned_strength(method)
    check_free(out)
    recipe, validation = _with_validation(recipe.but(sigma=None, rho=None))
    start = None
    if values is None:
        for_methods(recipe, [method])
        if strength == "sigma":
            start = start_value(recipe, out)
        centre = _default_rho(recipe) if start is None else start["value"]
        values = [float(f"{factor * centre:.2g}") for factor in FACTORS]
    named = {PLAIN: 0.0, **_methods(method, strength, values)}
    runs = run_methods(
        recipe,
        list(named),
        seeds,
        out,
        workers=workers,
        ray=ray,
        progress=progress,
        on_outcome=on_outcome,
    )
    result = {
        **_choice(runs, named),
        "method": method,
        "strength": strength,
        "start": start,
        "validation": validation,
    }
    write_json(out / "tune.json", result)
    write_text(out / "table.md", sweep_markdown(result))
    return result


def start_value(recipe: Recipe, out: Path) -> dict[str, Any]:
    """The sigma at which noise raises the training loss by a tenth, after one plain epoch.

    Of the loss f_1 after it, or of what the epoch took off the loss f_0 before, where that is less;
    see `training.starting` and `flatminima.start_sigma`. Kept in `out/start`.

    Args:
        recipe: What is to be trained.
        out: The directory of the sweep.

    Returns:
        `StartSigma.to_dict()`, and f_0 as "loss_before".

    Raises:
        InputError: there is no such sigma, or something given cannot work.
    """
    check_free(out)
    recipe, _ = _with_validation(recipe.but(sigma=None, rho=None, perturb=PLAIN))
    payload = recipe.flat()
    started = Job("start value", out / "start", payload)
    (outcome,) = run_jobs([started], "flatminima.training.starting:job", workers=1)
    if outcome.error is not None:
        reason = outcome.error.removeprefix("InputError: ")
        raise InputError(f"no start value: {reason}; or give --values")
    return outcome.results()


def _with_validation(recipe: Recipe) -> tuple[Recipe, dict[str, Any]]:
    """The recipe with samples to choose by, and what is to be said of them."""
    found = len(load(recipe.data, recipe.loop.seed).validation)
    if found:
        return recipe, {"samples": found, "fraction": None}
    if recipe.data.validation_fraction is not None:
        raise InputError(
            "--validation-fraction 0 leaves no samples to choose by: give a part of the training "
            f"samples, such as {VALIDATION_FRACTION}"
        )
    recipe = recipe.but(validation_fraction=VALIDATION_FRACTION)
    found = len(load(recipe.data, recipe.loop.seed).validation)
    return recipe, {"samples": found, "fraction": VALIDATION_FRACTION}


def _default_rho(recipe: Recipe) -> float:
    """The recipe's default for its model."""
    rho = prepare(recipe.but(pretrain=False)).recipe.perturb.rho
    assert rho is not None
    return rho


def _methods(method: str, strength: str, values: Sequence[float]) -> dict[str, float]:
    """Each value as a method of its own."""
    for value in values:
        if not (math.isfinite(value) and value > 0):
            raise InputError(
                f"--values has {value:g}: give numbers above 0; plain training, the value 0, is "
                "always in the sweep"
            )
    named = {f"{method}:{strength}={value:g}": value for value in sorted(values)}
    if not values or len(named) < len(values):
        raise InputError("--values names no value, or one twice: give each once, as 0.05,0.1,0.2")
    return named


def _choice(runs: Runs, named: Mapping[str, float]) -> dict[str, Any]:
    """The means of each value, the best, and what cannot be told from it."""
    summary = summarize(runs.task, runs.seeds, runs.results, runs.failed)
    means = {
        method: metrics["validation_loss"]["mean"]
        for method, metrics in summary["methods"].items()
        # A seed that failed or diverged may be the hardest: without it the mean flatters.
        if metrics.get("validation_loss", {"samples": 0})["samples"] == len(runs.seeds)
    }
    if not means:
        raise InputError("no value gave a finite validation loss on every seed: try smaller ones")
    best = min(means, key=lambda method: (means[method], named[method]))
    first = {best: runs.results[best], **runs.results}
    pairs = summarize(runs.task, runs.seeds, first, runs.failed)["paired"]
    largest = [value for method, value in named.items() if method != PLAIN]
    return {
        "task": runs.task,
        "seeds": runs.seeds,
        "values": [
            {
                "value": value,
                **{name: summary["methods"][method].get(name) for name in REPORTED},
                "difference": pairs.get(method, {}).get("validation_loss"),
                "tied": method == best
                or (method in means and _tied(pairs[method]["validation_loss"]["ci95"])),
            }
            for method, value in named.items()
        ],
        "best": named[best],
        "edge": best != PLAIN and named[best] in (min(largest), max(largest)),
        "failed": runs.failed,
    }


def _tied(interval: Sequence[float] | None) -> bool | None:
    """Whether a difference may be 0; None where one seed does not say."""
    return None if interval is None else bool(interval[0] <= 0 <= interval[1])
