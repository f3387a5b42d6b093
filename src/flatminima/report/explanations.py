"""The section of explanations: where runs look when they disagree, and how heads are tilted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flatminima.report.blocks import (
    MARKERS,
    Block,
    Cell,
    Figure,
    Gallery,
    Sample,
    Section,
    Table,
    Tabs,
    colour,
    numbers,
    plain,
)
from flatminima.report.mistakes import png
from flatminima.report.reading import Run, Study, finite
from flatminima.study.numbers import difference, with_error
from flatminima.study.statistics import mean_ci, paired

SHOWN = 8
"""Images whose maps are shown."""

ANGLE = "mean_degrees"

STRENGTH = "median_strength"

COLUMNS = (
    ("test_accuracy", "test accuracy (%)", 100.0),
    (ANGLE, "angle (degrees)", 1.0),
    (STRENGTH, "strength", 1.0),
    ("mean_distance", "distance (of nearest centroids)", 1.0),
)


def explanations(study: Study) -> Section | None:
    """What `flatminima explain` wrote; None where it was not run."""
    told = [(run, run.extras["explain"]) for run in study.all_runs() if "explain" in run.extras]
    if not told:
        return None
    blocks: list[Block] = [*_tilting(study), *_planes(study, told), *_maps(study, told)]
    return Section("explanations", "Explanations", blocks) if blocks else None


def _tilting(study: Study) -> list[Block]:
    """How each method tilts its heads, beside its accuracy: means over runs."""
    heads = {method: _heads(by_seed) for method, by_seed in study.runs.items()}
    heads = {method: found for method, found in heads.items() if found}
    if not heads:
        return []
    reference = study.reference if study.reference in heads else next(iter(heads))
    rows = []
    for method, found in heads.items():
        cells = [Cell(method, method), Cell(str(len(found)), float(len(found)))]
        for key, _, scale in COLUMNS:
            values = _finite(found, key)
            if key == STRENGTH and (infinite := _infinite(found)):
                part = "" if infinite == len(found) else f" in {infinite} of {len(found)} runs"
                cells.append(Cell(f"infinite{part}"))
                continue
            if not values:
                cells.append(Cell(with_error(None, None)))
                continue
            mean = mean_ci(values.values())
            cells.append(Cell(with_error(mean.mean, mean.interval, scale), mean.mean))
        ours, theirs = _finite(found, ANGLE), _finite(heads[reference], ANGLE)
        if method == reference or not ours.keys() & theirs.keys():
            cells.append(Cell(with_error(None, None)))
        else:
            change = paired(ours, theirs)
            cells.append(Cell(difference(change.difference, change.t_interval), change.difference))
        rows.append(cells)
    notes = [
        "Of the last linear layer on its own features of the training set, for every two classes: "
        "the angle between the boundary's normal and the line between the two class means (mean "
        "over pairs), 1 / cos of it (median; infinite where the angle is 90 degrees or more, along "
        "or against the line), and cos of it (mean over pairs), which is the mean distance of "
        "features from the boundary in parts of that from the nearest-centroid one. "
        f"Means over runs with 95 % t intervals; the change from {reference} is paired by seed.",
        "Angles are about the features, not about pixels: networks whose heads are tilted alike "
        "may still be fooled by changes of their inputs of other sizes.",
    ]
    headers = ["method", "runs", *(label for _, label, _ in COLUMNS), "change of the angle"]
    return [Table("How heads are tilted", headers, rows, notes)]


def _heads(by_seed: Mapping[int, Run]) -> dict[int, Mapping[str, Any]]:
    """What was told of heads, by the seeds of their runs."""
    told = {seed: run.extras["explain"] for seed, run in by_seed.items() if "explain" in run.extras}
    return {
        seed: {**one, **one["head"]}
        for seed, one in told.items()
        if isinstance(one.get("head"), Mapping)
    }


def _finite(found: Mapping[int, Mapping[str, Any]], key: str) -> dict[int, float]:
    values = {seed: finite(one.get(key)) for seed, one in found.items()}
    return {seed: value for seed, value in values.items() if value is not None}


def _infinite(found: Mapping[int, Mapping[str, Any]]) -> int:
    """Of how many runs the strength is infinite: JSON has no number for it."""
    return sum(
        one.get(STRENGTH, 0) is None and finite(one.get(ANGLE)) is not None
        for one in found.values()
    )


def _planes(study: Study, told: Sequence[tuple[Run, Mapping[str, Any]]]) -> list[Block]:
    """The tilting plane of each method's first run that has one."""
    views: dict[str, Sequence[Block]] = {}
    for run, found in told:
        if run.method in views or not isinstance(found.get("plane"), Mapping):
            continue
        figure = _plane(run, found["plane"])
        if figure is None:
            study.notes.append(f"{run.folder}: its tilting plane is not understood.")
        else:
            views[run.method] = [figure]
    return [Tabs("The most tilted boundary of", views)] if views else []


def _plane(run: Run, found: Mapping[str, Any]) -> Figure | None:
    try:
        points = [(float(x), float(y)) for x, y in found["points"]]
        labels = [int(label) for label in found["labels"]]
        names = [str(name) for name in found["classes"]]
        (across, along), offset = map(float, found["normal"]), float(found["offset"])
        degrees, samples = float(found["degrees"]), int(found["samples"])
    except (KeyError, TypeError, ValueError):
        return None
    if len(names) != 2 or len(points) != len(labels) or not set(labels) <= {0, 1} or not points:
        return None
    reach = 1.1 * max(abs(value) for point in points for value in point)
    data: list[dict[str, Any]] = []
    for label, name in enumerate(names):
        mine = [point for point, own in zip(points, labels, strict=True) if own == label]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": numbers(x for x, _ in mine),
                "y": numbers(y for _, y in mine),
                "name": plain(name),
                "marker": {"color": colour(label), "symbol": MARKERS[label], "size": 6},
            }
        )
    ends = (-3 * reach, 3 * reach)
    for title, (x, y), shift, dash in (
        ("boundary", (across, along), offset, "solid"),
        ("nearest centroid", (1.0, 0.0), 0.0, "dash"),
    ):
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": numbers(-shift * x - end * y for end in ends),
                "y": numbers(-shift * y + end * x for end in ends),
                "name": title,
                "line": {"dash": dash, "color": "#7F7F7F"},
            }
        )
    span = {"range": numbers((-reach, reach)), "zeroline": False}
    shown = "" if samples == len(points) else f" {len(points)} of {samples} samples are drawn."
    return Figure(
        title=f"{run.method}, seed {run.seed}: {names[0]} and {names[1]}",
        caption=f"The features of the most tilted pair, {degrees:.0f} degrees, in the plane of the "
        f"line between the class means and the boundary's normal; distances are true.{shown}",
        data=data,
        layout={
            "xaxis": {"title": {"text": "along the line between the means"}, **span},
            "yaxis": {"title": {"text": "at right angles to it"}, "scaleanchor": "x", **span},
        },
        height=420,
    )


def _maps(study: Study, told: Sequence[tuple[Run, Mapping[str, Any]]]) -> list[Block]:
    """A gallery an image: as it is, and where each run looks."""
    seen: dict[str, list[tuple[Run, Mapping[str, Any], Mapping[str, Any]]]] = {}
    for run, found in told:
        maps = found.get("maps")
        if not isinstance(maps, Mapping):
            continue
        for entry in maps.get("images", ()):
            if isinstance(entry, Mapping) and png(entry.get("map")):
                seen.setdefault(str(entry.get("id")), []).append((run, maps, entry))
            else:
                study.notes.append(f"{run.folder}: one of its maps is not understood.")
    # Those that several runs have tell more.
    shown = sorted(seen.values(), key=len, reverse=True)[:SHOWN]
    galleries: list[Block] = []
    for runs in shown:
        _, maps, first = runs[0]
        samples = [Sample("", png(first.get("image")), [f"label: {first.get('label')}"])]
        for run, _, entry in runs:
            confidence = finite(entry.get("confidence")) or 0.0
            said = f"predicted: {entry.get('predicted')} ({100 * confidence:.0f} %)"
            name = f"{run.method}, seed {run.seed}"
            samples.append(Sample("", png(entry["map"]), [f"{name}: map", said]))
        layers = maps.get("layers")
        of = ", ".join(map(str, layers)) if isinstance(layers, list) else "the network"
        several = isinstance(layers, list) and len(layers) > 1
        scale = ", multiplied; shown as their geometric mean" if several else ""
        caption = f"{maps.get('why', '')}. Maps ({maps.get('method')}) of {of}{scale}."
        galleries.append(
            Gallery(f"Where they look: {first.get('label')}", _capital(caption), samples)
        )
    return galleries


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
