"""The plot of docs/performance.md: what a step costs, by method, network and batch size."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

COLUMNS = 2
COLORS = {"floor": "0.7", "NSO": "C0", "one-pass NSO": "C1", "SAM": "C2"}


def plot(steps: Mapping[str, Any], file: Path) -> None:
    """A panel for each case: ratios to plain training, with their intervals.

    Args:
        steps: Of steps.json.
        file: An SVG to write.
    """
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "flatminima"
    from matplotlib import pyplot

    rows = -(-len(steps) // COLUMNS)
    most = max(len(case["contenders"]) for case in steps.values())
    figure, axes = pyplot.subplots(
        rows, COLUMNS, figsize=(11, rows * (0.8 + 0.24 * most)), squeeze=False
    )
    for ax, case in zip(axes.flat, steps.values(), strict=False):
        _panel(ax, case)
    for ax in list(axes.flat)[len(steps) :]:
        ax.remove()
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})


def _panel(ax: Any, case: Mapping[str, Any]) -> None:
    rows = {name: row for name, row in case["contenders"].items() if name != "plain"}
    for height, row in enumerate(rows.values()):
        wall = row["wall"]
        low, high = wall["ci95"]
        ax.barh(
            height,
            wall["ratio"],
            color=COLORS[row["mathematics"]],
            alpha=0.45 if row["peer"] else 1.0,
            hatch="//" if row["peer"] else None,
            xerr=[[max(0.0, wall["ratio"] - low)], [max(0.0, high - wall["ratio"])]],
            error_kw={"elinewidth": 1},
        )
        ax.text(high + 0.03, height, f"{wall['ratio']:.2f}", va="center", fontsize=8)
    for at in (1, 2):
        ax.axvline(at, color="black", linewidth=0.6, linestyle=":")
    ax.set_yticks(range(len(rows)), list(rows), fontsize=8)
    ax.invert_yaxis()
    ax.set_title(f"{case['title']}, {case['samples']} samples", fontsize=10)
    ax.set_xlabel("step / plain step (hatched: peers)", fontsize=8)
