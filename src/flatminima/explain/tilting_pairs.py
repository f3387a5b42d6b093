"""Tilting between every two of many classes: of linear estimators and of networks' heads."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flatminima.arguments import floats
from flatminima.errors import InputError, require
from flatminima.explain.tilting import TiltReport, strength_in_words, tilt_report
from flatminima.progress import Progress, silent


@dataclass(frozen=True)
class PairTilts:
    """The boundaries between classes, two by two.

    Attributes:
        pairs: `(I, J)` to the report of the boundary where their scores are equal, on the samples
            of these two classes; I before J.
        accuracy: Part of all samples whose class has the highest score, in [0, 1].
        samples: How many.
        of: What is tilted: the estimator, or the layer.
    """

    pairs: Mapping[tuple[Any, Any], TiltReport]
    accuracy: float
    samples: int
    of: str

    @property
    def mean_degrees(self) -> float:
        """The mean of the deviation angles over pairs, in degrees."""
        return float(np.mean([one.degrees for one in self.pairs.values()]))

    @property
    def median_strength(self) -> float:
        """The median of the strengths over pairs; a mean would be that of the largest."""
        return float(np.median([one.strength for one in self.pairs.values()]))

    @property
    def mean_distance(self) -> float:
        """The mean over pairs of the adversarial distance over half of the separation.

        That is the mean of the cosines: 1 for nearest centroids, in units that do not depend on the
        scale of features, so that networks can be held against each other.
        """
        return float(
            np.mean([2 * p.adversarial_distance / p.separation for p in self.pairs.values()])
        )

    def most_tilted(self, count: int = 1) -> list[tuple[Any, Any]]:
        """The pairs of the largest angles, largest first."""
        return sorted(self.pairs, key=lambda pair: -self.pairs[pair].deviation_angle)[:count]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; an infinite strength becomes None."""
        return {
            "of": self.of,
            "samples": self.samples,
            "accuracy": self.accuracy,
            "mean_degrees": self.mean_degrees,
            "median_strength": _finite(self.median_strength),
            "mean_distance": self.mean_distance,
            "pairs": [one.to_dict() for one in self.pairs.values()],
        }

    def plot(self, ax: Any = None) -> Any:
        """The angles of all pairs as a matrix of colours; returns the matplotlib Axes."""
        pyplot = require("matplotlib.pyplot", "plot")
        names = list(dict.fromkeys(name for pair in self.pairs for name in pair))
        table = np.full((len(names), len(names)), np.nan)
        for (one, other), report in self.pairs.items():
            row, column = names.index(one), names.index(other)
            table[row, column] = table[column, row] = report.degrees
        if ax is None:
            ax = pyplot.figure(figsize=(4.6, 4.0), layout="constrained").add_subplot()
        shown = ax.imshow(table, vmin=0, vmax=max(90.0, float(np.nanmax(table))), cmap="viridis")
        ax.set_xticks(range(len(names)), map(str, names), rotation=90, fontsize=7)
        ax.set_yticks(range(len(names)), map(str, names), fontsize=7)
        ax.set_title(f"{self.of}: deviation angles", fontsize=9)
        ax.figure.colorbar(shown, ax=ax, label="degrees")
        return ax

    def __str__(self) -> str:
        worst, count = self.most_tilted()[0], len(self.pairs)
        return (
            f"{self.of}: tilted by {self.mean_degrees:.1f} degrees on the mean of "
            f"{count} pair{'s' * (count != 1)}, most {worst[0]} and {worst[1]} "
            f"({self.pairs[worst].degrees:.1f}), strength "
            f"{strength_in_words(self.median_strength)} (median), "
            f"accuracy {self.accuracy:.4g} on {self.samples} samples"
        )


def tilt_pairs(
    weight: ArrayLike,
    bias: ArrayLike,
    X: ArrayLike,
    y: ArrayLike,
    classes: Sequence[Any],
    *,
    centroids: Mapping[Any, ArrayLike] | None = None,
    of: str = "linear classifier",
    progress: Progress = silent,
) -> PairTilts:
    """The tilting between every two classes of scores `W x + b`, highest wins.

    The boundary between classes I and J is where their scores are equal: `w = W_J - W_I`.

    Args:
        weight: W, (classes, d).
        bias: b, (classes,).
        X: Samples (n, d), in the space of W.
        y: Their classes (n,).
        classes: The class of each row of W.
        centroids: The mean of each class, where angles are about other samples (those trained on)
            than X.
        of: What to call it.
        progress: Called with ("pairs of classes", pairs done, pairs).

    Raises:
        InputError: samples of fewer than two classes, of a class that is not named, or shapes that
            do not fit.
    """
    if isinstance(classes, str) or not isinstance(classes, Sequence | np.ndarray):
        raise InputError(f"classes is {classes!r}: give the class of each row of the weight")
    if len(set(classes)) < len(classes):
        raise InputError("classes names two rows of the weight alike: give each a name of its own")
    if centroids is not None and not isinstance(centroids, Mapping):
        raise InputError("centroids is no mapping: give the means of classes, as class_means does")
    matrix, offset = floats("weight", weight), floats("bias", bias)
    samples, labels = floats("the samples", X), np.asarray(y)
    if matrix.ndim != 2 or matrix.shape[0] != len(classes) or offset.shape != (len(classes),):
        raise InputError(
            f"weight has the shape {matrix.shape} and bias {offset.shape}: give "
            f"({len(classes)}, d) and ({len(classes)},), a row for each class"
        )
    fits = samples.ndim == 2 and samples.shape[1] == matrix.shape[1]
    if not fits or labels.shape != samples.shape[:1]:
        raise InputError(
            f"the samples have the shape {samples.shape} and their classes {labels.shape}: give "
            f"(n, {matrix.shape[1]}) and (n,)"
        )
    places = {name: np.flatnonzero(labels == name) for name in classes}
    if sum(map(len, places.values())) < len(labels):
        known = ", ".join(map(str, classes))
        raise InputError(f"a sample is of a class that has no score; known are {known}")
    present = [index for index, name in enumerate(classes) if len(places[name])]
    if len(present) < 2:
        raise InputError("the samples are of a single class: a boundary lies between two")
    lacking = [classes[k] for k in present if centroids is not None and classes[k] not in centroids]
    if lacking:
        raise InputError(f"centroids lacks the class {lacking[0]!r}: give the mean of each class")
    pairs: dict[tuple[Any, Any], TiltReport] = {}
    total = math.comb(len(present), 2)
    for low, high in itertools.combinations(present, 2):
        i, j = classes[low], classes[high]
        here = np.concatenate([places[i], places[j]])
        side = np.repeat([0, 1], [len(places[i]), len(places[j])])
        report = tilt_report(
            matrix[high] - matrix[low],
            float(offset[high] - offset[low]),
            samples[here],
            side,
            centroids=None if centroids is None else (centroids[i], centroids[j]),
        )
        pairs[i, j] = _named(report, (i, j))
        progress("pairs of classes", len(pairs), total)
    best = np.asarray(classes)[(samples @ matrix.T + offset).argmax(1)]
    return PairTilts(pairs, float((best == labels).mean()), len(samples), of)


def class_means(X: ArrayLike, y: ArrayLike) -> dict[Any, NDArray[np.float64]]:
    """The mean of each class's samples, for `centroids`."""
    samples, labels = floats("X", X), np.asarray(y)
    if samples.ndim != 2 or labels.shape != samples.shape[:1]:
        raise InputError(
            f"X has the shape {samples.shape} and y {labels.shape}: give (n, d) and (n,)"
        )
    return {_key(name): samples[labels == name].mean(0) for name in np.unique(labels)}


def _named(report: TiltReport, classes: tuple[Any, Any]) -> TiltReport:
    return replace(report, classes=(_key(classes[0]), _key(classes[1])))


def _key(name: Any) -> Any:
    return name.item() if isinstance(name, np.generic) else name


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
