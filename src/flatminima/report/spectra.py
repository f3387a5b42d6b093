"""The spectra of the Hessians: densities, and what their two sides say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from flatminima.report.blocks import DASHES, Cell, Figure, Table, colour, numbers, plain
from flatminima.report.reading import Study, finite

GRID = 240
"""Points of a density."""

WIDTH = 0.01
"""The standard deviation of a density's kernel, in parts of the range of all eigenvalues."""

FLOOR = 1e-6
"""The least density that is drawn, in parts of the largest."""


def densities(study: Study) -> Figure | None:
    """The densities of the Hessians' eigenvalues, where they were measured."""
    found = {}
    for method, by_seed in study.runs.items():
        for run in by_seed.values():
            density = run.curvature.get("density")
            if isinstance(density, Mapping) and (nodes := _quadrature(density)) is not None:
                found[method] = nodes
                break
    if not found:
        return None
    low = min(t.min() for t, _ in found.values())
    high = max(t.max() for t, _ in found.values())
    width = WIDTH * ((high - low) or 1.0)
    grid = np.linspace(low - 4 * width, high + 4 * width, GRID)
    data = []
    top = 0.0
    for method, (nodes, weights) in found.items():
        index = study.methods.index(method)
        kernel = np.exp(-0.5 * ((grid[:, None] - nodes) / width) ** 2)
        density = kernel @ weights / (width * np.sqrt(2 * np.pi))
        top = max(top, float(density.max()))
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": numbers(grid),
                "y": numbers(density),
                "name": plain(method),
                "line": {"color": colour(index), "dash": DASHES[index % len(DASHES)]},
            }
        )
    bounds = [float(np.log10(top * FLOOR)), float(np.log10(top)) + 0.2]
    return Figure(
        title="Density of the Hessian's eigenvalues",
        caption="One run a method, by stochastic Lanczos quadrature, smoothed by a normal kernel "
        "of 1 % of the range. The scale is logarithmic: few eigenvalues are far from 0.",
        data=data,
        layout={
            "xaxis": {"title": {"text": "eigenvalue"}},
            "yaxis": {"title": {"text": "density"}, "type": "log", "range": bounds},
        },
    )


def criteria(study: Study) -> Table | None:
    """Ratios of negative to positive curvature, where a density was measured."""
    rows = []
    for run in study.all_runs():
        density = run.curvature.get("density")
        found = _ratios(density) if isinstance(density, Mapping) else None
        if found is None:
            continue
        edge, mass = found
        name = f"{run.method}, seed {run.seed}"
        reading = "mainly positive" if edge <= 1 else "mainly negative: not to be interpreted"
        cells = [Cell(f"{value:.3g}", value) for value in found]
        rows.append([Cell(name, name), *cells, Cell(reading, mass)])
    if not rows:
        return None
    return Table(
        "The two sides of the spectrum",
        ["run", "|lowest / highest eigenvalue|", "negative / positive mass", "reading"],
        rows,
        [
            "Small at a minimum; near 1 the spectrum is about symmetric, as at random weights. "
            "They compare one network at the same number of samples."
        ],
    )


def _quadrature(density: Mapping[str, Any]) -> tuple[Any, Any] | None:
    try:
        nodes = np.concatenate([np.asarray(row, dtype=float) for row in density["nodes"]])
        weights = np.concatenate([np.asarray(row, dtype=float) for row in density["weights"]])
        weights = weights / len(density["nodes"])
    except (KeyError, TypeError, ValueError):
        return None
    whole = nodes.size > 0 and nodes.shape == weights.shape
    return (nodes, weights) if whole and np.isfinite([nodes, weights]).all() else None


def _ratios(density: Mapping[str, Any]) -> tuple[float, float] | None:
    """Of lowest to highest eigenvalue and of negative to positive mass, means over probes."""
    edges, masses = [], []
    try:
        for row, parts in zip(density["nodes"], density["weights"], strict=True):
            nodes, weights = np.asarray(row, dtype=float), np.asarray(parts, dtype=float)
            edges.append(abs(nodes.min() / nodes.max()))
            mass = nodes * weights
            masses.append(-mass[mass < 0].sum() / mass[mass > 0].sum())
    except (KeyError, TypeError, ValueError):
        return None
    means = (finite(float(np.mean(edges))), finite(float(np.mean(masses))))
    return None if means[0] is None or means[1] is None else (means[0], means[1])
