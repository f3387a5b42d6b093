"""Write the tables in the docs from what they show: committed results and the methods' cards.

python benchmarks/readme.py
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flatminima.measure.results import plus_minus
from flatminima.study import markdown_table, mean_ci, paired
from flatminima.study.numbers import difference, with_error

ROOT = Path(__file__).parents[1]

COMPARISONS = {
    "methods-digits": ("plain:epochs=30", "nso:sigma=0.1", "asam:rho=2"),
    "methods-digits-gradients": ("plain:epochs=30", "nso-one-pass:sigma=0.1"),
    "methods-pydocs": ("nso",),
    "methods-pydocs-gradients": ("plain:epochs=2",),
}
"""The studies of all methods, and what else to compare with than plain training."""


LIVE = {
    "trace": "`estimate()`, the trace of F",
    "smoothed": "`smoothed_curvature()`",
    "corrected": "`corrected()`",
}
"""What the live meter tells."""


def demo_table() -> str:
    """The table of `make demo`."""
    return markdown_table(json.loads((ROOT / "docs/results/demo.json").read_text()))


def comparison(name: str, references: Sequence[str]) -> str:
    """A study's table, and the paired differences to other methods than its first."""
    results = json.loads((ROOT / "docs/results" / f"{name}.json").read_text())
    return "\n".join([markdown_table(results), *(_against(results, to) for to in references)])


def _against(results: Mapping[str, Any], reference: str) -> str:
    accuracies = {
        method: dict(zip(results["seeds"], found["test_accuracy"]["values"], strict=True))
        for method, found in results["methods"].items()
    }
    lines = [f"| method | gain over `{reference}` (points) |", "| :-- | --: |"]
    for method, values in accuracies.items():
        if method != reference:
            pair = paired(values, accuracies[reference])
            gain = difference(pair.difference, pair.t_interval, scale=100)
            lines.append(f"| `{method}` | {gain} |")
    return "\n".join([*lines, ""])


def start_sigma_table() -> str:
    """How close the start value of sigma comes to the best of a sweep."""
    found = json.loads((ROOT / "docs/results/start-sigma.json").read_text())
    lines = [
        "| task | start value | its range over seeds | best of the sweep, and its ties | "
        "start / best | loss given up |",
        "| :-- | --: | --: | --: | --: | --: |",
    ]
    return "\n".join([*lines, *(_start_row(task, result) for task, result in found.items())]) + "\n"


def _start_row(task: str, result: Mapping[str, Any]) -> str:
    sweep, starts = result["sweep"], [found["value"] for found in result["starts"]]
    at = next(row for row in sweep["values"] if row["value"] == result["start"])
    ties = [f"{row['value']:g}" for row in sweep["values"] if row["tied"]]
    pair = at["difference"]
    cells = [
        f"{task}, {sweep['method']}, {len(sweep['seeds'])} seeds",
        f"{result['start']:g}",
        f"{min(starts):.2g} to {max(starts):.2g}",
        f"{sweep['best']:g} ({', '.join(ties)})",
        f"{result['start'] / sweep['best']:.2f}" if sweep["best"] else "the best is 0",
        difference(pair["difference"], pair["ci95"]) if pair else "0",
    ]
    return f"| {' | '.join(cells)} |"


def live_cost_table() -> str:
    """What the live trace costs."""
    found = json.loads((ROOT / "docs/results/live-trace.json").read_text())["cost"]
    lines = [
        "| model | weights | step | `every=1` | of it in its own calls | `every=10` | and read "
        "each step |",
        "| :-- | --: | --: | --: | --: | --: | --: |",
    ]
    for model, row in found.items():
        each, default, read = (
            "{:+.1f} % ({:+.1f} to {:+.1f})".format(percent["median"], *percent["quartiles"])
            for percent in row["percent"].values()
        )
        cells = [
            model,
            f"{row['weights']:,}".replace(",", " "),
            f"{row['step_ms']:.2g} ms" if row["step_ms"] < 10 else f"{row['step_ms']:.0f} ms",
            each,
            f"{row['inside_percent']:.1f} %",
            default,
            read,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def live_run_table() -> str:
    """What the live trace said at the end of runs, and the exact values over its last steps."""
    lines = [
        "| sigma | curvature | exact | off the Hessian trace by | `every=1` | `every=10` |",
        "| --: | :-- | --: | --: | --: | --: |",
    ]
    for run in json.loads((ROOT / "docs/results/live-trace.json").read_text())["runs"]:
        last = run["exact"][-1]["step"]
        weights = [0.99 ** (last - row["step"]) for row in run["exact"]]

        def over_memory(name: str, run: Any = run, weights: Any = weights) -> float:
            values = [row[name][0] for row in run["exact"]]
            return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)

        trace = over_memory("hessian_trace")
        for name, words in LIVE.items():
            exact = over_memory(name)
            told = [plus_minus(*run[meter][-1][name]) for meter in ("every 1", "every 10")]
            off = f"{100 * (exact / trace - 1):+.0f} %"
            cells = [f"{run['sigma']:g}", words, f"{exact:.1f}", off, *told]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def one_pass_tables() -> str:
    """What one-pass NSO does beside its relatives, by task and batch size."""
    parts = []
    for task, title in (("digits", "The digits"), ("pydocs", "Docstrings, a small BERT")):
        found = json.loads((ROOT / f"docs/results/one-pass-{task}.json").read_text())
        parts.append(f"### {title}, {found['epochs']} epochs\n")
        gains, pairs = _one_pass_rows(found)
        parts += [_grid(list(found["batches"]), gains), _grid(list(found["batches"]), pairs)]
    sensing = json.loads((ROOT / "docs/results/one-pass-matrix-sensing.json").read_text())
    lines = ["### Matrix sensing\n", "| method | gradients | normalized test error |"]
    lines.append("| :-- | --: | --: |")
    for method, values in sensing["methods"].items():
        twice = method in ("one-point x2", "paired")
        numbers = mean_ci(values)
        gradients = sensing["iterations"] * (2 if twice else 1)
        lines.append(f"| {method} | {gradients} | {with_error(numbers.mean, numbers.interval)} |")
    return "\n".join([*parts, *lines, ""])


def _one_pass_rows(found: Mapping[str, Any]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Gains over plain training, and over pairs, a cell for each batch size."""
    gains: dict[str, list[str]] = {}
    pairs: dict[str, list[str]] = {}
    for groups in found["batches"].values():
        chosen = {group: _by_the_others(methods) for group, methods in groups.items()}
        plain = mean_ci(list(chosen["plain"].values()))
        cell = with_error(plain.mean, plain.interval, scale=100)
        gains.setdefault("plain (accuracy, %)", []).append(cell)
        for group in list(chosen)[1:]:
            gains.setdefault(group, []).append(_points(chosen[group], chosen["plain"]))
        for group, other in (
            ("split", "paired"),
            ("split", "paired/2"),
            ("split", "one-point"),
            ("split", "alternate"),
        ):
            row = pairs.setdefault(f"{group} - {other}", [])
            row.append(_points(chosen[group], chosen[other]))
    return gains, pairs


def _by_the_others(methods: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[int, float]:
    """A seed's accuracy at the sigma that is best on the mean of all other seeds."""
    rows = [found["test_accuracy"] for found in methods.values()]
    return {
        seed: max(rows, key=lambda row: sum(row) - row[seed])[seed] for seed in range(len(rows[0]))
    }


def _points(values: Mapping[int, float], reference: Mapping[int, float]) -> str:
    pair = paired(values, reference)
    return difference(pair.difference, pair.t_interval, scale=100)


def _grid(batches: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    lines = [
        f"| points, by batch size | {' | '.join(batches)} |",
        "| :-- |" + " --: |" * len(batches),
    ]
    return "\n".join([*lines, *(f"| {k} | {' | '.join(v)} |" for k, v in rows.items()), ""])


def landscape_times() -> str:
    """What a point of a landscape takes, beside another library."""
    found = json.loads((ROOT / "docs/results/landscape.json").read_text())
    lines = ["| library | slice | seconds | microseconds a point |", "| :-- | :-- | --: | --: |"]
    for library in ("flatminima", "loss-landscapes"):
        entry = found[library]
        for slice_, times in entry["slices"].items():
            cells = [f"{library} {entry['version']}", slice_]
            cells += [f"{times['seconds']:.2f}", f"{times['microseconds_per_point']:.0f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def report_size() -> str:
    """How large a page is, and how long it takes to open."""
    found = json.loads((ROOT / "docs/results/report.json").read_text())
    opened = found["seconds_to_open"]
    return (
        f"The page of a study of {found['methods']} methods and {found['seeds']} seeds, with "
        f"{found['steps']} logged steps each, has {found['megabytes']:.1f} MB, is made in "
        f"{found['seconds_to_make']:.1f} s, and opens in {opened['median']:.1f} s (median; the "
        f"slowest of {found['openings']}: {opened['largest']:.1f} s) in headless Chromium on 2 "
        "cores.\n"
    )


def fill(path: Path, name: str, content: str) -> None:
    """Put content between the two comments that name it."""
    pattern = rf"(<!-- {name}: .*? -->\n).*?(<!-- end of {name} -->)"
    text, found = re.subn(
        pattern, lambda m: f"{m[1]}\n{content}\n{m[2]}", path.read_text(), flags=re.DOTALL
    )
    if found != 1:
        raise SystemExit(f"{path} has no place for the {name}")
    path.write_text(text)


if __name__ == "__main__":
    import pages_methods
    import pages_performance
    from measure_page import TABLES

    fill(ROOT / "README.md", "demo table", demo_table())
    fill(ROOT / "docs/how-to/finding-sigma.md", "start values", start_sigma_table())
    fill(ROOT / "docs/measuring.md", "cost of the live trace", live_cost_table())
    fill(ROOT / "docs/measuring.md", "live trace along runs", live_run_table())
    fill(ROOT / "docs/landscapes.md", "time of a landscape", landscape_times())
    fill(ROOT / "docs/report.md", "report's size", report_size())
    for slot, table in pages_methods.tables().items():
        fill(ROOT / "docs/methods.md", f"table of {slot}", table)
    pages_methods.write()
    fill(ROOT / "docs/concepts/one-pass.md", "one-pass", one_pass_tables())
    for name, references in COMPARISONS.items():
        fill(ROOT / "docs/comparison.md", name, comparison(name, references))
    for name, content in pages_performance.tables().items():
        fill(ROOT / "docs/performance.md", name, content)
    measured = json.loads((ROOT / "docs/results/measure.json").read_text())
    for name, build in TABLES.items():
        fill(ROOT / "docs/performance-of-measuring.md", name, build(measured))
