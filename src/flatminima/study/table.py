"""A study's summary as a table, for the terminal and for a README."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flatminima.errors import require
from flatminima.study.numbers import NONE, difference, p_value, with_error

if TYPE_CHECKING:
    from rich.table import Table

_HEADERS = {
    "test_recall": "test recall (%)",
    "test_image_to_text_at_1": "image to text @1 (%)",
    "test_text_to_image_at_1": "text to image @1 (%)",
    "test_accuracy_harmonic": "base and novel (%)",
    "test_accuracy_base": "base (%)",
    "test_accuracy_novel": "novel (%)",
    "test_accuracy": "test accuracy (%)",
    "test_mae": "test MAE",
    "test_gmean": "test geometric mean",
    "test_error": "test error",
    "test_loss": "test loss",
    "hessian_trace": "Hessian trace",
    "top_eigenvalue": "top eigenvalue",
    "perturbation_gap": "perturbation gap",
    "gradients": "gradients",
    "seconds_per_step": "ms per step",
}
_GAINS = {
    "test_recall": "gain (points)",
    "test_accuracy_harmonic": "gain (points)",
    "test_accuracy": "gain (points)",
    "test_mae": "MAE difference",
    "test_error": "error difference",
    "test_loss": "loss difference",
}
_SCALES = {
    **{name: 100.0 for name, words in _HEADERS.items() if words.endswith("(%)")},
    "seconds_per_step": 1000.0,
}
_MARK = "*"
_PARTS = re.compile(r" (?=[\[±])|, (?=p )")


@dataclass(frozen=True)
class Cells:
    """A table's words, before they are drawn.

    Attributes:
        headers: One a column; the first column is the rows' names.
        rows: The cells.
        notes: What stands below.
    """

    headers: list[str]
    rows: list[list[str]]
    notes: list[str]


def rich_table(summary: Mapping[str, Any], *, narrow: bool = False) -> Table:
    """The summary for the terminal: one row a method, failures in the caption.

    Args:
        summary: What `summarize` returns, or its `results.json`.
        narrow: One column a method instead, for a terminal that is not wide enough.

    Raises:
        InputError: rich is not installed.
    """
    cells = _turned(_cells(summary)) if narrow else _cells(summary)
    return drawn(cells, str(summary["task"]), tight=narrow)


def markdown_table(summary: Mapping[str, Any]) -> str:
    """The summary as GitHub markdown: one row a method, notes and failures below.

    Args:
        summary: What `summarize` returns, or its `results.json`.
    """
    return written(_cells(summary))


def drawn(cells: Cells, title: str, *, tight: bool = False) -> Table:
    """A table for the terminal.

    Args:
        cells: What it says.
        title: What stands above.
        tight: Without borders.

    Raises:
        InputError: rich is not installed.
    """
    table_module, text = require("rich.table", "cli"), require("rich.text", "cli")
    style = {"box": require("rich.box", "cli").SIMPLE, "padding": 0} if tight else {}
    table: Table = table_module.Table(
        title=text.Text(title), caption=text.Text("\n".join(cells.notes)), **style
    )
    table.caption_justify = "left"
    for index, header in enumerate(cells.headers):
        table.add_column(text.Text(header), justify="right" if index else "left", no_wrap=True)
    for row in cells.rows:
        # Text, not str: brackets in a str are markup.
        table.add_row(*map(text.Text, row))
    return table


def written(cells: Cells) -> str:
    """A table as GitHub markdown, its notes as a list below.

    Args:
        cells: What it says.
    """
    lines = [
        _row(cells.headers),
        _row([":--"] + ["--:"] * (len(cells.headers) - 1)),
        *(_row([_escape(cell) for cell in row]) for row in cells.rows),
        "",
        *(f"- {_escape(note)}" for note in cells.notes),
    ]
    return "\n".join(lines) + "\n"


def _cells(summary: Mapping[str, Any]) -> Cells:
    methods = summary["methods"]
    shown = [name for name in _HEADERS if any(name in metrics for metrics in methods.values())]
    # The gain is in what the study is about: accuracy where there is one.
    gain = next((name for name in _GAINS if name in shown), None)
    headers, columns = ["method"], [list(methods)]
    for metric in shown:
        headers.append(_HEADERS[metric])
        columns.append([_mean(metrics.get(metric), metric) for metrics in methods.values()])
        if metric == gain and len(methods) > 1:
            headers.append(_GAINS[gain])
            columns.append([_gain(summary, method, gain) for method in methods])
    rows = [list(row) for row in zip(*columns, strict=True)]
    return Cells(headers, rows, _notes(summary, gain))


def _turned(cells: Cells) -> Cells:
    """Rows for columns; a number, its error or interval and its p-value stand in a pile."""
    rows = []
    for header, *values in zip(cells.headers, *cells.rows, strict=True):
        parts = [_PARTS.sub("\n", value) for value in values]
        rows.append([header, *parts])
    return Cells(rows[0], rows[1:], cells.notes)


def _scale(metric: str) -> float:
    return _SCALES.get(metric, 1.0)


def _mean(entry: Mapping[str, Any] | None, metric: str) -> str:
    return NONE if entry is None else with_error(entry["mean"], entry["ci95"], _scale(metric))


def _gain(summary: Mapping[str, Any], method: str, metric: str) -> str:
    if method == next(iter(summary["methods"])):
        return "reference"
    entry = summary["paired"].get(method, {}).get(metric)
    if entry is None:
        return NONE
    text = difference(entry["difference"], entry["ci95"], _scale(metric))
    if entry["ci95"] is None:
        return text
    mark = f" {_MARK}" if _excludes_zero(entry["ci95"]) else ""
    return f"{text}, {p_value(entry['p_value'])}{mark}"


def _excludes_zero(interval: Sequence[float]) -> bool:
    low, high = interval
    # No width: differences of a coarse metric that happen to coincide, which is not certainty.
    return low * high > 0 and high - low > 1e-9 * abs(low)


def _notes(summary: Mapping[str, Any], gain: str | None) -> list[str]:
    seeds, methods = summary["seeds"], summary["methods"]
    if len(seeds) == 1:
        notes = ["One seed: there are no intervals, and a difference may be chance."]
    else:
        notes = [f"± and [low, high]: 95 % Student's t intervals over {len(seeds)} seeds."]
    pairs = {name: metrics[gain] for name, metrics in summary["paired"].items() if gain in metrics}
    if pairs and len(seeds) > 1:
        marked = [name for name, entry in pairs.items() if _excludes_zero(entry["ci95"] or (0, 0))]
        several = ", not corrected for comparing several methods" if len(pairs) > 1 else ""
        smallest = 2.0 ** (1 - min(entry["samples"] for entry in pairs.values()))
        floor = f" (at least {smallest:.2g} with so few pairs)" if smallest > 0.05 else ""
        notes.append(
            f"Differences to {summary['reference']}, paired by seed; "
            f"p: two-sided sign-flip permutation test{floor}{several}."
        )
        notes.append(
            f"{_MARK} the interval excludes 0."
            if marked
            else "No interval of a difference excludes 0: no gain or loss is shown."
        )
    grouped: dict[tuple[str, str], list[str]] = {}
    for run in summary["failed"]:
        error = " ".join(str(run.get("error") or "unknown error").split())
        grouped.setdefault((str(run.get("method")), error), []).append(str(run.get("seed")))
    told = {(method, seed) for (method, _), numbers in grouped.items() for seed in numbers}
    for (method, error), numbers in grouped.items():
        notes.append(f"{method}: {_seeds(numbers)} failed: {_short(error)}")
    for method, metrics in methods.items():
        values = metrics[gain]["values"] if gain in metrics else [None] * len(seeds)
        pairs_of_seed = zip(map(str, seeds), values, strict=True)
        missing = [
            seed for seed, value in pairs_of_seed if value is None and (method, seed) not in told
        ]
        if gain and missing:
            notes.append(f"{method}: {_seeds(missing)} without a finite {gain.replace('_', ' ')}")
    return notes


def _seeds(numbers: Sequence[str]) -> str:
    return f"seed{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}"


def _short(text: str) -> str:
    return text if len(text) <= 160 else text[:159] + "…"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escape(text: str) -> str:
    for character in ("\\", "|", "*", "_", "`", "<"):
        text = text.replace(character, "\\" + character)
    return text
