"""Leave-one-domain-out: the studies of the left-out domains as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flatminima.study.summary import summarize

WORST = {"test_accuracy": min, "test_loss": max}
"""The metrics of which the worst domain counts too, and which that is."""


def across_domains(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean over the left-out domains, and the worst of them, for each seed, then over seeds.

    So an interval is one over seeds, of the mean over these domains; it says nothing of domains
    that are not among them.

    Args:
        summaries: What `summarize` returns, for each domain; of the same methods and seeds.

    Returns:
        As `summarize`: "test_accuracy" and "test_loss" are means over domains, "worst_domain" and
        "worst_domain_loss" those of the worst. A seed that has no finite value in some domain is
        missing.
    """
    first = summaries[0]
    runs: dict[str, dict[int, dict[str, Any]]] = {}
    for method in first["methods"]:
        runs[method] = {}
        for place, seed in enumerate(first["seeds"]):
            metrics: dict[str, float] = {}
            for metric, worst in WORST.items():
                found = [s["methods"][method].get(metric) for s in summaries]
                values = [None if f is None else f["values"][place] for f in found]
                known = [value for value in values if value is not None]
                if known and len(known) == len(summaries):
                    metrics[metric] = sum(known) / len(known)
                    name = "worst_domain" if metric == "test_accuracy" else "worst_domain_loss"
                    metrics[name] = worst(known)
            runs[method][seed] = {"metrics": metrics}
    failed = [run for summary in summaries for run in summary["failed"]]
    task = f"{first['task']}, each of {len(summaries)} domains left out"
    return summarize(task, first["seeds"], runs, failed)
