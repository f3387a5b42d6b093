"""The section of landscapes: slices of the loss beside each other, on one scale."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
from flatminima.report.reading import LARGEST, Run, Study, finite

MOST = 8
"""The most planes that are drawn of a kind: browsers have few contexts for 3-D."""

HIGHEST = 0.9
"""Losses above this quantile are drawn as it, or one cliff would flatten all else."""

LEVELS = 18

Values = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Slice:
    """A slice of a run's loss, as far as its file can be understood.

    Attributes:
        run: Whose.
        at: The coordinates of the grid, along each axis.
        names: Of the axes.
        loss: The losses on the grid, NaN where there is none.
        accuracy: The accuracies, likewise.
        missing: How many points were not evaluated.
        path: Coordinates of the run's checkpoints.
        words: What must be known to read the picture.
    """

    run: Run
    at: tuple[list[float], ...]
    names: tuple[str, ...]
    loss: Values
    accuracy: Values
    missing: int
    path: list[tuple[float, float]]
    words: str

    @property
    def name(self) -> str:
        """Whose it is, for people."""
        return f"{self.run.method}, seed {self.run.seed}"


def landscapes(study: Study) -> Section | None:
    """Slices of the loss that `flatminima landscape` wrote; None where there are none."""
    blocks: list[Block] = []
    kinds = dict.fromkeys(kind for run in study.all_runs() for kind in run.landscapes)
    for kind in kinds:
        found = []
        for run in _in_turns(study):
            if kind in run.landscapes:
                one = _slice(run, run.landscapes[kind])
                if one is None:
                    study.notes.append(f"{run.folder}: its landscape {kind} is not understood.")
                else:
                    found.append(one)
        blocks += _of_kind(study, kind, found)
    return Section("landscapes", "Loss landscapes", blocks) if blocks else None


def _in_turns(study: Study) -> Iterable[Run]:
    """The first run of each method, then the second of each, so that none is crowded out."""
    by_method = [list(by_seed.values()) for by_seed in study.runs.values()]
    rounds = itertools.zip_longest(*by_method)
    return (run for some in rounds for run in some if run is not None)


def _of_kind(study: Study, kind: str, found: Sequence[Slice]) -> list[Block]:
    blocks: list[Block] = []
    lines = [one for one in found if len(one.at) == 1]
    # Only what is described alike is in one picture.
    for words in dict.fromkeys(one.words for one in lines):
        blocks.append(_line(study, [one for one in lines if one.words == words]))
    planes = [one for one in found if len(one.at) == 2]
    if planes:
        shown = planes[:MOST]
        together = np.concatenate([one.loss[np.isfinite(one.loss)] for one in shown])
        low, high = float(together.min()), float(np.quantile(together, HIGHEST))
        views: dict[str, Sequence[Block]] = {
            "contour": [_contour(one, low, high) for one in shown],
            "surface": [_surface(one, low, high) for one in shown],
        }
        accurate = [one for one in shown if np.isfinite(one.accuracy).any()]
        if accurate:
            views["accuracy"] = [_accuracy(one) for one in accurate]
        blocks.append(Tabs(f"landscapes {kind}".strip(), views))
        if len(planes) > MOST:
            blocks.append(Text([f"{MOST} of {len(planes)} landscapes are shown."]))
    return blocks


def _slice(run: Run, told: Mapping[str, Any]) -> Slice | None:
    """What a file says; None where it is no line or plane with a finite loss."""
    try:
        axes = list(told["axes"])
        at = tuple([float(value) for value in axis["values"]] for axis in axes)
        shape = tuple(map(len, at))
        loss = _usable(told["loss"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    within = all(finite(value) is not None for values in at for value in values)
    if loss.shape != shape or loss.ndim not in (1, 2) or not within or not np.isfinite(loss).any():
        return None
    try:
        accuracy = _usable(told["accuracy"])
    except (KeyError, TypeError, ValueError, OverflowError):
        accuracy = np.full(shape, np.nan)
    if accuracy.shape != shape:
        accuracy = np.full(shape, np.nan)
    rows = told.get("evaluated")
    seen = "".join(map(str, rows)).count("1") if isinstance(rows, list) else loss.size
    return Slice(
        run=run,
        at=at,
        names=tuple(str(axis.get("name", "")) for axis in axes),
        loss=loss,
        accuracy=accuracy,
        missing=max(0, loss.size - seen),
        path=_path(told.get("path")),
        words=_words(told, axes),
    )


def _usable(values: Any) -> Values:
    """Numbers, NaN where there is none that can be drawn."""
    found = np.array(values, dtype=float)
    return np.where(np.abs(found) <= LARGEST, found, np.nan)


def _path(told: Any) -> list[tuple[float, float]]:
    points = []
    for point in told if isinstance(told, list) else ():
        if isinstance(point, list) and len(point) == 2:
            x, y = finite(point[0]), finite(point[1])
            if x is not None and y is not None:
                points.append((x, y))
    return points


def _words(told: Mapping[str, Any], axes: Sequence[Any]) -> str:
    corners = told.get("corners")
    if isinstance(corners, list) and corners:
        words = [f"Through {', '.join(map(str, corners))}"]
    else:
        words = [f"Along {' and '.join(str(axis.get('name')) for axis in axes)}"]
    ways = dict.fromkeys((str(a.get("normalization")), str(a.get("biases"))) for a in axes)
    words += [
        f"normalization: {way}; biases and normalization layers "
        f"{'stay' if biases == 'ignore' else 'move'}"
        for way, biases in ways
    ]
    if told.get("batchnorm"):
        words.append(f"BatchNorm statistics: {told['batchnorm']}")
    words.append(f"{told.get('samples')} training samples")
    return "; ".join(words)


def _caption(one: Slice) -> str:
    words = [one.words]
    gaps = int((~np.isfinite(one.loss)).sum()) - one.missing
    if gaps > 0:
        words.append(f"gaps: {gaps} of {one.loss.size} points have no finite loss")
    if one.missing:
        words.append(f"{one.missing} of {one.loss.size} points were not evaluated")
    return f"{'; '.join(words)}."


def _line(study: Study, lines: Sequence[Slice]) -> Figure:
    data = []
    for number, one in enumerate(lines):
        index = study.methods.index(one.run.method)
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": numbers(one.at[0]),
                "y": numbers(one.loss),
                "name": plain(one.name),
                "line": {"color": colour(index), "dash": DASHES[number % len(DASHES)]},
            }
        )
    return Figure(
        title="The loss on a line of weights",
        caption=_caption(lines[0]),
        data=data,
        layout={
            "xaxis": {"title": {"text": plain(lines[0].names[0])}},
            "yaxis": {"title": {"text": "training loss"}},
        },
    )


def _contour(one: Slice, low: float, high: float) -> Figure:
    levels = {"start": low, "end": high, "size": (high - low) / LEVELS or 1.0}
    return _plane(one, one.loss, "loss", {"zmin": low, "zmax": high, "contours": levels})


def _accuracy(one: Slice) -> Figure:
    return _plane(one, 100 * one.accuracy, "accuracy (%)", {"zmin": 0, "zmax": 100})


def _plane(one: Slice, values: Values, label: str, scale: Mapping[str, Any]) -> Figure:
    data: list[dict[str, Any]] = [
        {
            "type": "contour",
            "x": numbers(one.at[0]),
            "y": numbers(one.at[1]),
            # Plotly's rows go along the second axis.
            "z": [numbers(row) for row in values.T],
            "colorscale": "Viridis",
            **scale,
            "line": {"width": 0.5},
            "colorbar": {"title": {"text": label}, "thickness": 12},
            "hovertemplate": "(%{x}, %{y}): " + label + " %{z}<extra></extra>",
        }
    ]
    if one.path:
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": numbers(x for x, _ in one.path),
                "y": numbers(y for _, y in one.path),
                "line": {"color": "white", "width": 2},
                "marker": {"color": "white", "line": {"color": "black", "width": 1}, "size": 7},
                "hoverinfo": "skip",
                "showlegend": False,
            }
        )
    return Figure(
        title=one.name,
        caption=_caption(one),
        data=data,
        layout={
            "xaxis": {"title": {"text": plain(one.names[0])}, "constrain": "domain"},
            "yaxis": {
                "title": {"text": plain(one.names[1])},
                "constrain": "domain",
                "scaleanchor": None if one.path else "x",
            },
        },
        height=400,
    )


def _surface(one: Slice, low: float, high: float) -> Figure:
    return Figure(
        title=one.name,
        caption=f"{_caption(one)} Losses above {high:.3g} are drawn as that. Turn it with the "
        "mouse, or with the arrow keys.",
        data=[
            {
                "type": "surface",
                "x": numbers(one.at[0]),
                "y": numbers(one.at[1]),
                "z": [numbers(row) for row in np.minimum(one.loss, high).T],
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
                "zaxis": {
                    "title": {"text": "loss"},
                    "range": [low, high if high > low else low + 1],
                },
                "aspectmode": "cube",
            },
            "margin": {"l": 0, "r": 0, "t": 8, "b": 0},
        },
        height=420,
    )
