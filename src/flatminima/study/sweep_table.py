"""A sweep as a table with its curve: validation loss over sigma or rho."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flatminima.study.numbers import NONE, difference, with_error
from flatminima.study.table import Cells, drawn, written

if TYPE_CHECKING:
    from rich.table import Table

PLAIN = "0 (plain)"
WIDTH = 19
"""Characters of the curve."""

FARTHEST = 3.0
"""Losses beyond so many times the best lie at the curve's right edge, so that the rest is seen."""


def sweep_table(result: Mapping[str, Any], *, narrow: bool = False) -> Table:
    """The sweep for the terminal.

    Args:
        result: What `tune_sigma` returns, or its `tune.json`.
        narrow: Without accuracy, trace and borders, for a terminal that is not wide enough.

    Raises:
        InputError: rich is not installed.
    """
    cells = _cells(result, curve=True, all_metrics=not narrow)
    return drawn(cells, f"{result['task']}, {result['method']}", tight=narrow)


def sweep_markdown(result: Mapping[str, Any]) -> str:
    """The sweep as GitHub markdown.

    Args:
        result: What `tune_sigma` returns, or its `tune.json`.
    """
    return written(_cells(result, curve=False, all_metrics=True))


def _cells(result: Mapping[str, Any], *, curve: bool, all_metrics: bool) -> Cells:
    """The words of the table; the curve is for fonts whose characters are all as wide."""
    rows = result["values"]
    columns = {result["strength"]: [f"{row['value']:g}" if row["value"] else PLAIN for row in rows]}
    columns["validation loss"] = [_mean(row["validation_loss"]) for row in rows]
    if curve:
        columns["curve"] = _curve(rows)
    columns["to the best"] = [_to_best(row, result["best"]) for row in rows]
    if all_metrics and any(row.get("validation_mae") for row in rows):
        columns["validation MAE"] = [_mean(row["validation_mae"]) for row in rows]
    elif all_metrics and any(row.get("validation_recall") for row in rows):
        recalls = [_mean(row["validation_recall"], 100.0) for row in rows]
        columns["validation recall (%)"] = recalls
    elif all_metrics:
        accuracies = [_mean(row["validation_accuracy"], 100.0) for row in rows]
        columns["validation accuracy (%)"] = accuracies
    if all_metrics and any(row["hessian_trace"] for row in rows):
        columns["Hessian trace"] = [_mean(row["hessian_trace"]) for row in rows]
    columns[""] = [_verdict(row, result["best"]) for row in rows]
    table = [list(row) for row in zip(*columns.values(), strict=True)]
    return Cells(list(columns), table, _notes(result))


def _to_best(row: Mapping[str, Any], best: float) -> str:
    pair = row["difference"]
    return difference(pair["difference"], pair["ci95"]) if pair and row["value"] != best else NONE


def _verdict(row: Mapping[str, Any], best: float) -> str:
    return "best" if row["value"] == best else "tie" if row["tied"] else ""


def _mean(entry: Mapping[str, Any] | None, scale: float = 1.0) -> str:
    return NONE if entry is None else with_error(entry["mean"], entry["ci95"], scale)


def _curve(rows: list[Mapping[str, Any]]) -> list[str]:
    """A dot in each row, further right the larger the loss; an arrow beyond the edge."""
    means = [(row["validation_loss"] or {"mean": None})["mean"] for row in rows]
    known = [mean for mean in means if mean is not None]
    low = min(known)
    high = max(mean for mean in known if mean <= FARTHEST * low)
    points = []
    for mean in means:
        line = ["·"] * WIDTH
        if mean is not None:
            part = min(1.0, (mean - low) / ((high - low) or 1.0))
            line[round(part * (WIDTH - 1))] = "●" if mean <= high else "→"
        points.append("".join(line))
    return points


def _notes(result: Mapping[str, Any]) -> list[str]:
    strength, seeds, best = result["strength"], result["seeds"], result["best"]
    validation = result["validation"]
    notes = [f"Chosen by mean validation loss over {validation['samples']} samples a seed."]
    if validation["fraction"]:
        notes = [
            f"{notes[0][:-1]}, {validation['fraction']:.0%} of the training samples, taken away "
            "for it: the data set keeps none."
        ]
    if len(seeds) == 1:
        notes.append("One seed: there are no intervals, and a difference may be chance.")
    else:
        notes.append(f"± and [low, high]: 95 % Student's t intervals over {len(seeds)} seeds.")
        notes.append(
            "tie: the paired difference to the best has 0 in its interval (not corrected for "
            "choosing the best)."
        )
    if best == 0:
        notes.append(f"No {strength} did better than plain training.")
    elif result["values"][0]["tied"]:
        notes.append("Plain training is a tie: no gain is shown.")
    if result["edge"]:
        tried = [row["value"] for row in result["values"] if row["value"]]
        further = "smaller" if best == min(tried) else "larger"
        notes.append(f"The best is at the edge: try {further} --values.")
    if result["start"]:
        start = result["start"]
        notes.append(
            f"Start value: {strength} = {_short(start['value'])}, where noise raises the loss "
            f"after one plain epoch by {start['fraction']:.2g} of it."
        )
    failed = sorted({run["method"] for run in result["failed"]})
    notes += [f"Failed on a seed, not chosen: {method}." for method in failed]
    return notes


def _short(value: float) -> str:
    return f"{value:.{max(0, 1 - math.floor(math.log10(value)))}f}"
