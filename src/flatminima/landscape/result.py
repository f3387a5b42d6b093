"""What a slice of the loss is: values on a grid, what was not seen, curvature read off it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from flatminima.errors import InputError
from flatminima.landscape.grid import level, strides
from flatminima.measure.results import Result, plus_minus

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Axis:
    """One axis of a slice.

    Attributes:
        name: Of its direction.
        values: The coordinates of the grid, ascending; 0 is one of them.
        length: Of the step from 0 to 1, in the units of the weights.
        normalization: How that length was chosen.
        biases: Whether biases and normalization layers move: "ignore" or "scale".
    """

    name: str
    values: tuple[float, ...]
    length: float
    normalization: str
    biases: str

    @property
    def zero(self) -> int:
        """The index of 0."""
        return self.values.index(0.0)


class SliceCurvature(NamedTuple):
    """A second derivative read off a slice.

    Attributes:
        value: d'Hd, for the step d from 0 to 1 along the axis.
        error: How far the next order of differences is from it; NaN where the grid has none.
        per_unit: The value for a step of length 1, d'Hd / d'd.
    """

    value: float
    error: float
    per_unit: float

    def __str__(self) -> str:
        return plus_minus(self.value, self.error)


@dataclass(frozen=True, eq=False)
class Landscape(Result):
    """The loss on a line or a plane of weights.

    Attributes:
        axes: One or two.
        loss: The mean loss at each point of the grid, shape (points,) or (points, points), the
            first index along the first axis; NaN where it was not finite or not evaluated.
        accuracy: The part of samples predicted rightly there; NaN where it is not known.
        evaluated: Which points were evaluated.
        cosine: Of the angle between the two axes; 0 for one.
        samples: How many samples the loss is the mean of.
        centre: What is at the origin.
        corners: Names of the checkpoints at 0 and 1, or at (0, 0), (1, 0) and (0, 1); else empty.
        batchnorm: Which statistics BatchNorm used: "running", "batch", "recalibrate"; "" for a
            model that has none.
        path: Coordinates of a run's checkpoints, where they belong to the picture.
        stopped: "done", or why there are points left: "max_seconds", "interrupted".
    """

    axes: tuple[Axis, ...]
    loss: Numbers
    accuracy: Numbers
    evaluated: NDArray[np.bool_]
    cosine: float
    samples: int
    centre: str
    corners: tuple[str, ...]
    batchnorm: str
    path: tuple[tuple[float, float], ...] = ()
    stopped: str = "done"

    @property
    def zero(self) -> tuple[int, ...]:
        """The index of the origin."""
        return tuple(axis.zero for axis in self.axes)

    @property
    def not_finite(self) -> int:
        """How many points were evaluated and have no finite loss."""
        return int((self.evaluated & ~np.isfinite(self.loss)).sum())

    def at(self, *point: float) -> float:
        """The loss at a point of the grid.

        Raises:
            InputError: the grid has no such point.
        """
        index = []
        for axis, value in zip(self.axes, point, strict=True):
            nearest = min(range(len(axis.values)), key=lambda i: abs(axis.values[i] - value))
            if not math.isclose(axis.values[nearest], value, rel_tol=1e-9, abs_tol=1e-12):
                raise InputError(
                    f"{value} is no point of the axis {axis.name!r}: the nearest is "
                    f"{axis.values[nearest]:g}"
                )
            index.append(nearest)
        return float(self.loss[tuple(index)])

    def shown(self) -> tuple[tuple[Numbers, ...], Numbers, Numbers]:
        """The finest whole grid: its coordinates along each axis, losses and accuracies.

        Of a slice with points left that is a coarser one, if there is one.
        """
        for stride in reversed(strides(self.loss.shape)):
            chosen = np.ix_(*level(self.loss.shape, self.zero, stride))
            if self.evaluated[chosen].all():
                break
        else:
            chosen = np.ix_(*(range(n) for n in self.loss.shape))
        at = tuple(
            np.asarray(axis.values)[np.asarray(part).ravel()]
            for axis, part in zip(self.axes, chosen, strict=True)
        )
        return at, self.loss[chosen], self.accuracy[chosen]

    def curvature(self, axis: int = 0) -> SliceCurvature:
        r"""The second derivative along an axis at the origin, by differences of the slice.

        $d'Hd \approx \frac{-L_{2} + 16 L_{1} - 30 L_0 + 16 L_{-1} - L_{-2}}{12 h^2}$ with h the
        grid's step, or $(L_1 - 2 L_0 + L_{-1})/h^2$ next to an edge. A grid with a small radius
        is closer to the Hessian's, until rounding of the losses, about eps L / h^2, takes over.

        Args:
            axis: 0 or 1.

        Raises:
            InputError: no such axis, or a neighbour of the origin is missing or not finite.
        """
        if axis not in range(len(self.axes)):
            raise InputError(f"axis is {axis}: the slice has {len(self.axes)}, counted from 0")
        others = list(self.zero)
        zero = others[axis]
        others[axis] = slice(None)  # type: ignore[call-overload]
        line = self.loss[tuple(others)]
        near = line[zero - 1 : zero + 2] if zero else line[:0]
        if len(near) < 3 or not np.isfinite(near).all():
            raise InputError(
                "the loss at the origin and its neighbours is needed for a curvature, and one is "
                "missing or not finite: take a smaller radius, or evaluate more points"
            )
        values = self.axes[axis].values
        step = (values[-1] - values[0]) / (len(values) - 1)
        second = float(near[0] - 2 * near[1] + near[2]) / step**2
        wide = line[zero - 2 : zero + 3] if zero > 1 else line[:0]
        value, error = second, math.nan
        if len(wide) == 5 and np.isfinite(wide).all():
            value = float(wide @ np.array([-1.0, 16.0, -30.0, 16.0, -1.0])) / (12 * step**2)
            error = abs(value - second)
        return SliceCurvature(value, error, value / self.axes[axis].length ** 2)

    def caption(self) -> str:
        """What must be known to read the picture: directions, normalization, samples, centre."""
        names = " and ".join(axis.name for axis in self.axes)
        if self.corners:
            words = [f"through {', '.join(self.corners)}"]
        else:
            ways = dict.fromkeys((axis.normalization, axis.biases) for axis in self.axes)
            words = [f"centre {self.centre}", f"along {names}"]
            words += [
                f"normalization {way}, biases and norm layers "
                f"{'ignored' if biases == 'ignore' else 'moved'}"
                for way, biases in ways
            ]
        if self.batchnorm:
            words.append(f"BatchNorm statistics: {BATCHNORM[self.batchnorm]}")
        words.append(f"{self.samples} samples")
        seen, total = int(self.evaluated.sum()), self.loss.size
        if seen < total:
            words.append(f"{seen} of {total} points evaluated ({self.stopped})")
        if self.not_finite:
            words.append(f"{self.not_finite} of {seen} points not finite (gaps)")
        return "; ".join(words)

    def __str__(self) -> str:
        shape = " x ".join(map(str, self.loss.shape))
        lines = [
            f"{shape} points, {self.caption()}",
            f"loss {self.loss[self.zero]:.6g} at the origin, "
            f"{np.nanmin(self.loss):.6g} to {np.nanmax(self.loss):.6g} on the grid",
        ]
        for i, axis in enumerate(self.axes):
            try:
                lines.append(f"curvature along {axis.name}: {self.curvature(i)}")
            except InputError:
                continue
        return "\n".join([*lines, f"{self.seconds:.1f} s"])

    def plot(self, ax: Any = None, kind: str = "contour") -> Any:
        """Draw the slice: a curve, or a contour map or surface; returns the matplotlib Axes.

        Args:
            ax: Where to draw (for a surface an Axes with `projection="3d"`). Default: a new figure,
                with the caption below.
            kind: "contour" or "surface", for a plane.

        Raises:
            InputError: an unknown kind; matplotlib is not installed; no point is finite.
        """
        from flatminima.landscape.picture import plot

        return plot(self, ax, kind)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types; a loss that is not finite becomes None."""
        data = super().to_dict()
        rows = self.evaluated if self.evaluated.ndim == 2 else self.evaluated[None]
        return {
            **data,
            "axes": [{**asdict(axis), "values": list(axis.values)} for axis in self.axes],
            "loss": _listed(self.loss),
            "accuracy": _listed(self.accuracy),
            "evaluated": ["".join("01"[int(seen)] for seen in row) for row in rows],
            "path": [list(point) for point in self.path],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The slice that `to_dict` wrote.

        Raises:
            InputError: it is not one, or of another version.
        """
        try:
            axes = tuple(Axis(**{**a, "values": tuple(a["values"])}) for a in data["axes"])
            shape = tuple(len(axis.values) for axis in axes)
            seen = np.array([[c == "1" for c in row] for row in data["evaluated"]])
            return cls(
                **{
                    **data,
                    "axes": axes,
                    "loss": np.array(data["loss"], dtype=np.float64).reshape(shape),
                    "accuracy": np.array(data["accuracy"], dtype=np.float64).reshape(shape),
                    "evaluated": seen.reshape(shape),
                    "corners": tuple(data["corners"]),
                    "path": tuple((x, y) for x, y in data["path"]),
                }
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"this is no landscape of this version ({error}): make it again"
            ) from error


BATCHNORM = {
    "running": "the running ones",
    "batch": "of each batch",
    "recalibrate": "estimated anew at each point",
}
"""Which statistics BatchNorm can use, and what captions say."""


def _listed(values: Numbers) -> Any:
    """Nested lists with None where a number is not finite."""
    if values.ndim > 1:
        return [_listed(row) for row in values]
    return [float(v) if math.isfinite(v) else None for v in values]
