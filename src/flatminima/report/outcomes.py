"""The section of numbers: each seed as a dot, and the table."""

from __future__ import annotations

from typing import Any

from flatminima.report.blocks import (
    MARKERS,
    Cell,
    Figure,
    Section,
    Table,
    colour,
    numbers,
    plain,
)
from flatminima.report.comparing import (
    METRICS,
    Metric,
    compared,
    difference_text,
    excludes_zero,
    judged_by,
    mean_text,
)
from flatminima.report.reading import Study
from flatminima.study.numbers import NONE, p_value
from flatminima.study.statistics import mean_ci

GAINS = {
    "test_recall",
    "test_accuracy_harmonic",
    "test_accuracy",
    "test_mae",
    "test_error",
    "test_loss",
    "hessian_trace",
}
"""The metrics whose differences the table shows too."""


def outcomes(study: Study) -> Section:
    """What came out, method by method."""
    metric = judged_by(study)
    return Section("outcomes", "Results", [dots(study, metric), table(study)])


def dots(study: Study, metric: Metric) -> Figure:
    """Each run as a dot, the mean and its 95 % interval beside them."""
    data = []
    by_method = study.values.get(metric.key, {})
    shown = [method for method in study.methods if by_method.get(method)]
    for row, method in enumerate(shown):
        values = by_method[method]
        index = study.methods.index(method)
        scaled = [metric.scale * value for value in values.values()]
        mean = mean_ci(scaled)
        # A few rows of dots, so that equal values are seen beside each other.
        heights = [row + 0.12 + 0.05 * (place % 5) for place in range(len(scaled))]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": numbers(scaled),
                "y": numbers(heights),
                "text": [plain(f"{method}, seed {seed}") for seed in values],
                "hovertemplate": "%{text}: %{x}<extra></extra>",
                "marker": {
                    "color": colour(index),
                    "symbol": MARKERS[index % len(MARKERS)],
                    "size": 8,
                },
                "showlegend": False,
            }
        )
        error: dict[str, Any] = {"visible": False}
        if mean.half_width is not None:
            error = {"type": "data", "array": numbers([mean.half_width]), "thickness": 2}
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": numbers([mean.mean]),
                "y": [row - 0.15],
                "error_x": {**error, "color": colour(index)},
                "hovertemplate": plain(f"{method}: {mean_text(values, metric)}")
                + "<extra></extra>",
                "marker": {"color": colour(index), "symbol": "line-ns-open", "size": 16},
                "showlegend": False,
            }
        )
    samples = max(map(len, by_method.values()))
    interval = "" if samples == 1 else " Above each row of dots: the mean with its 95 % interval."
    return Figure(
        title=f"{metric.label[0].upper()}{metric.label[1:]}, run by run",
        caption=f"Each dot is a run.{interval}",
        data=data,
        layout={
            "xaxis": {"title": {"text": plain(metric.label)}, "zeroline": False},
            "yaxis": {
                "tickvals": list(range(len(shown))),
                "ticktext": [plain(method) for method in shown],
                "autorange": "reversed",
                "zeroline": False,
                "showgrid": False,
                "automargin": True,
            },
            "hovermode": "closest",
        },
        height=110 + 56 * len(shown),
        wide=True,
    )


def table(study: Study) -> Table:
    """Means with intervals, and paired differences to the reference."""
    shown = [metric for metric in METRICS if metric.key in study.values]
    others = [
        Metric(key, key.replace("_", " "))
        for key in study.values
        if key not in {metric.key for metric in METRICS}
        and key not in ("validation_loss", "gradients_per_step")
    ]
    headers, columns = ["method"], [[Cell(method, method) for method in study.methods]]
    several = len(study.methods) > 1
    for metric in shown + others:
        headers.append(metric.label)
        columns.append([_mean(study, method, metric) for method in study.methods])
        if several and metric.key in GAINS:
            headers.append(f"{metric.label}: difference to {study.reference}")
            columns.append([_difference(study, method, metric) for method in study.methods])
    notes = []
    if len(study.seeds) > 1:
        counts = {len(v) for v in study.values[judged_by(study).key].values()}
        some = "" if counts == {len(study.seeds)} else "up to "
        notes.append(
            f"± and [low, high]: 95 % Student's t intervals over {some}{len(study.seeds)} seeds."
        )
        if several:
            notes.append(
                f"Differences to {study.reference} are paired by seed; p: two-sided sign-flip "
                "permutation test, not corrected for comparing several methods. * the interval "
                "leaves out 0."
            )
    return Table("Means over seeds", headers, [list(r) for r in zip(*columns, strict=True)], notes)


def _mean(study: Study, method: str, metric: Metric) -> Cell:
    values = study.values[metric.key].get(method, {})
    if not values:
        return Cell(NONE)
    return Cell(mean_text(values, metric), mean_ci(list(values.values())).mean)


def _difference(study: Study, method: str, metric: Metric) -> Cell:
    if method == study.reference:
        return Cell("reference", 0.0)
    pair = compared(study, method, study.reference, metric)
    if pair is None:
        return Cell(NONE)
    text = difference_text(pair, metric)
    if pair.t_interval is not None:
        text += f", {p_value(pair.p_value)}{' *' if excludes_zero(pair) else ''}"
    return Cell(text, pair.difference)
