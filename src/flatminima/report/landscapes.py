"""The section of landscapes: slices of the loss beside each other, on one scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flatminima.report.blocks import (
    DASHES,
    Block,
    Figure,
    Section,
    Tabs,
    Text,
    colour,
    numbers,
    plain,
)
from flatminima.report.reading import Run, Study

MOST = 8
"""The most planes that are drawn: browsers have few contexts for 3-D."""

HIGHEST = 0.9
"""Losses above this quantile are drawn as it, or one cliff would flatten all else."""

LEVELS = 18

Values = NDArray[np.float64]


class Slice(NamedTuple):
    """A slice of a run's loss.

    Attributes:
        run: Whose.
        told: What its file says.
        loss: The losses on its grid, NaN where there is none.
    """

    run: Run
    told: Mapping[str, Any]
    loss: Values


def landscapes(study: Study) -> Section | None:
    """Slices of the loss that `flatminima landscape` wrote; None where there are none."""
    found = [
        Slice(run, told, loss)
        for run in study.all_runs()
        if (told := run.extras.get("landscape")) and (loss := _losses(told)) is not None
    ]
    lines = [one for one in found if one.loss.ndim == 1]
    planes = [one for one in found if one.loss.ndim == 2]
    if not lines and not planes:
        return None
    blocks: list[Block] = [_line(study, lines)] if lines else []
    if planes:
        shown = planes[:MOST]
        low, high = _range([one.loss for one in shown])
        views: dict[str, Sequence[Block]] = {
            "contour": [_contour(one, low, high) for one in shown],
            "surface": [_surface(one, low, high) for one in shown],
        }
        blocks.append(Tabs("landscapes", views))
        if len(planes) > MOST:
            blocks.append(Text([f"{MOST} of {len(planes)} landscapes are shown."]))
    return Section("landscapes", "Loss landscapes", blocks)


def _losses(told: Mapping[str, Any]) -> Values | None:
    """The losses on the grid, NaN where there is none; None where they are no line or plane."""
    try:
        loss = np.array(told["loss"], dtype=float)
        shape = tuple(len(axis["values"]) for axis in told["axes"])
    except (KeyError, TypeError, ValueError):
        return None
    whole = loss.ndim in (1, 2) and loss.shape == shape and bool(np.isfinite(loss).any())
    return loss if whole else None


def _range(losses: Sequence[Values]) -> tuple[float, float]:
    together = np.concatenate([loss[np.isfinite(loss)] for loss in losses])
    return float(together.min()), float(np.quantile(together, HIGHEST))


def _line(study: Study, lines: Sequence[Slice]) -> Figure:
    data = []
    for one in lines:
        index = study.methods.index(one.run.method)
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": numbers(one.told["axes"][0]["values"]),
                "y": numbers(one.loss),
                "name": plain(_name(one.run)),
                "line": {"color": colour(index), "dash": DASHES[index % len(DASHES)]},
            }
        )
    return Figure(
        title="The loss on a line of weights",
        caption=_caption(lines[0]),
        data=data,
        layout={
            "xaxis": {"title": {"text": plain(lines[0].told["axes"][0].get("name", ""))}},
            "yaxis": {"title": {"text": "training loss"}},
        },
    )


def _contour(one: Slice, low: float, high: float) -> Figure:
    x, y, z = _grid(one)
    data: list[dict[str, Any]] = [
        {
            "type": "contour",
            "x": x,
            "y": y,
            "z": z,
            "colorscale": "Viridis",
            "zmin": low,
            "zmax": high,
            "contours": {"start": low, "end": high, "size": (high - low) / LEVELS or 1.0},
            "line": {"width": 0.5},
            "colorbar": {"title": {"text": "loss"}, "thickness": 12},
            "hovertemplate": "(%{x}, %{y}): loss %{z}<extra></extra>",
        }
    ]
    path = one.told.get("path")
    if isinstance(path, list) and path:
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": numbers(point[0] for point in path),
                "y": numbers(point[1] for point in path),
                "line": {"color": "white", "width": 2},
                "marker": {"color": "white", "line": {"color": "black", "width": 1}, "size": 7},
                "hoverinfo": "skip",
                "showlegend": False,
            }
        )
    return Figure(
        title=_name(one.run),
        caption=_caption(one),
        data=data,
        layout={
            "xaxis": {
                "title": {"text": plain(one.told["axes"][0].get("name", ""))},
                "constrain": "domain",
            },
            "yaxis": {
                "constrain": "domain",
                "title": {"text": plain(one.told["axes"][1].get("name", ""))},
                "scaleanchor": None if path else "x",
            },
        },
        height=400,
    )


def _surface(one: Slice, low: float, high: float) -> Figure:
    x, y, _ = _grid(one)
    z = [numbers(row) for row in np.minimum(one.loss, high).T]
    return Figure(
        title=_name(one.run),
        caption=f"Turn it with the mouse. Losses above {high:.3g} are drawn as that.",
        data=[
            {
                "type": "surface",
                "x": x,
                "y": y,
                "z": z,
                "colorscale": "Viridis",
                "cmin": low,
                "cmax": high,
                "colorbar": {"title": {"text": "loss"}, "thickness": 12},
            }
        ],
        layout={
            "scene": {
                "xaxis": {"title": {"text": "first axis"}},
                "yaxis": {"title": {"text": "second axis"}},
                "zaxis": {"title": {"text": "loss"}, "range": [low, high]},
                "aspectmode": "cube",
            },
            "margin": {"l": 0, "r": 0, "t": 8, "b": 0},
        },
        height=420,
    )


def _grid(one: Slice) -> tuple[Any, Any, Any]:
    """Coordinates and losses as plotly takes them: its rows go along the second axis."""
    x, y = (numbers(axis["values"]) for axis in one.told["axes"])
    return x, y, [numbers(row) for row in one.loss.T]


def _name(run: Run) -> str:
    return f"{run.method}, seed {run.seed}"


def _caption(one: Slice) -> str:
    """What must be known to read the picture."""
    told, axes = one.told, one.told["axes"]
    words = [f"Along {' and '.join(str(axis.get('name')) for axis in axes)}"]
    corners = told.get("corners")
    if corners:
        words = [f"Through {', '.join(map(str, corners))}"]
    ways = dict.fromkeys((axis.get("normalization"), axis.get("biases")) for axis in axes)
    words += [
        f"normalization: {way}; biases and normalization layers "
        f"{'stay' if biases == 'ignore' else 'move'}"
        for way, biases in ways
    ]
    if told.get("batchnorm"):
        words.append(f"BatchNorm statistics: {told['batchnorm']}")
    words.append(f"{told.get('samples')} training samples")
    gaps = int((~np.isfinite(one.loss)).sum())
    if gaps:
        words.append(f"gaps: {gaps} of {one.loss.size} points are not finite or were not evaluated")
    return f"{'; '.join(words)}."
