"""How much flatter NSO ends than the methods that reduce sharpness, of studies that were kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flatminima.files import read_json
from flatminima.study import mean_ci
from flatminima.study.numbers import difference
from flatminima.training.recipe import parse_method

SHARPNESS = (
    "sam",
    "m-sam",
    "usam",
    "asam",
    "rsam",
    "bsam",
    "gsam",
    "looksam",
    "friendly-sam",
    "glad",
)
"""The methods that the paper's claims are about, those of the field that came since among them."""

OURS = "nso"
METRICS = ("hessian_trace", "top_eigenvalue")
PAPER = "the paper, against sharpness-reducing methods"
CLAIMS = {f"{PAPER} (v4)": (-15.8, -9.7), f"{PAPER} (v3)": (-17.7, -12.8)}


def studies(results: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Name and summary of each kept study that measured NSO and such a method, in order."""
    files = [results / "methods-digits.json", results / "demo.json"]
    for file in [*files, *sorted(results.glob("experiment-*.json"))]:
        found = read_json(file)
        points = [("", found.get("summary", found))]
        if "points" in found:
            points = [(place(point["at"]), point["summary"]) for point in found["points"]]
        for at, summary in points:
            if "methods" in summary and _ours(summary) and _against(summary):
                name = file.stem.removeprefix("experiment-")
                yield f"{name}, {at}" if at else name, summary


def place(at: Mapping[str, Any]) -> str:
    """A point of a study along a setting, in words."""
    return ", ".join(
        f"{name.replace('_', ' ')} {value if isinstance(value, str) else format(value, 'g')}"
        for name, value in at.items()
    )


def table(results: Path) -> str:
    """A row for each study: NSO over the mean and over the flattest of those methods, by seed."""
    lines = [
        "| study | methods | trace, to their mean | trace, to the flattest | top eigenvalue, to "
        "their mean | top eigenvalue, to the flattest |",
        "| :-- | --: | --: | --: | --: | --: |",
    ]
    for claim, (trace, eigenvalue) in CLAIMS.items():
        lines.append(f"| {claim} | | {trace} % | | {eigenvalue} % | |")
    for name, summary in studies(results):
        cells = [name, str(len(_against(summary)))]
        for metric in METRICS:
            if not all(
                metric in summary["methods"][m] for m in (_ours(summary), *_against(summary))
            ):
                cells += ["-", "-"]
                continue
            mean, (best, least) = changes(summary, metric)
            cells += [_percent(mean), f"{_percent(least)} ({best.partition(':')[0]})"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def changes(
    summary: Mapping[str, Any], metric: str
) -> tuple[np.ndarray[Any, Any], tuple[str, np.ndarray[Any, Any]]]:
    """NSO's metric over that of the others, less 1, for each seed.

    Args:
        summary: Of a comparison.
        metric: Of curvature.

    Seeds on which a run has no finite value are left out.

    Returns:
        Over the mean of the others; the one whose mean over seeds is least, and over that one.
    """
    methods = summary["methods"]
    names = [_ours(summary), *_against(summary)]
    values = np.array([methods[name][metric]["values"] for name in names], dtype=float)
    ours, *rest = values[:, np.isfinite(values).all(axis=0)]
    others = dict(zip(names[1:], rest, strict=True))
    best = min(others, key=lambda name: others[name].mean())
    return ours / np.mean(list(others.values()), axis=0) - 1, (best, ours / others[best] - 1)


def _ours(summary: Mapping[str, Any]) -> str | None:
    """NSO with no option but its sigma, where its curvature was measured."""
    for method, found in summary["methods"].items():
        name, own = parse_method(method)
        if name == OURS and not set(own) - {"sigma"} and METRICS[0] in found:
            return str(method)
    return None


def _against(summary: Mapping[str, Any]) -> Sequence[str]:
    methods = summary["methods"]
    return [m for m in methods if parse_method(m)[0] in SHARPNESS and METRICS[0] in methods[m]]


def _percent(values: np.ndarray[Any, Any]) -> str:
    found = mean_ci(values.tolist())
    return f"{difference(found.mean, found.interval, 100)} %"
