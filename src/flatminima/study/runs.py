"""Methods times seeds: the runs that studies are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flatminima.errors import InputError
from flatminima.files import read_json, write_json
from flatminima.study.jobs import Job, Outcome, run_jobs
from flatminima.training.checks import for_methods
from flatminima.training.recipe import Recipe

STUDY = "study.json"


@dataclass(frozen=True)
class Runs:
    """What came out of a study's runs.

    Attributes:
        task: What the data are called.
        seeds: All seeds, those that failed too.
        results: Method to seed to the content of the run's `results.json`.
        failed: The runs that failed, each `{"method": ..., "seed": ..., "error": ...}`.
    """

    task: str
    seeds: list[int]
    results: dict[str, dict[int, dict[str, Any]]]
    failed: list[dict[str, Any]]


def run_methods(
    recipe: Recipe,
    methods: Sequence[str],
    seeds: int,
    out: Path,
    *,
    workers: int | None = None,
    ray: str | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    on_outcome: Callable[[Outcome], None] | None = None,
) -> Runs:
    """Run each method on each seed, in `out/METHOD/seed-N`; what is finished there is kept.

    A seed decides data split, label noise, initial weights, batch order and dropout masks alike for
    all methods, so that differences of one seed are of the methods.

    Args:
        recipe: What all runs have in common; its seed is the first.
        methods: As on the command line: `nso`, `nso:sigma=0.2`.
        seeds: How many, counted up from the recipe's.
        out: Where to write, `study.json` among it.
        workers: Processes; default: one for each core.
        ray: The address of a Ray cluster to run on instead.
        progress: Told how many runs are done.
        on_outcome: Told of each run as it ends.

    Raises:
        InputError: something given cannot work, `out` holds another study, or every run failed.
    """
    check_counts(seeds, workers)
    first = recipe.loop.seed
    all_seeds = list(range(first, first + seeds))
    check_free(out)
    _check_same(out, recipe, methods, all_seeds)
    recipes = for_methods(recipe, methods)
    write_json(out / STUDY, {"methods": methods, "seeds": all_seeds, "recipe": _common(recipe)})
    keys = [(method, seed) for seed in all_seeds for method in methods]
    jobs = [
        Job(
            name=f"{method}, seed {seed}",
            directory=out / _folder(method) / f"seed-{seed}",
            payload=recipes[method].but(seed=seed).flat(),
        )
        for method, seed in keys
    ]
    outcomes = run_jobs(
        jobs,
        "flatminima.training.run:job",
        workers=workers,
        ray=ray,
        progress=progress,
        on_outcome=on_outcome,
    )
    results: dict[str, dict[int, dict[str, Any]]] = {method: {} for method in methods}
    failed = []
    for (method, seed), outcome in zip(keys, outcomes, strict=True):
        if outcome.status == "failed":
            failed.append({"method": method, "seed": seed, "error": outcome.error})
        else:
            results[method][seed] = outcome.results()
    if len(failed) == len(jobs):
        raise InputError(f"every run failed; the first: {failed[0]['error']}")
    task = next(result["task"] for by_seed in results.values() for result in by_seed.values())
    return Runs(task, all_seeds, results, failed)


def check_counts(seeds: int, workers: int | None) -> None:
    """Refuse a study of no run, or by no process.

    Raises:
        InputError: it is one.
    """
    if seeds < 1:
        raise InputError(f"--seeds is {seeds}: give at least 1")
    if workers is not None and workers < 1:
        raise InputError(f"--workers is {workers}: give at least 1")


def check_free(out: Path) -> None:
    """Refuse a directory that holds something other than a study.

    Raises:
        InputError: it does.
    """
    if (out / "recipe.yaml").exists():
        raise InputError(f"{out} holds a run: choose another --out for the study")
    if (out / "results.json").exists() and not (out / STUDY).exists():
        raise InputError(f"{out} holds results of something else: choose another --out")


def _check_same(out: Path, recipe: Recipe, methods: Sequence[str], seeds: Sequence[int]) -> None:
    """Refuse a directory whose results would be lost: only more of the same study may follow."""
    if not (out / STUDY).exists():
        return
    before = read_json(out / STUDY)
    changed = [k for k, v in _common(recipe).items() if before["recipe"].get(k) != v]
    lost = [m for m in before["methods"] if m not in methods]
    lost += [f"seed {s}" for s in before["seeds"] if s not in seeds]
    if changed or lost:
        more = f"that has {', '.join(lost)} too"
        what = f"with another {', '.join(changed)}" if changed else more
        raise InputError(
            f"{out} holds a study {what}: choose another --out, or ask for that study and more"
        )


def _common(recipe: Recipe) -> dict[str, Any]:
    """What all runs of a study share."""
    return {k: v for k, v in recipe.flat().items() if k not in ("seed", "perturb")}


def _folder(method: str) -> str:
    """A method as a folder name."""
    return method.replace(":", ",")
