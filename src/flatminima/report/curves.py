"""The section of learning curves: losses, validation and the live curvature along the runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from flatminima.report.blocks import (
    DASHES,
    Figure,
    Section,
    Tabs,
    colour,
    faint,
    numbers,
    plain,
)
from flatminima.report.reading import Run, Study, finite
from flatminima.study.statistics import mean_ci

POINTS = 80
"""Points of a curve: records between two are averaged, at the same places for all runs."""

CURVES = (
    ("loss", "Training loss", "as it was backpropagated: at the method's own, moved weights"),
    ("validation_loss", "Validation loss", "after each epoch"),
    ("validation_accuracy", "Validation accuracy", "after each epoch"),
    ("validation_mae", "Validation MAE", "after each epoch"),
    ("test_recall", "Test recall", "where the recipe measures along the way"),
    ("test_mae", "Test MAE", "where the recipe measures along the way"),
    ("test_error", "Test error", "where the recipe measures along the way"),
    ("test_loss", "Test loss", "where the recipe measures along the way"),
    ("test_accuracy", "Test accuracy", "where the recipe measures along the way"),
    ("hessian_trace", "Hessian trace", "on the training set, measured along the way"),
    ("perturbation_gap", "Perturbation gap", "on the training set, measured along the way"),
)

LIVE = (
    (
        "live_trace",
        "Trace of the smoothed loss",
        "from the method's own passes, over the last steps: of the batch's loss under noise, and "
        "so off the Hessian's by an amount of order sigma²",
    ),
    (
        "live_smoothed_curvature",
        "Smoothed curvature",
        "from the losses of the method's own passes",
    ),
)

Axis = Callable[[Mapping[str, Any]], float | None]


def curves(study: Study) -> Section | None:
    """What the runs logged along the way; None where they logged nothing."""
    by_epoch = _figures(study, CURVES, "epoch", _epoch)
    by_gradients = _figures(study, CURVES, "gradients", _gradients)
    if not by_epoch:
        return None
    blocks = [Tabs("learning curves", {"by epoch": by_epoch, "by gradients": by_gradients})]
    return Section("curves", "Learning curves", blocks)


def live(study: Study) -> list[Figure]:
    """The curvature that runs measured while they trained."""
    return [_framed(figure) for figure in _figures(study, LIVE, "epoch", _epoch)]


def _framed(figure: Figure) -> Figure:
    """A figure whose frame is that of all but its first tenth, where estimates are of few steps."""
    last = max(at for trace in figure.data for at in trace["x"])
    late = [
        value
        for trace in figure.data
        for at, value in zip(trace["x"], trace["y"], strict=True)
        if at >= last / 10
    ]
    low, high = min(0.0, *late), max(0.0, *late)
    layout = {**figure.layout, "yaxis": {**figure.layout["yaxis"], "range": [low, 1.1 * high]}}
    caption = f"{figure.caption} The first values, of few steps, may leave the frame."
    return replace(figure, layout=layout, caption=caption)


def _figures(
    study: Study, wanted: Sequence[tuple[str, str, str]], axis: str, place: Axis
) -> list[Figure]:
    figures = []
    for key, title, words in wanted:
        data: list[dict[str, Any]] = []
        runs = 0
        points = {
            method: [line for run in by_seed.values() if (line := _points(run, key, place))]
            for method, by_seed in study.runs.items()
        }
        last = max((at for lines in points.values() for line in lines for at, _ in line), default=0)
        for index, method in enumerate(study.runs):
            lines = [_binned(line, last) for line in points[method]]
            runs = max(runs, len(lines))
            data += _band(lines, method, index)
        if data:
            scale = {"type": "log", "dtick": "D2"} if key == "loss" else {}
            band = " The band is the 95 % interval of the mean over seeds." if runs > 1 else ""
            figures.append(
                Figure(
                    title=title,
                    caption=f"{title}, {words}.{band}",
                    data=data,
                    layout={
                        "xaxis": {"title": {"text": axis}},
                        "yaxis": {"title": {"text": title.lower()}, **scale},
                        "hovermode": "x unified",
                    },
                )
            )
    return figures


def _epoch(record: Mapping[str, Any]) -> float | None:
    return finite(record.get("epoch"))


def _gradients(record: Mapping[str, Any]) -> float | None:
    return finite(record.get("gradients"))


def _points(run: Run, key: str, place: Axis) -> list[tuple[float, float]]:
    """What a run logged, and where."""
    points, last = [], None
    for record in run.records:
        at = place(record)
        # What is logged at the end of an epoch stands where the last step does.
        last = at if at is not None else last
        value = finite(record.get(key))
        if last is not None and value is not None:
            points.append((last, value))
    return points


def _binned(points: Sequence[tuple[float, float]], last: float) -> dict[int, tuple[float, float]]:
    """The means of a curve over `POINTS` bins up to the last place: where, and the value."""
    parts: dict[int, list[tuple[float, float]]] = {}
    for at, value in points:
        parts.setdefault(math.ceil(POINTS * at / last) if last else 0, []).append((at, value))
    return {
        number: (part[-1][0], sum(value for _, value in part) / len(part))
        for number, part in parts.items()
    }


def _band(
    lines: Sequence[Mapping[int, tuple[float, float]]], method: str, index: int
) -> list[dict[str, Any]]:
    """The mean over runs and its interval, where all of them have a point."""
    if not lines:
        return []
    common = sorted(set(lines[0]).intersection(*lines[1:]))
    if not common:
        return []
    means = [mean_ci([line[number][1] for line in lines]) for number in common]
    x = numbers(max(line[number][0] for line in lines) for number in common)
    name, tone = plain(method), colour(index)
    # One point has no line.
    mode = "lines" if len(common) > 1 else "markers"
    group = {"legendgroup": name, "x": x, "type": "scatter", "mode": mode}
    hidden = {"showlegend": False, "hoverinfo": "skip", "line": {"width": 0, "color": tone}}
    traces: list[dict[str, Any]] = []
    if all(mean.interval is not None for mean in means):
        low = numbers(mean.interval[0] for mean in means if mean.interval)
        high = numbers(mean.interval[1] for mean in means if mean.interval)
        traces.append({**group, **hidden, "y": low})
        traces.append(
            {**group, **hidden, "y": high, "fill": "tonexty", "fillcolor": faint(tone, 0.16)}
        )
    line = {"color": tone, "width": 2, "dash": DASHES[index % len(DASHES)]}
    y = numbers(mean.mean for mean in means)
    traces.append({**group, "y": y, "name": name, "line": line})
    return traces
