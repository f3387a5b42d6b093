"""The plane in which a boundary leans: the line between the class means, and the tilt off it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from flatminima.arguments import floats
from flatminima.errors import require
from flatminima.explain.tilting import (
    Floats,
    TiltReport,
    nearest_centroid,
    strength_in_words,
    tilt_report,
)


@dataclass(frozen=True, eq=False)
class TiltingPlane:
    r"""Samples and boundaries in the plane of the class means' line and the weight.

    The first axis is $\hat z = (j - i) / \lVert j - i \rVert$, the second what is left of w at
    right angles to it, $\hat n$. Distances from the boundary in the plane are those in the space of
    the inputs, since w lies in the plane.

    Attributes:
        report: Of the boundary.
        points: $(x \cdot \hat z, x \cdot \hat n)$, less the middle of the class means, (n, 2).
        labels: 0 for class I and 1 for J, (n,).
        normal: The boundary's unit normal in the plane, (cos theta, sin theta).
        offset: The boundary is `normal . point + offset = 0`.
    """

    report: TiltReport
    points: Floats
    labels: np.ndarray[Any, np.dtype[np.int64]]
    normal: tuple[float, float]
    offset: float

    def plot(self, ax: Any = None) -> Any:
        """The samples, the boundary, and dashed that of nearest centroids; returns the Axes.

        Raises:
            InputError: matplotlib is not installed.
        """
        pyplot = require("matplotlib.pyplot", "plot")
        if ax is None:
            ax = pyplot.figure(figsize=(5.2, 4.4), layout="constrained").add_subplot()
        for label, (colour, marker) in enumerate((("#0072B2", "o"), ("#E69F00", "s"))):
            mine = self.points[self.labels == label]
            ax.scatter(*mine.T, s=9, c=colour, marker=marker, alpha=0.6, linewidths=0)
            mean = mine.mean(0)
            name = f"{self.report.classes[label]} and its mean"
            ax.scatter(*mean, s=90, c=colour, marker="X", edgecolors="black", label=name)
        reach = 1.1 * float(np.abs(self.points).max())
        ends = np.array([-2 * reach, 2 * reach])
        x, y = self.normal
        ax.plot(-self.offset * x - ends * y, -self.offset * y + ends * x, "k-", label="boundary")
        ax.plot([0, 0], ends, "k--", lw=1, label="nearest centroid")
        ax.set_xlim(-reach, reach)
        ax.set_ylim(-reach, reach)
        ax.set_aspect("equal")
        ax.set_xlabel("along the line between the class means")
        ax.set_ylabel("at right angles, towards the weight")
        strength = strength_in_words(self.report.strength)
        said = f"{self.report.degrees:.0f} degrees, strength {strength}"
        # Of the samples drawn: often those trained on, of which a title must not say "accuracy".
        ax.set_title(f"{said}, {self.report.accuracy:.1%} of these right", fontsize=9)
        ax.legend(fontsize=7, loc="upper right")
        return ax


def tilting_plane(w: ArrayLike, b: float, X: ArrayLike, y: ArrayLike) -> TiltingPlane:
    r"""The samples as the tilting plane sees them.

    Where w is along $\hat z$ there is no tilt to draw, and the second axis is the direction at
    right angles to it along which the samples vary most.

    Source: Tanay, Griffin, 2018, arXiv 1806.11186.

    Args:
        w: (d,).
        b: The score is w.x + b.
        X: Samples (n, d).
        y: Their classes (n,), two of them.

    Raises:
        InputError: as `tilt_report`.
    """
    report = tilt_report(w, b, X, y)
    weight, samples = floats("w", w), floats("X", X)
    line, _ = nearest_centroid(samples, y)
    unit, towards = weight / np.linalg.norm(weight), line / np.linalg.norm(line)
    rest = unit - (unit @ towards) * towards
    if np.linalg.norm(rest) < 1e-12:
        centred = samples - samples.mean(0)
        flat = centred - np.outer(centred @ towards, towards)
        rest = np.linalg.svd(flat, full_matrices=False)[2][0] if samples.shape[1] > 1 else 0 * unit
    length = float(np.linalg.norm(rest))
    across = rest / length if length > 0 else rest
    labels = (np.asarray(y) == np.unique(np.asarray(y))[1]).astype(np.int64)
    middle = (samples[labels == 0].mean(0) + samples[labels == 1].mean(0)) / 2
    moved = samples - middle
    return TiltingPlane(
        report=report,
        points=np.stack([moved @ towards, moved @ across], axis=1),
        labels=labels,
        normal=(float(unit @ towards), float(unit @ across)),
        offset=float(middle @ weight + floats("b", b)) / float(np.linalg.norm(weight)),
    )
