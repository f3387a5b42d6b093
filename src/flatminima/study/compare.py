"""A paired comparison: methods times seeds, each a run of its own, then the statistics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flatminima.errors import InputError
from flatminima.files import write_json, write_text
from flatminima.study.jobs import Job, Outcome, run_jobs
from flatminima.study.summary import summarize
from flatminima.study.table import markdown_table
from flatminima.training.recipe import Recipe


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
    if len(set(methods)) < len(methods):
        raise InputError(f"--perturb names a method twice: {', '.join(methods)}")
    first = recipe.loop.seed
    keys = [(method, seed) for seed in range(first, first + seeds) for method in methods]
    jobs = [
        Job(
            name=f"{method}, seed {seed}",
            directory=out / _folder(method) / f"seed-{seed}",
            payload=recipe.but(seed=seed, perturb=method).flat(),
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
    summary = summarize(task, list(range(first, first + seeds)), runs, failed)
    write_json(out / "results.json", summary)
    write_text(out / "table.md", markdown_table(summary))
    return summary


def _folder(method: str) -> str:
    """A method as a folder name."""
    return method.replace(":", ",")
