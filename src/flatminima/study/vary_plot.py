"""The picture of a comparison along a setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flatminima.errors import InputError, require

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#7F7F7F")
MARKERS = "osD^Pv*"

WORDS = {
    "test_accuracy": "test accuracy (%)",
    "test_accuracy_harmonic": "base and novel (%)",
    "test_accuracy_base": "base (%)",
    "test_accuracy_novel": "novel (%)",
    "test_recall": "test recall (%)",
    "test_mae": "test MAE",
    "test_error": "test error",
    "test_nuclear_norm": "nuclear norm",
    "validation_squared_gradient": "squared gradient of F",
    "test_gmean": "test geometric mean of errors",
    "test_loss": "test loss",
    "gap_over_prediction": "gap / (σ²/2 Tr H)",
}

LOGARITHMIC = 5.0
"""A field whose largest value is so many times its smallest has a logarithmic axis."""


def draw(result: Mapping[str, Any], file: Path, metrics: Sequence[str]) -> None:
    """Metrics against the varied field, a line a method, with 95 % intervals over seeds.

    Args:
        result: What `vary` returns, of one field.
        file: Where to write the picture.
        metrics: A panel each; those that no run has are left out.

    Raises:
        InputError: two fields were varied, or matplotlib is not installed.
    """
    if len(result["grid"]) != 1:
        raise InputError("only a comparison along one field has a picture")
    pyplot = require("matplotlib.pyplot", "plot")
    (field,) = result["grid"]
    points = result["points"]
    metrics = [m for m in metrics if any(m in e for p in points for e in _methods(p).values())]
    figure, panels = pyplot.subplots(
        1, len(metrics), figsize=(5 * len(metrics), 3.6), squeeze=False, layout="constrained"
    )
    for metric, ax in zip(metrics, panels[0], strict=True):
        scale = 100 if WORDS.get(metric, "").endswith("(%)") else 1
        for index, method in enumerate(_methods(points[0])):
            rows = [(p["at"][field], _methods(p)[method].get(metric)) for p in points]
            known = [(at, entry) for at, entry in rows if entry and entry["mean"] is not None]
            low = [scale * (e["mean"] - (e["ci95"] or [e["mean"]])[0]) for _, e in known]
            ax.errorbar(
                [at for at, _ in known],
                [scale * entry["mean"] for _, entry in known],
                low,
                color=PALETTE[index % len(PALETTE)],
                marker=MARKERS[index % len(MARKERS)],
                capsize=3,
                label=method,
            )
        values = [point["at"][field] for point in points]
        if all(isinstance(v, int | float) and v > 0 for v in values):
            if max(values) >= LOGARITHMIC * min(values):
                ax.set_xscale("log")
            ax.set_xticks(values, [f"{value:g}" for value in values], minor=False)
            ax.minorticks_off()
        ax.set(xlabel=field.replace("_", " "), ylabel=WORDS.get(metric, metric.replace("_", " ")))
    panels[0][0].legend(frameon=False)
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
    pyplot.close(figure)


def _methods(point: Mapping[str, Any]) -> Mapping[str, Any]:
    methods: Mapping[str, Any] = point["summary"]["methods"]
    return methods
