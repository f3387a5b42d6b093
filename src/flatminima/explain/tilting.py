"""How far the boundary of a linear classifier leans off the line between its class means."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flatminima.arguments import finite, floats
from flatminima.errors import InputError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class TiltReport:
    r"""The boundary $w \cdot x + b = 0$ between class I (score below 0) and J, as data see it.

    Attributes:
        deviation_angle: $\theta$ between w and $j - i$, the line between the class means, in
            radians, in [0, pi]; 0 is the nearest-centroid classifier.
        strength: $1 / \cos \theta$: how many times nearer the boundary is than the nearest-centroid
            one, where both separate; infinite from 90 degrees on.
        adversarial_distance: $\frac12 (\bar d_J - \bar d_I)$, the mean signed distance of samples
            from the boundary with classes counted equally, in units of the inputs; equals
            $\frac12 \lVert j - i \rVert \cos \theta$ where the means are those of the samples.
        error_distance: $\frac1n \sum -y_k d(x_k)$ over misclassified samples, in units of inputs.
        separation: $\lVert j - i \rVert$, in units of the inputs.
        weight_norm: $\lVert w \rVert$, scores per unit of the inputs.
        accuracy: Part of the samples on their own side, in [0, 1].
        nearest_centroid_accuracy: That of the nearest-centroid classifier.
        median_distance: The median of $\lvert d(x) \rvert$ over correctly classified samples, the
            least change that brings one to the boundary; NaN where there is none.
        samples: How many.
        classes: Of I and J.
    """

    deviation_angle: float
    strength: float
    adversarial_distance: float
    error_distance: float
    separation: float
    weight_norm: float
    accuracy: float
    nearest_centroid_accuracy: float
    median_distance: float
    samples: int
    classes: tuple[Any, Any]

    @property
    def degrees(self) -> float:
        """The deviation angle in degrees."""
        return math.degrees(self.deviation_angle)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values; a number that is not finite becomes None."""
        plain = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(self).items()
        }
        return {**plain, "classes": [_plain(name) for name in self.classes]}

    def __str__(self) -> str:
        return (
            f"{self.classes[0]} and {self.classes[1]}: tilted by {self.degrees:.1f} degrees, "
            f"strength {strength_in_words(self.strength)}, "
            f"adversarial distance {self.adversarial_distance:.3g} of {self.separation / 2:.3g}, "
            f"accuracy {self.accuracy:.4g} on {self.samples} samples"
        )


def strength_in_words(strength: float) -> str:
    """A strength of three digits, or that it is infinite."""
    return f"{strength:.3g}" if math.isfinite(strength) else "infinite"


def tilt_report(
    w: ArrayLike,
    b: float,
    X: ArrayLike,
    y: ArrayLike,
    *,
    centroids: tuple[ArrayLike, ArrayLike] | None = None,
) -> TiltReport:
    r"""The deviation angle, adversarial distance and strength of a linear classifier.

    $\theta = \arccos(\hat w \cdot \hat z)$ with $\hat w = w / \lVert w \rVert$ and
    $\hat z = (j - i) / \lVert j - i \rVert$, i and j the means of the classes.

    Cost: O(n d), in float64.

    Source: Tanay, Griffin, A Boundary Tilting Perspective on the Phenomenon of Adversarial
    Examples, 2016, arXiv 1608.07690; A New Angle on L2 Regularization, 2018, arXiv 1806.11186.

    Args:
        w: (d,), pointing to class J.
        b: The score is w.x + b.
        X: Samples (n, d), in the space of w.
        y: Their classes (n,), two of them; I is the smaller one.
        centroids: i and j, where the angle is about other samples (those trained on) than X.

    Raises:
        InputError: another number of classes than two; shapes that do not fit, numbers that are not
            finite; w is 0, or the class means are equal, so that there is no angle.
    """
    weight, samples, offset = _checked(w, b, X)
    labels, classes = _two_classes(y, len(samples))
    ours = labels == 1
    if centroids is not None and (not isinstance(centroids, tuple | list) or len(centroids) != 2):
        raise InputError("centroids is no pair: give the mean of the first class and the second's")
    low, high = centroids or (samples[~ours].mean(0), samples[ours].mean(0))
    i, j = (floats("centroids", mean) for mean in (low, high))
    if i.shape != weight.shape or j.shape != weight.shape:
        raise InputError(f"centroids have shapes {i.shape} and {j.shape}: give {weight.shape}")
    length, separation = float(np.linalg.norm(weight)), float(np.linalg.norm(j - i))
    if separation == 0:
        raise InputError("the means of the two classes are equal, so nothing is tilted off them")
    unit, towards = weight / length, (j - i) / separation
    along = float(unit @ towards)
    # Of small angles the arc cosine keeps half of the digits.
    angle = math.atan2(float(np.linalg.norm(unit - along * towards)), along)
    distance = (samples @ weight + offset) / length
    signed = np.where(ours, distance, -distance)
    right = signed > 0
    nearest = samples @ (j - i) - (j @ j - i @ i) / 2
    return TiltReport(
        deviation_angle=angle,
        strength=1 / along if along > 0 else math.inf,
        adversarial_distance=float(distance[ours].mean() - distance[~ours].mean()) / 2,
        error_distance=float(np.where(right, 0.0, -signed).mean()),
        separation=separation,
        weight_norm=length,
        accuracy=float(right.mean()),
        nearest_centroid_accuracy=float(((nearest > 0) == ours).mean()),
        median_distance=float(np.median(signed[right])) if right.any() else math.nan,
        samples=len(samples),
        classes=classes,
    )


def signed_distance(x: ArrayLike, w: ArrayLike, b: float) -> Floats:
    r"""$d(x) = (w \cdot x + b) / \lVert w \rVert$ of samples (n, d), in units of the inputs."""
    weight, samples, offset = _checked(w, b, x)
    found: Floats = (samples @ weight + offset) / np.linalg.norm(weight)
    return found


def projected(x: ArrayLike, w: ArrayLike, b: float) -> Floats:
    r"""$x - d(x) \hat w$: the nearest points of the boundary, (n, d)."""
    return _moved(x, w, b, 1)


def mirror(x: ArrayLike, w: ArrayLike, b: float) -> Floats:
    r"""$x - 2 d(x) \hat w$: the mirror images, classified oppositely with the same confidence.

    They may leave the range of valid pixels: clip them to show them, not to measure.

    Args:
        x: Samples (n, d).
        w: (d,).
        b: The score is w.x + b.
    """
    return _moved(x, w, b, 2)


def tilt(
    w: ArrayLike, b: float, direction: ArrayLike, phi: float, c: float = 0.0
) -> tuple[Floats, float]:
    r"""The boundary turned by phi towards a direction, as one of unit weight.

    $w_\phi = \cos\phi\, \hat w + \sin\phi\, v$ and $b_\phi = \cos\phi\, b / \lVert w \rVert -
    \sin\phi\, c$, with v the unit direction less its part along w. Where the data do not vary
    along v, $v \cdot x = c$, every decision stays for all phi below 90 degrees while all distances
    shrink by $\cos \phi$: accuracy and strength are independent.

    Args:
        w: (d,).
        b: The score is w.x + b.
        direction: (d,), not parallel to w; at right angles to w it is v, but for its length.
        phi: In radians.
        c: The value of $v \cdot x$ to turn around.

    Raises:
        InputError: shapes that do not fit, or a direction parallel to w.
    """
    finite("phi", phi)
    finite("c", c)
    weight, towards, offset = _checked(w, b, np.atleast_2d(floats("direction", direction)))
    length = float(np.linalg.norm(weight))
    unit, v = weight / length, towards[0]
    size = float(np.linalg.norm(v))
    v = v - (v @ unit) * unit
    rest = float(np.linalg.norm(v))
    if rest <= 1e-12 * size:
        raise InputError("the direction is parallel to w: give one that leads off it")
    v = v / rest
    turned = math.cos(phi) * offset / length - math.sin(phi) * c
    return math.cos(phi) * unit + math.sin(phi) * v, turned


def nearest_centroid(X: ArrayLike, y: ArrayLike) -> tuple[Floats, float]:
    """w and b of the nearest-centroid classifier: w = j - i, through the middle of i and j.

    Args:
        X: Samples (n, d).
        y: Their classes (n,), two of them.

    Raises:
        InputError: another number of classes than two, or shapes that do not fit.
    """
    samples = floats("X", X)
    if samples.ndim != 2:
        raise InputError(f"X has the shape {samples.shape}: give (n, d)")
    labels, _ = _two_classes(y, len(samples))
    i, j = samples[labels == 0].mean(0), samples[labels == 1].mean(0)
    return j - i, float(i @ i - j @ j) / 2


def _moved(x: ArrayLike, w: ArrayLike, b: float, times: float) -> Floats:
    weight, samples, offset = _checked(w, b, x)
    square = weight @ weight
    found: Floats = samples - times * ((samples @ weight + offset) / square)[:, None] * weight
    return found


def _checked(w: ArrayLike, b: float, X: ArrayLike) -> tuple[Floats, Floats, float]:
    weight, samples = floats("w", w), floats("the samples", X)
    if weight.ndim != 1 or samples.ndim != 2 or samples.shape[1] != len(weight):
        raise InputError(
            f"w has the shape {weight.shape} and the samples {samples.shape}: give (d,) and (n, d)"
        )
    offset = floats("b", b)
    if offset.ndim:
        raise InputError(f"b is {b!r}: give one number")
    if not all(np.isfinite(one).all() for one in (weight, samples, offset)):
        raise InputError("w, b or the samples hold numbers that are not finite")
    if not weight.any():
        raise InputError("w is 0: a constant score has no boundary")
    return weight, samples, float(offset)


def _two_classes(y: ArrayLike, count: int) -> tuple[NDArray[np.int64], tuple[Any, Any]]:
    given = np.asarray(y)
    if given.shape != (count,):
        raise InputError(f"y has the shape {given.shape} for {count} samples: give ({count},)")
    classes, labels = np.unique(given, return_inverse=True)
    if len(classes) != 2:
        said = "a single class" if len(classes) == 1 else f"{len(classes)} classes"
        raise InputError(
            f"the samples are of {said}, and a boundary lies between two: choose the samples of "
            "two (of more, tilt_estimator and tilt_head report every pair)"
        )
    return labels.astype(np.int64), (_plain(classes[0]), _plain(classes[1]))


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
