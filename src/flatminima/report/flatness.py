"""The section of curvature: how flat each minimum is, by each of its measures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from flatminima.report.blocks import (
    MARKERS,
    PATTERNS,
    Block,
    Cell,
    Figure,
    Section,
    Table,
    colour,
    numbers,
    plain,
)
from flatminima.report.comparing import KNOWN
from flatminima.report.curves import live
from flatminima.report.guard import sound
from flatminima.report.reading import Run, Study, finite
from flatminima.report.spectra import criteria, densities
from flatminima.student import t_reach
from flatminima.study.numbers import with_error
from flatminima.study.statistics import mean_ci

BARS = ("hessian_trace", "top_eigenvalue", "perturbation_gap")

LAYERS = 12
"""The most layers that are shown."""


def flatness(study: Study) -> Section | None:
    """What was measured of the minima; None where nothing was."""
    blocks: list[Block] = [bars(study, key) for key in BARS if key in study.values]
    parts: dict[str, Callable[[Study], Block | None]] = {
        "The loss under noise": gaps,
        "The densities": densities,
        "The layers": layers,
    }
    blocks += sound(study, parts)
    blocks += live(study)
    blocks += sound(study, {"The sides of spectra": criteria, "The bounds": bound})
    return Section("flatness", "Flatness", blocks) if blocks else None


def bars(study: Study, key: str) -> Figure:
    """Means of a measure over seeds, with their intervals."""
    metric = KNOWN[key]
    by_method = study.values[key]
    shown = [method for method in study.methods if by_method.get(method)]
    means = [mean_ci(list(by_method[method].values())) for method in shown]
    halves = numbers(mean.half_width or 0.0 for mean in means)
    data = [
        {
            "type": "bar",
            "x": [plain(method) for method in shown],
            "y": numbers(mean.mean for mean in means),
            "error_y": {"type": "data", "array": halves, "visible": any(halves)},
            "marker": {"color": [colour(study.methods.index(method)) for method in shown]},
            "hovertemplate": "%{x}: %{y}<extra></extra>",
            "showlegend": False,
        }
    ]
    interval = ", with 95 % intervals of the mean over seeds" if any(halves) else ""
    return Figure(
        title=f"{metric.label[0].upper()}{metric.label[1:]}",
        caption=f"On the training set, at the end{interval}. {WORDS[key]}",
        data=data,
        layout={"yaxis": {"title": {"text": metric.label}, "rangemode": "tozero"}},
        height=300,
    )


WORDS = {
    "hessian_trace": "The sum of all eigenvalues of the Hessian.",
    "top_eigenvalue": "The Hessian's largest eigenvalue: the steepest direction.",
    "perturbation_gap": "How much the loss rises on the mean under normal noise.",
}


def gaps(study: Study) -> Figure | None:
    """The loss under noise against sigma, beside what the trace predicts."""
    data: list[dict[str, Any]] = []
    several = False
    sigmas: set[float] = set()
    for index, (method, by_seed) in enumerate(study.runs.items()):
        points = _richest(by_seed.values(), "noise_stability", "points")
        rows = [row for point in points if (row := _gap(point))]
        if not rows:
            continue
        several |= len(rows) > 1
        sigma, gap, error, predicted = zip(*rows, strict=True)
        sigmas |= set(sigma)
        name, tone = plain(method), colour(index)
        data.append(
            {
                "type": "scatter",
                "mode": "markers+lines" if len(rows) > 1 else "markers",
                "x": numbers(sigma),
                "y": numbers(gap),
                "error_y": {"type": "data", "array": numbers(error)},
                "name": name,
                "legendgroup": name,
                "line": {"color": tone},
                "marker": {"color": tone, "symbol": MARKERS[index % len(MARKERS)], "size": 9},
            }
        )
        data.append(
            {
                "type": "scatter",
                "mode": "lines" if len(rows) > 1 else "markers",
                "x": numbers(sigma),
                "y": numbers(predicted),
                "name": f"{name}: sigma²/2 Tr H",
                "legendgroup": name,
                "showlegend": False,
                "line": {"color": tone, "dash": "dot"},
                "marker": {"color": tone, "symbol": "line-ew-open", "size": 16},
            }
        )
    if not data:
        return None
    scale = {"type": "log"} if several else {"rangemode": "tozero"}
    ticks = {"tickvals": sorted(sigmas), "ticktext": [f"{s:g}" for s in sorted(sigmas)]}
    return Figure(
        title="The loss under noise",
        caption="F(W) - f(W), how much normal noise of each sigma raises the training loss (one "
        "run a method, 95 % error bars of the noise), and dotted what the Hessian's trace "
        "predicts. Where they part, there is more than the second order: kinks, or sigma is large.",
        data=data,
        layout={
            "xaxis": {"title": {"text": "sigma"}, **scale, **ticks},
            "yaxis": {"title": {"text": "F - f"}, **scale},
        },
    )


def _gap(point: Any) -> tuple[float, float, float, float] | None:
    try:
        two = point["two_sided"]
        reach = t_reach(0.95, two["samples"]) * two["stderr"]
        found = (point["sigma"], two["value"], reach)
        predicted = point["predicted"]["value"] if point.get("predicted") else float("nan")
    except (KeyError, TypeError):
        return None
    if any(finite(value) is None for value in found):
        return None
    return (*found, predicted)


def layers(study: Study) -> Figure | None:
    """Where the trace sits, layer by layer, the mean over seeds."""
    found: dict[str, dict[str, list[float]]] = {}
    for method, by_seed in study.runs.items():
        for run in by_seed.values():
            trace = run.curvature.get("trace")
            blocks = trace.get("blocks") if isinstance(trace, Mapping) else None
            for name, block in blocks.items() if isinstance(blocks, Mapping) else ():
                value = finite(block.get("value")) if isinstance(block, Mapping) else None
                if value is not None:
                    found.setdefault(str(name), {}).setdefault(method, []).append(value)
    if not found:
        return None

    def size(name: str) -> float:
        return max(abs(sum(v) / len(v)) for v in found[name].values())

    chosen = set(sorted(found, key=size, reverse=True)[:LAYERS])
    shown = [name for name in found if name in chosen]
    data = []
    for index, method in enumerate(study.methods):
        means = [
            sum(values) / len(values) if (values := found[name].get(method)) else None
            for name in shown
        ]
        if any(mean is not None for mean in means):
            data.append(
                {
                    "type": "bar",
                    "x": [plain(name) for name in shown],
                    "y": numbers(means),
                    "name": plain(method),
                    "marker": {
                        "color": colour(index),
                        "pattern": {"shape": PATTERNS[index % len(PATTERNS)]},
                    },
                }
            )
    rest = f" The {LAYERS} largest of {len(found)} are shown." if len(found) > LAYERS else ""
    return Figure(
        title="Where the trace sits",
        caption=f"The trace of each parameter tensor's block of the Hessian, mean over runs.{rest}",
        data=data,
        layout={"barmode": "group", "yaxis": {"title": {"text": "trace of the block"}}},
    )


TERMS = ("loss_term", "noise_term", "distance_term", "confidence_term", "value")


def bound(study: Study) -> Table | None:
    """The PAC-Bayes bound with its terms, where it was computed."""
    rows, notes = [], []
    for run in study.all_runs():
        found = run.extras.get("bound")
        terms = found.get("terms") if found else None
        if not found or not isinstance(terms, Mapping):
            continue
        values = [finite(terms.get(name)) for name in TERMS]
        name = f"{run.method}, seed {run.seed}"
        cells = [Cell(name, name)] + [Cell(with_error(v, None), v) for v in values]
        vacuous = bool(found.get("vacuous"))
        cells.append(Cell("vacuous" if vacuous else "says something", float(vacuous)))
        rows.append(cells)
        notes = [
            f"With probability {1 - (finite(found.get('delta')) or 0):g} over training sets, as "
            "far as its estimates hold: the largest trace and the largest loss are those seen, not "
            "certified maxima. Vacuous: it says no more than that a loss is at most the largest.",
        ]
    if not rows:
        return None
    headers = ["run", "loss / beta", "noise", "distance", "confidence", "bound", "verdict"]
    return Table("PAC-Bayes bound on the expected test loss, term by term", headers, rows, notes)


def _richest(runs: Iterable[Run], part: str, key: str) -> Sequence[Any]:
    """The longest of a list that some measurements of one method hold."""
    best: Sequence[Any] = ()
    for run in runs:
        measured = run.curvature.get(part)
        found = measured.get(key) if isinstance(measured, Mapping) else None
        if isinstance(found, list) and len(found) > len(best):
            best = found
    return best
