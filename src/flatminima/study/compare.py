"""A paired comparison: methods times seeds, each a run of its own, then the statistics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flatminima.files import write_json, write_text
from flatminima.study.jobs import Outcome
from flatminima.study.runs import run_methods
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
    ray: str | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    on_outcome: Callable[[Outcome], None] | None = None,
) -> dict[str, Any]:
    """Run each method on each seed and compare them, pair by pair, with the first.

    Called again, finished runs are kept and unfinished ones continued; see `run_methods`.

    Args:
        recipe: What all runs have in common; its seed is the first.
        methods: As on the command line: `nso`, `nso:sigma=0.2`; the first is the reference.
        seeds: How many, counted up from the recipe's.
        out: Where to write, `results.json` and `table.md` among it.
        workers: Processes; default: one for each core.
        ray: The address of a Ray cluster to run on instead.
        progress: Told how many runs are done.
        on_outcome: Told of each run as it ends.

    Returns:
        The content of `results.json`; see `summarize`.

    Raises:
        InputError: something given cannot work, `out` holds another study, or every run failed.
    """
    runs = run_methods(
        recipe,
        methods,
        seeds,
        out,
        workers=workers,
        ray=ray,
        progress=progress,
        on_outcome=on_outcome,
    )
    summary = summarize(runs.task, runs.seeds, runs.results, runs.failed)
    write_json(out / "results.json", summary)
    write_text(out / "table.md", markdown_table(summary))
    return summary
