"""All of a minimum's flatness in one object: a table, a picture, JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from flatminima.errors import InputError, require
from flatminima.measure.criteria import SpectralCriteria, spectral_criteria
from flatminima.measure.noise_stability import NoiseStability
from flatminima.measure.results import EigenEstimate, Estimate, Result, TraceEstimate
from flatminima.measure.spectrum import SpectralDensity

SHOWN_LAYERS = 10

EARLY = {
    "done": "",
    "budget": "; stopped early: budget",
    "rel_error": "; rel_error was not reached",
    "interrupted": "; stopped early: interrupted",
    "error": "; stopped early: ",
}
"""What is said of why a measurement ended."""

PARTS: Mapping[str, type[Result]] = {
    "trace": TraceEstimate,
    "noise_stability": NoiseStability,
    "top_eigenvalue": EigenEstimate,
    "lowest_eigenvalue": EigenEstimate,
    "density": SpectralDensity,
}
"""The measurements in a report, by field."""


@dataclass(frozen=True)
class CurvatureReport:
    """How flat the loss is around the weights.

    Attributes:
        loss: The mean loss f(W) over all samples.
        trace: Tr H, whole and by parameter tensor.
        top_eigenvalue: The largest eigenvalues of H; None if it was stopped before.
        noise_stability: F(W) - f(W) at each sigma; None if none was given.
        density: The density of all eigenvalues, where asked for.
        samples: How many samples the loss is the mean of.
        parameters: How many numbers were free.
        seed: The seed of every random number.
        selection: Which parameters were free, as `params` named them; "" for all.
        lowest_eigenvalue: The smallest eigenvalue of H, where asked for.
        stopped: "done"; "budget" where it left less than was asked for; "rel_error" where that was
            not reached in the most probes; "interrupted"; "error".
        error: Why a part is missing, where it was stopped by an error.
    """

    loss: float
    trace: TraceEstimate
    top_eigenvalue: EigenEstimate | None
    noise_stability: NoiseStability | None
    density: SpectralDensity | None
    samples: int
    parameters: int
    seed: int
    selection: str = ""
    lowest_eigenvalue: EigenEstimate | None = None
    stopped: str = "done"
    error: str = ""

    @property
    def layers(self) -> Mapping[str, Estimate]:
        """The trace of each parameter tensor's diagonal block of H."""
        return self.trace.blocks

    @property
    def sigma(self) -> float | None:
        """The first sigma."""
        return None if self.noise_stability is None else self.noise_stability.points[0].sigma

    @property
    def perturbation_gap(self) -> Estimate | None:
        """F(W) - f(W) at the first sigma, from pairs."""
        return None if self.noise_stability is None else self.noise_stability.points[0].two_sided

    @property
    def predicted_gap(self) -> Estimate | None:
        """The gap to second order, sigma^2/2 Tr H, to hold against `perturbation_gap`."""
        return None if self.noise_stability is None else self.noise_stability.points[0].predicted

    @property
    def smoothed_curvature(self) -> Estimate | None:
        """2 (F(W) - f(W)) / sigma^2 at the first sigma: what noise feels, kinks included."""
        if self.noise_stability is None:
            return None
        return self.noise_stability.points[0].smoothed_curvature

    @property
    def criteria(self) -> SpectralCriteria | None:
        """Ratios of negative to positive curvature, from the density."""
        return None if self.density is None else spectral_criteria(*_quadrature(self.density))

    @property
    def cost(self) -> str:
        """What it cost, in words."""
        parts = [part for name in PARTS if (part := getattr(self, name)) is not None]
        gradients, hvps = (sum(getattr(p, n) for p in parts) for n in ("gradients", "hvps"))
        return f"{gradients} gradients, {hvps} HVPs, {sum(p.seconds for p in parts):.3g} s"

    def __str__(self) -> str:
        rows = [("loss", f"{self.loss:.6g} over {self.samples} samples")]
        spread = self.trace.data_stderr
        # NaN compares as false.
        data = f"  (other samples: ± {spread:.2g})" if spread > 0 else ""
        rows.append(("Hessian trace", f"{self.trace}{data}"))
        for point in self.noise_stability.points if self.noise_stability is not None else ():
            rows += [
                (f"smoothed curvature, sigma {point.sigma:g}", str(point.smoothed_curvature)),
                (f"gap F - f at sigma {point.sigma:g}", str(point.two_sided)),
                ("  sigma^2/2 trace", str(point.predicted)),
            ]
        if self.top_eigenvalue is not None:
            many = len(self.top_eigenvalue.values) > 1
            rows.append(("top eigenvalues" if many else "top eigenvalue", str(self.top_eigenvalue)))
        if self.lowest_eigenvalue is not None:
            rows.append(("lowest eigenvalue", str(self.lowest_eigenvalue)))
        if (criteria := self.criteria) is not None:
            rows.append(("lowest/highest eigenvalue", f"{criteria.edge_ratio:.3g}"))
            rows.append(("negative/positive mass", f"{criteria.mass_ratio:.3g}"))
        largest = sorted(self.layers.items(), key=lambda layer: -abs(layer[1].value))
        rows += [(f"trace of {name}", str(layer)) for name, layer in largest[:SHOWN_LAYERS]]
        if len(largest) > SHOWN_LAYERS:
            rows.append(("...", f"{len(largest) - SHOWN_LAYERS} more in .layers"))
        rows.append(("cost", f"{self.cost}{EARLY[self.stopped]}{self.error}"))
        width = max(len(label) for label, _ in rows)
        return "\n".join(f"{label:<{width}}  {value}" for label, value in rows)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What a notebook shows: the table."""
        printer.text(str(self))

    def plot(self) -> Any:
        """A figure: the largest layers' traces, and what else was measured.

        That is the spectral density or else the eigenvalues with their residuals, and the gap
        against sigma.

        Returns:
            The matplotlib figure.

        Raises:
            InputError: matplotlib is not installed.
        """
        pyplot = require("matplotlib.pyplot", "plot")
        drawn = [self._plot_layers]
        if self.density is not None:
            drawn.append(self.density.plot)
        elif self.top_eigenvalue is not None:
            drawn.append(self._plot_eigenvalues)
        if self.noise_stability is not None:
            drawn.append(self.noise_stability.plot)
        figure, axes = pyplot.subplots(
            1, len(drawn), figsize=(4.8 * len(drawn), 3.6), squeeze=False, layout="constrained"
        )
        for draw, ax in zip(drawn, axes[0], strict=True):
            draw(ax)
        return figure

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types."""
        parts = {name: getattr(self, name) for name in PARTS}
        return {
            **vars(self),
            **{n: None if part is None else part.to_dict() for n, part in parts.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The report that `to_dict` wrote.

        Raises:
            InputError: it is not one, or of another version.
        """
        try:
            parts = {
                name: None if data.get(name) is None else kind.from_dict(data[name])
                for name, kind in PARTS.items()
            }
            return cls(**{**data, **parts})
        except (KeyError, TypeError) as error:
            raise InputError(
                f"this is no curvature report of this version ({error}): measure again"
            ) from error

    def _plot_layers(self, ax: Any) -> None:
        shown = sorted(self.layers.items(), key=lambda layer: -abs(layer[1].value))[:SHOWN_LAYERS]
        names, layers = [name for name, _ in shown], [layer for _, layer in shown]
        errors = [layer.interval()[1] - layer.value for layer in layers]
        ax.barh(names, [layer.value for layer in layers], xerr=errors, color="tab:blue", alpha=0.7)
        ax.invert_yaxis()
        ax.set(xlabel=r"trace of the layer's block, 95 %", title=f"Tr H = {self.trace}")

    def _plot_eigenvalues(self, ax: Any) -> None:
        assert self.top_eigenvalue is not None
        values, errors = self.top_eigenvalue.values, self.top_eigenvalue.residuals
        ax.errorbar(range(1, len(values) + 1), values, errors, fmt="o", capsize=3)
        ax.set(xlabel="rank", ylabel=r"eigenvalue $\lambda$ of H, residual", ylim=(0, None))


def _quadrature(density: SpectralDensity) -> tuple[Any, Any]:
    return density.nodes, density.weights
