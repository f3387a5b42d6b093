"""What quadratures say of a spectrum: moments, densities, effective dimensions, a picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from flatminima.errors import InputError, require, unknown
from flatminima.measure.results import Estimate, Result, mean_and_stderr
from flatminima.student import t_reach

AXES = ("linear", "log")

SMALLEST = 1e-9
"""On the log axis, eigenvalues below this part of the largest are counted as zero."""

PADDING = 5
"""How many kernel widths a grid goes on beyond the outermost nodes."""


class Curve(NamedTuple):
    """A density on a grid.

    Attributes:
        at: The eigenvalues of the grid, ascending in absolute value on the log axis.
        density: The part of all eigenvalues per unit of the axis: of eigenvalue on the linear one,
            of log10 on the log one.
        stderr: Its standard error over the probes; an interval is that of Student's t.
    """

    at: Tensor
    density: Tensor
    stderr: Tensor


@dataclass(frozen=True)
class SpectralDensity(Result):
    """Where the eigenvalues of an operator are, as seen from each random vector.

    Attributes:
        nodes: The Ritz values of each probe, ascending.
        weights: Their weights, which add up to 1 for each probe.
        dimension: n, the number of eigenvalues.
        stopped: Why it stopped: "probes" (all done), "max_seconds", "interrupted".
    """

    nodes: tuple[tuple[float, ...], ...]
    weights: tuple[tuple[float, ...], ...]
    dimension: int
    stopped: str = "probes"

    def trace_of(self, function: Callable[[Tensor], Tensor]) -> Estimate:
        r"""$\mathrm{Tr} f(H) = \sum_i f(\lambda_i)$, with the error of the probes.

        The quadrature itself is exact for polynomials of degree up to 2 steps - 1; for a function
        with a kink or a pole near an eigenvalue, take more steps and see whether it moves.

        Args:
            function: Elementwise, on a float64 tensor of eigenvalues.
        """
        samples = [
            (torch.tensor(w, dtype=torch.float64) * function(torch.tensor(t, dtype=torch.float64)))
            .sum()
            .mul(self.dimension)
            for t, w in zip(self.nodes, self.weights, strict=True)
        ]
        cost = {f.name: getattr(self, f.name) for f in fields(Result)}
        return Estimate(*mean_and_stderr(torch.stack(samples)), len(samples), **cost)

    def moment(self, power: int) -> Estimate:
        r"""$\mathrm{Tr} H^p = \sum_i \lambda_i^p$: the trace, the squared Frobenius norm, ..."""
        return self.trace_of(lambda values: values**power)

    def effective_dimension(self, c: float) -> Estimate:
        r"""$\sum_i \lambda_i / (\lambda_i + c)$: how many directions are curved by more than c.

        Negative eigenvalues count as 0.

        Source: MacKay, Bayesian model comparison and backprop nets, 1991; Maddox, Benton, Wilson,
        Rethinking parameter counting in deep models, 2020, arXiv 2003.02139.

        Args:
            c: What an eigenvalue is measured against, above 0: the precision of a prior, say.

        Raises:
            InputError: c not above 0.
        """
        if not c > 0:
            raise InputError(f"c is {c}: give a number above 0")
        return self.trace_of(lambda values: values.clamp(min=0) / (values.clamp(min=0) + c))

    def curve(
        self,
        axis: str = "linear",
        *,
        negative: bool = False,
        points: int = 1000,
        width: float | None = None,
    ) -> Curve:
        """The density, smoothed by a normal kernel, on a grid.

        It integrates to 1 over the linear axis; on the log axis the positive and the negative side
        and the part at zero (see `part_at_zero`) add up to 1.

        Args:
            axis: "linear", or "log": by log10 of the absolute value, one sign at a time.
            negative: Whether the log axis shows the negative eigenvalues.
            points: Of the grid.
            width: The standard deviation of the kernel, in units of the axis. Default: a hundredth
                of the range; 0.1 decades.

        Raises:
            InputError: an unknown axis; a width not above 0; no eigenvalue on that side.
        """
        if axis not in AXES:
            raise unknown("axis", axis, AXES)
        if width is not None and not width > 0:
            raise InputError(f"width is {width}: give a number above 0")
        nodes = [torch.tensor(t, dtype=torch.float64) for t in self.nodes]
        weights = [torch.tensor(w, dtype=torch.float64) for w in self.weights]
        if axis == "log":
            floor, sign = self._floor(), -1.0 if negative else 1.0
            shown = [sign * t > floor for t in nodes]
            weights = [w[s] for w, s in zip(weights, shown, strict=True)]
            nodes = [(sign * t[s]).log10() for t, s in zip(nodes, shown, strict=True)]
            if not sum(map(len, nodes)):
                raise InputError(f"no eigenvalue is {'negative' if negative else 'positive'}")
        together = torch.cat(nodes)
        low, high = together.min().item(), together.max().item()
        if width is None:
            width = 0.1 if axis == "log" else (high - low or abs(high) or 1.0) / 100
        grid = torch.linspace(low - PADDING * width, high + PADDING * width, points).double()
        curves = torch.stack(
            [_smooth(grid, t, w, width) for t, w in zip(nodes, weights, strict=True)]
        )
        at = grid if axis == "linear" else sign * 10**grid
        return Curve(at, curves.mean(0), curves.std(0) / math.sqrt(len(curves)))

    @property
    def part_at_zero(self) -> float:
        """The part of eigenvalues below `SMALLEST` times the largest, which have no logarithm."""
        floor = self._floor()
        parts = [
            sum(w for t, w in zip(nodes, weights, strict=True) if abs(t) <= floor)
            for nodes, weights in zip(self.nodes, self.weights, strict=True)
        ]
        return sum(parts) / len(parts)

    def plot(self, ax: Any = None, *, axis: str = "linear", width: float | None = None) -> Any:
        """Draw the density and its 95 % band; returns the matplotlib Axes.

        Args:
            ax: Where to draw. Default: a new figure.
            axis: "linear", or "log", with the negative eigenvalues as a second curve.
            width: Of the kernel; see `curve`.

        Raises:
            InputError: an unknown axis; matplotlib is not installed.
        """
        if axis not in AXES:
            raise unknown("axis", axis, AXES)
        if ax is None:
            _, ax = require("matplotlib.pyplot", "plot").subplots()
        if axis == "linear":
            curve = self.curve(width=width)
            _draw(ax, curve, len(self.nodes), None)
            ax.set_xlabel("eigenvalue")
            ax.set_ylabel("density")
            # A few outliers among millions are seen on no linear scale.
            ax.set_yscale("log", nonpositive="mask")
            ax.set_ylim(bottom=1e-6 * curve.density.max().item())
            return ax
        for negative, label in ((False, "positive"), (True, "negative")):
            sign = -1 if negative else 1
            if any(sign * t > self._floor() for nodes in self.nodes for t in nodes):
                curve = self.curve("log", negative=negative, width=width)
                _draw(ax, curve, len(self.nodes), label)
        ax.set_xscale("log")
        ax.set_xlabel("|eigenvalue|")
        ax.set_ylabel("density per decade")
        ax.legend()
        return ax

    def __str__(self) -> str:
        values = [t for nodes in self.nodes for t in nodes]
        return (
            f"{self.dimension} eigenvalues within about [{min(values):.4g}, {max(values):.4g}], "
            f"trace {self.moment(1)}"
        )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The result that `to_dict` wrote."""
        both = {name: tuple(map(tuple, data[name])) for name in ("nodes", "weights")}
        return cls(**{**data, **both})

    def _floor(self) -> float:
        return SMALLEST * max(abs(t) for nodes in self.nodes for t in nodes)


def _smooth(grid: Tensor, nodes: Tensor, weights: Tensor, width: float) -> Tensor:
    kernel = torch.exp(-((grid[:, None] - nodes) / width).square() / 2)
    smooth: Tensor = kernel @ weights / (width * math.sqrt(2 * math.pi))
    return smooth


def _draw(ax: Any, curve: Curve, probes: int, label: str | None) -> None:
    at = curve.at.abs() if label else curve.at
    reach = t_reach(0.95, probes) * curve.stderr
    low, high = (curve.density - reach).clamp(min=0), curve.density + reach
    ax.plot(at.numpy(), curve.density.numpy(), label=label)
    ax.fill_between(at.numpy(), low.numpy(), high.numpy(), alpha=0.3)
