"""The picture of a comparison: a row for each method, a panel for each metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flatminima.study.vary_plot import PALETTE, WORDS

FAR = 4.0
"""Spans of the middle half beyond which a mean is told in words, for the others to be seen."""


def draw(summary: Mapping[str, Any], file: Path, metrics: Sequence[str]) -> None:
    """Means with 95 % intervals over seeds; NSO's rows in another colour, a line at the reference.

    Args:
        summary: Of a comparison.
        file: Where to write the picture.
        metrics: A panel each; those that no method has are left out.
    """
    import matplotlib.pyplot as plt

    methods = summary["methods"]
    metrics = [m for m in metrics if any(m in found for found in methods.values())]
    size = (3 + 3.2 * len(metrics), 1 + 0.27 * len(methods))
    figure, panels = plt.subplots(
        1, len(metrics), figsize=size, layout="constrained", squeeze=False, sharey=True
    )
    for metric, ax in zip(metrics, panels[0], strict=True):
        scale = 100 if WORDS.get(metric, "").endswith("(%)") else 1
        rows = {m: (i, methods[m][metric]) for i, m in enumerate(methods) if metric in methods[m]}
        _panel(ax, rows, summary["reference"], scale)
        ax.set_xlabel(WORDS.get(metric, metric.replace("_", " ")))
    panels[0, 0].set_yticks(range(len(methods)), list(methods), fontsize=8)
    panels[0, 0].invert_yaxis()
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)


def _panel(ax: Any, rows: Mapping[str, tuple[int, Any]], reference: str, scale: float) -> None:
    near = _near({method: scale * entry["mean"] for method, (_, entry) in rows.items()})
    for method, (row, entry) in rows.items():
        mean = scale * entry["mean"]
        color = PALETTE[1 if method.startswith("nso") else 0]
        if method not in near:
            below = mean < min(near.values())
            place = {"transform": ax.get_yaxis_transform(), "va": "center", "fontsize": 8}
            place |= {"ha": "left" if below else "right", "color": color}
            words = f"← {mean:.3g}" if below else f"{mean:.3g} →"
            ax.text(0.01 if below else 0.99, row, words, **place)
            continue
        low, high = (scale * end for end in entry["ci95"])
        ax.errorbar([mean], [row], xerr=[[mean - low], [high - mean]], fmt="o", ms=4, color=color)
        if method == reference:
            ax.axvline(mean, color="0.8", linewidth=1, zorder=0)


def _near(means: Mapping[str, float]) -> dict[str, float]:
    """The means that are not far from the middle half of them."""
    low, high = np.quantile(list(means.values()), [0.25, 0.75])
    reach = FAR * (high - low)
    return {name: mean for name, mean in means.items() if low - reach <= mean <= high + reach}
