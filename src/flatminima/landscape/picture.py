"""Pictures of slices: curves, contour maps, surfaces, and several on one scale."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np

from flatminima.errors import InputError, require, unknown
from flatminima.landscape.result import Axis, Landscape, Numbers

KINDS = ("contour", "surface")
LEVELS = 20


def plot(landscape: Landscape, ax: Any = None, kind: str = "contour") -> Any:
    """Draw a slice; see `Landscape.plot`."""
    _check(landscape, kind)
    if ax is not None:
        _draw(landscape, ax, kind, _scale([landscape]))
        return ax
    pyplot = require("matplotlib.pyplot", "plot")
    figure = pyplot.figure(figsize=(5.6, 4.8), layout="constrained")
    ax = figure.add_subplot(projection=_projection([landscape], kind))
    mapped = _draw(landscape, ax, kind, _scale([landscape]))
    if mapped is not None:
        _bar(figure, mapped, ax, kind)
    _write(figure, landscape.caption(), 80)
    return ax


def compare_plot(landscapes: Mapping[str, Landscape], kind: str = "contour") -> Any:
    """Several slices side by side, on one scale of the loss; returns the matplotlib figure.

    One-dimensional slices are drawn over each other. What the captions have in common stands below
    all, what differs below each.

    Args:
        landscapes: By the names to show; all of one dimension.
        kind: "contour" or "surface", for planes.

    Raises:
        InputError: nothing to show, lines and planes together, an unknown kind, no finite point;
            matplotlib is not installed.
    """
    shown = list(landscapes.values())
    if not shown:
        raise InputError("there is no landscape to draw: give at least one")
    if len({len(landscape.axes) for landscape in shown}) > 1:
        raise InputError("lines and planes cannot be drawn on one scale: compare one or the other")
    for landscape in shown:
        _check(landscape, kind)
    pyplot = require("matplotlib.pyplot", "plot")
    flat = len(shown[0].axes) == 1
    columns = 1 if flat else len(shown)
    size = (6.4, 4.4) if flat else (1.2 + 3.8 * columns, 4.6)
    figure, axes = pyplot.subplots(
        1,
        columns,
        figsize=size,
        squeeze=False,
        layout="constrained",
        subplot_kw={"projection": _projection(shown, kind)},
    )
    scale = _scale(shown)
    parts = {name: one.caption().split("; ") for name, one in landscapes.items()}
    common = [part for part in parts[next(iter(parts))] if all(part in p for p in parts.values())]
    own = {name: "; ".join(p for p in part if p not in common) for name, part in parts.items()}
    mapped = None
    for i, (name, landscape) in enumerate(landscapes.items()):
        ax = axes[0][0 if flat else i]
        if flat:
            _curve(landscape, ax, name)
        else:
            mapped = _draw(landscape, ax, kind, scale)
            ax.set_title(name, fontsize=11)
    if flat:
        axes[0][0].legend(fontsize=8)
    if mapped is not None:
        _bar(figure, mapped, list(axes[0]), kind)
    lines = ["; ".join(common), *(f"{name}: {words}" for name, words in own.items() if words)]
    _write(figure, "\n".join(lines), int(13 * size[0]))
    return figure


def _draw(landscape: Landscape, ax: Any, kind: str, scale: Numbers) -> Any:
    if len(landscape.axes) == 1:
        return _curve(landscape, ax, None)
    (x, y), loss, _ = landscape.shown()
    across, up = np.meshgrid(x, y, indexing="ij")
    across, up = _sheared(landscape, across, up)
    masked = np.ma.masked_invalid(loss)
    matplotlib = require("matplotlib.colors", "plot")
    norm = matplotlib.PowerNorm(0.5, scale[0], scale[-1])
    first, second = (_label(axis) for axis in landscape.axes)
    ax.set_xlabel(first, fontsize=8)
    ax.set_ylabel(second, fontsize=8)
    if kind == "surface":
        height = np.where(np.isfinite(loss), np.minimum(loss, scale[-1]), np.nan)
        mapped = ax.plot_surface(
            across, up, height, cmap="viridis", norm=norm, rstride=1, cstride=1, linewidth=0
        )
        ax.set_zlim(scale[0], scale[-1])
        ax.tick_params(labelsize=7, pad=-1)
        return mapped
    mapped = ax.contourf(across, up, masked, levels=scale, cmap="viridis", norm=norm, extend="max")
    ax.contour(across, up, masked, levels=scale[::2], colors="white", linewidths=0.4, alpha=0.7)
    ax.set_aspect("equal" if landscape.corners or landscape.path else "auto")
    _mark(landscape, ax)
    return mapped


def _mark(landscape: Landscape, ax: Any) -> None:
    if landscape.path:
        xs, ys = zip(*landscape.path, strict=True)
        ax.plot(xs, ys, "o-", color="tab:red", markersize=3, linewidth=1, label="the run")
    if not landscape.corners:
        ax.plot(0, 0, "+", color="white", markersize=9)
        return
    places = ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0))
    for name, (x, y) in zip(landscape.corners, places, strict=False):
        at = _sheared(landscape, np.array(x), np.array(y))
        ax.plot(*at, "o", color="white", markersize=4)
        ax.annotate(_short(name), at, (3, 3), textcoords="offset points", color="white", fontsize=8)


def _curve(landscape: Landscape, ax: Any, name: str | None) -> None:
    (x,), loss, accuracy = landscape.shown()
    (line,) = ax.plot(x, loss, label=name or "loss")
    ax.set_xlabel(_label(landscape.axes[0]), fontsize=8)
    ax.set_ylabel("loss")
    if landscape.corners:
        for place, corner in enumerate(landscape.corners):
            ax.axvline(place, color="0.7", linewidth=0.8)
            ax.annotate(
                _short(corner),
                (place, 0.98),
                (3, 0),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                fontsize=8,
                va="top",
            )
    if np.isfinite(accuracy).any():
        beside = _accuracy_axes(ax)
        beside.plot(x, accuracy, linestyle="--", color=line.get_color())


def _accuracy_axes(ax: Any) -> Any:
    """The right-hand axis of these axes, made once for all curves."""
    for other in ax.figure.axes:
        if getattr(other, "_accuracy_of", None) is ax:
            return other
    beside = ax.twinx()
    beside._accuracy_of = ax
    beside.set_ylabel("accuracy (dashed)")
    beside.set_ylim(0, 1.02)
    return beside


def _scale(landscapes: list[Landscape]) -> Numbers:
    """Contour levels from the lowest to the highest loss, closer together where it is low."""
    finite = np.concatenate([one.loss[np.isfinite(one.loss)] for one in landscapes])
    low, high = float(finite.min()), float(finite.max())
    if high - low <= 1e-12 * max(abs(low), 1e-300):
        high = low + max(abs(low), 1.0) * 1e-6
    return low + (high - low) * np.linspace(0, 1, LEVELS + 1) ** 2


def _sheared(landscape: Landscape, x: Numbers, y: Numbers) -> tuple[Numbers, Numbers]:
    """Coordinates in which distances between weights are true, for a plane through checkpoints."""
    if not landscape.corners:
        return x, y
    one, two = (axis.length for axis in landscape.axes)
    cosine = landscape.cosine
    return x * one + y * two * cosine, y * two * (1 - cosine**2) ** 0.5


def _label(axis: Axis) -> str:
    return _short(axis.name, 46)


def _short(name: str, most: int = 24) -> str:
    return name if len(name) <= most else f"...{name[-most + 3 :]}"


def _projection(landscapes: list[Landscape], kind: str) -> str | None:
    return "3d" if kind == "surface" and len(landscapes[0].axes) == 2 else None


def _bar(figure: Any, mapped: Any, axes: Any, kind: str) -> None:
    pad = 0.12 if kind == "surface" else 0.02
    figure.colorbar(mapped, ax=axes, label="loss", format="%.3g", shrink=0.8, pad=pad)


def _write(figure: Any, text: str, width: int) -> None:
    lines = [part for line in text.split("\n") for part in textwrap.wrap(line, width)]
    # A dollar sign in a name is no formula.
    figure.supxlabel("\n".join(lines).replace("$", r"\$"), fontsize=7, color="0.35")


def _check(landscape: Landscape, kind: str) -> None:
    if kind not in KINDS:
        raise unknown("kind of picture", kind, KINDS)
    if not np.isfinite(landscape.loss).any():
        raise InputError("no point of the landscape has a finite loss: take a smaller radius")
