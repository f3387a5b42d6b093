"""Many runs, methods times seeds, and the statistics that compare them."""

from flatminima.study.jobs import Job, Outcome, available_cores, run_jobs
from flatminima.study.statistics import Mean, PairedDifference, mean_ci, paired
from flatminima.study.summary import summarize
from flatminima.study.table import markdown_table, rich_table

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
]
