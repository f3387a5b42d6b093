"""All of a minimum's flatness in one call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor, nn

from flatminima.errors import InputError
from flatminima.measure.batches import Batches
from flatminima.measure.eigen import top_eigenvalues
from flatminima.measure.gap import perturbation_gap
from flatminima.measure.hessian import Hessian
from flatminima.measure.results import EigenEstimate, Estimate, TraceEstimate
from flatminima.measure.trace import hessian_trace
from flatminima.objectives import Objective
from flatminima.progress import Progress

SHOWN_LAYERS = 10


@dataclass(frozen=True)
class CurvatureReport:
    """How flat the loss is around the weights.

    Attributes:
        loss: The mean loss f(W) over all samples.
        trace: Tr H, whole and by parameter tensor.
        top_eigenvalue: The largest eigenvalues of H.
        perturbation_gap: F(W) - f(W) at `sigma`; None if no sigma was given.
        sigma: The standard deviation of the perturbation, or None.
        samples: How many samples the loss is the mean of.
        parameters: How many numbers were free.
        seed: The seed of every random number.
    """

    loss: float
    trace: TraceEstimate
    top_eigenvalue: EigenEstimate
    perturbation_gap: Estimate | None
    sigma: float | None
    samples: int
    parameters: int
    seed: int

    @property
    def layers(self) -> Mapping[str, Estimate]:
        """The trace of each parameter tensor's diagonal block of H."""
        return self.trace.blocks

    @property
    def predicted_gap(self) -> Estimate | None:
        """The gap to second order, sigma^2/2 Tr H, to hold against `perturbation_gap`."""
        if self.sigma is None:
            return None
        half = self.sigma**2 / 2
        same = {f.name: getattr(self.trace, f.name) for f in fields(Estimate)}
        scaled = {"value": half * self.trace.value, "stderr": half * self.trace.stderr}
        return Estimate(**{**same, **scaled})

    def __str__(self) -> str:
        rows = [
            ("loss", f"{self.loss:.6g}"),
            ("Hessian trace", str(self.trace)),
            ("top eigenvalue", str(self.top_eigenvalue)),
        ]
        if self.perturbation_gap is not None:
            rows.append((f"gap at sigma {self.sigma:g}", str(self.perturbation_gap)))
            rows.append(("  sigma^2/2 trace", str(self.predicted_gap)))
        largest = sorted(self.layers.items(), key=lambda layer: -abs(layer[1].value))
        rows += [(f"trace of {name}", str(layer)) for name, layer in largest[:SHOWN_LAYERS]]
        if len(largest) > SHOWN_LAYERS:
            rows.append(("...", f"{len(largest) - SHOWN_LAYERS} more in .layers"))
        width = max(len(label) for label, _ in rows)
        return "\n".join(f"{label:<{width}}  {value}" for label, value in rows)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types."""
        gap = self.perturbation_gap
        return {
            **vars(self),
            "trace": self.trace.to_dict(),
            "top_eigenvalue": self.top_eigenvalue.to_dict(),
            "perturbation_gap": None if gap is None else gap.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CurvatureReport:
        """The report that `to_dict` wrote."""
        gap = data["perturbation_gap"]
        return cls(
            **{
                **data,
                "trace": TraceEstimate.from_dict(data["trace"]),
                "top_eigenvalue": EigenEstimate.from_dict(data["top_eigenvalue"]),
                "perturbation_gap": None if gap is None else Estimate.from_dict(gap),
            }
        )


def curvature(
    model: nn.Module,
    objective: Objective,
    batches: Batches,
    *,
    sigma: float | None = None,
    probes: int = 100,
    eigenvalues: int = 1,
    draws: int = 50,
    params: Iterable[Tensor] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> CurvatureReport:
    """Measure the loss, the Hessian's trace and top eigenvalues, and the perturbation gap.

    Cost: `probes` + about 40 HVPs, and 2 draws + 1 forward passes over the batches if sigma is
    given.

    Args:
        model: The model, its parameters float32 or float64, on one device.
        objective: `(model, batch) -> scalar`, the mean over the batch's samples.
        batches: A list or a DataLoader; each batch counts as often as it has samples.
        sigma: The standard deviation of the perturbation; None leaves the gap out.
        probes: Probes of the trace.
        eigenvalues: How many of the largest eigenvalues.
        draws: Perturbations of the gap.
        params: Which parameters; default: all that require a gradient.
        seed: Of every random number.
        progress: Called with (stage, done, total), the stages "gap", "trace" and "eigenvalues".

    Raises:
        InputError: as `perturbation_gap`, `hessian_trace` and `top_eigenvalues`.
    """
    for name, number in (("probes", probes), ("eigenvalues", eigenvalues)):
        if number < 1:
            raise InputError(f"{name} is {number}: give at least 1")
    params = None if params is None else list(params)
    gap = None
    if sigma is not None:
        gap = perturbation_gap(
            model,
            objective,
            batches,
            sigma=sigma,
            draws=draws,
            params=params,
            seed=seed,
            progress=progress,
        )
    operator = Hessian(model, objective, batches, params=params)
    trace = hessian_trace(
        operator, probes=probes, seed=seed, progress=progress, keep_interrupted=False
    )
    top = top_eigenvalues(
        operator, eigenvalues, seed=seed, progress=progress, keep_interrupted=False
    )
    assert operator.loss is not None
    assert operator.samples is not None
    return CurvatureReport(
        loss=operator.loss,
        trace=trace,
        top_eigenvalue=top,
        perturbation_gap=gap,
        sigma=sigma,
        samples=operator.samples,
        parameters=operator.shape[0],
        seed=seed,
    )
