"""The results files of many runs, as one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from flatminima.errors import InputError
from flatminima.study.statistics import PairedDifference, mean_ci, paired

METRICS = (
    "test_recall",
    "test_image_to_text_at_1",
    "test_text_to_image_at_1",
    "test_accuracy_harmonic",
    "test_accuracy_base",
    "test_accuracy_novel",
    "test_accuracy",
    "test_mae",
    "test_error",
    "test_gmean",
    "test_loss",
    "hessian_trace",
    "top_eigenvalue",
    "perturbation_gap",
    "gap_over_prediction",
    "gradients",
    "seconds_per_step",
    "gradients_per_step",
    "peak_bytes",
)
"""The metrics that come first in a summary, in this order; others a run has follow them."""


def summarize(
    task: str,
    seeds: Sequence[int],
    runs: Mapping[str, Mapping[int, Mapping[str, Any]]],
    failed: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Average every metric over the seeds, and pair every method with the first one.

    A value that is missing or not finite (a run that failed or diverged) is `null` and in no
    average; a metric that no run of a method has is left out there.

    Args:
        task: What the study is called.
        seeds: All seeds of the study, those that failed too.
        runs: Method to seed to the run's results, `{"metrics": {name: number}}`. The first method
            is the reference of the paired differences.
        failed: The runs that failed, each `{"method": ..., "seed": ..., "error": ...}`.

    Returns:
        What goes into the study's `results.json`: "task", "seeds", "reference" and "failed";
        "methods", method to metric to "mean", "ci95", "values" in the order of the seeds and
        "samples"; "paired", method to metric to "difference" (method - reference), "ci95"
        (Student's t), "bootstrap_ci95" (BCa), "p_value" (sign flips) and "samples". An interval
        is `[low, high]`, or null for a single run.

    Raises:
        InputError: there is no method or no seed, a run is of none of the seeds, or has no metrics.
    """
    seeds = list(seeds)
    if not runs or not seeds:
        raise InputError("nothing to summarize: give at least one method and one seed")
    if len(set(seeds)) < len(seeds):
        raise InputError(f"the seeds {seeds} are not distinct: give each once")
    values = {method: _values(method, by_seed, seeds) for method, by_seed in runs.items()}
    reference = next(iter(values))
    methods = {
        method: {metric: _average(by_seed, seeds) for metric, by_seed in metrics.items()}
        for method, metrics in values.items()
    }
    pairs = {
        method: {
            metric: _pair(paired(by_seed, values[reference][metric]))
            for metric, by_seed in metrics.items()
            if by_seed.keys() & values[reference].get(metric, {}).keys()
        }
        for method, metrics in values.items()
        if method != reference
    }
    return {
        "task": task,
        "seeds": seeds,
        "reference": reference,
        "methods": methods,
        "paired": pairs,
        "failed": [dict(run) for run in failed],
    }


def _values(
    method: str, runs: Mapping[int, Mapping[str, Any]], seeds: list[int]
) -> dict[str, dict[int, float]]:
    """Metric to seed to its finite value."""
    found: dict[str, dict[int, float]] = {}
    for seed, results in runs.items():
        if seed not in seeds:
            raise InputError(
                f"{method!r} has a run of seed {seed}, which is not one of {seeds}: "
                "add it to the seeds"
            )
        metrics = results.get("metrics")
        if not isinstance(metrics, Mapping):
            raise InputError(
                f'the results of {method!r}, seed {seed}, have no "metrics": '
                "run it anew with this version"
            )
        for metric, value in metrics.items():
            if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
                by_seed = found.setdefault(metric, {})
                if value is not None and math.isfinite(value):
                    by_seed[seed] = float(value)
    ordered = [name for name in METRICS if name in found]
    ordered += [name for name in found if name not in METRICS]
    return {metric: found[metric] for metric in ordered}


def _average(by_seed: dict[int, float], seeds: list[int]) -> dict[str, Any]:
    mean = mean_ci(by_seed.values()) if by_seed else None
    return {
        "mean": mean.mean if mean else None,
        "ci95": list(mean.interval) if mean and mean.interval else None,
        "values": [by_seed.get(seed) for seed in seeds],
        "samples": len(by_seed),
    }


def _pair(result: PairedDifference) -> dict[str, Any]:
    return {
        "difference": result.difference,
        "ci95": list(result.t_interval) if result.t_interval else None,
        "bootstrap_ci95": list(result.interval) if result.interval else None,
        "p_value": result.p_value,
        "samples": result.samples,
    }
