"""A paired comparison: methods times seeds, each a run of its own, then the statistics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flatminima.errors import InputError
from flatminima.files import read_json, write_json, write_text
from flatminima.study.jobs import Job, Outcome, run_jobs
from flatminima.study.summary import summarize
from flatminima.study.table import markdown_table
from flatminima.training.assemble import for_methods
from flatminima.training.recipe import Recipe

STUDY = "study.json"


def compare(
    recipe: Recipe,
    methods: Sequence[str],
    seeds: int,
    out: Path,
    *,
    workers: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    on_outcome: Callable[[Outcome], None] | None = None,
) -> dict[str, Any]:
    """Run each method on each seed and compare them, pair by pair, with the first.

    A seed decides data split, label noise, initial weights, batch order and dropout masks alike for
    all methods, so that differences of one seed are of the methods. Each run has its directory
    `out/METHOD/seed-N`; called again, finished runs are kept and unfinished ones continued.

    Args:
        recipe: What all runs have in common; its seed is the first.
        methods: As on the command line: `nso`, `nso:sigma=0.2`; the first is the reference.
        seeds: How many, counted up from the recipe's.
        out: Where to write, `results.json` and `table.md` among it.
        workers: Processes; default: one for each core.
        progress: Told how many runs are done.
        on_outcome: Told of each run as it ends.

    Returns:
        The content of `results.json`; see `summarize`.

    Raises:
        InputError: something given cannot work, `out` holds another study, or every run failed.
    """
    if seeds < 1:
        raise InputError(f"--seeds is {seeds}: give at least 1")
    if workers is not None and workers < 1:
        raise InputError(f"--workers is {workers}: give at least 1")
    first = recipe.loop.seed
    all_seeds = list(range(first, first + seeds))
    _check_free(out, recipe, methods, all_seeds)
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
        progress=progress,
        on_outcome=on_outcome,
    )
    runs: dict[str, dict[int, dict[str, Any]]] = {method: {} for method in methods}
    failed = []
    for (method, seed), outcome in zip(keys, outcomes, strict=True):
        if outcome.status == "failed":
            failed.append({"method": method, "seed": seed, "error": outcome.error})
        else:
            runs[method][seed] = outcome.results()
    if len(failed) == len(jobs):
        raise InputError(f"every run failed; the first: {failed[0]['error']}")
    task = next(result["task"] for by_seed in runs.values() for result in by_seed.values())
    summary = summarize(task, all_seeds, runs, failed)
    write_json(out / "results.json", summary)
    write_text(out / "table.md", markdown_table(summary))
    return summary


def _check_free(out: Path, recipe: Recipe, methods: Sequence[str], seeds: Sequence[int]) -> None:
    """Refuse a directory whose results would be lost: only more of the same study may follow."""
    if (out / "recipe.yaml").exists():
        raise InputError(f"{out} holds a run: choose another --out for the study")
    if not (out / STUDY).exists():
        if (out / "results.json").exists():
            raise InputError(f"{out} holds results of something else: choose another --out")
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
