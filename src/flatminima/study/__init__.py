"""Many runs, methods times seeds, and the statistics that compare them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flatminima.study.jobs import Job, Outcome, available_cores, run_jobs
from flatminima.study.statistics import Mean, PairedDifference, mean_ci, paired
from flatminima.study.summary import summarize
from flatminima.study.table import markdown_table, rich_table

if TYPE_CHECKING:
    from flatminima.study.tune import tune_sigma

__all__ = [
    "Job",
    "Mean",
    "Outcome",
    "PairedDifference",
    "available_cores",
    "markdown_table",
    "mean_ci",
    "paired",
    "rich_table",
    "run_jobs",
    "summarize",
    "tune_sigma",
]


def __getattr__(name: str) -> Any:
    # Late: a worker imports this package before it has taken over its pipes, torch is slow.
    if name != "tune_sigma":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from flatminima.study.tune import tune_sigma

    return tune_sigma
