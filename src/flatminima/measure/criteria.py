"""What the spectrum of the Hessian says of generalization, as in loss-landscape analysis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self, TypeAlias

import torch
from torch import Tensor

from flatminima.errors import InputError

Spectrum: TypeAlias = Tensor | Sequence[float] | Sequence[Sequence[float]] | Sequence[Tensor]
"""The numbers of one run, or of several."""


@dataclass(frozen=True)
class SpectralCriteria:
    r"""Ratios of the negative to the positive part of a spectrum, means over runs.

    Near 1 where the spectrum is about symmetric, as at a random initialization; small at a minimum.
    They compare the same network on different data; see `spectral_criteria`.

    Attributes:
        edge_ratio: $r_e = |\lambda_{\min} / \lambda_{\max}|$.
        mass_ratio: $-\mathrm{Tr}\,H^- / \mathrm{Tr}\,H^+$, $K_H^n$ with n = 1.
        power_ratio: $K_H^n$ with the exponent asked for.
        exponent: n.
        nodes: Nodes of each run, on which `power_ratio` depends.
        runs: How many runs these are the means of.
        edge_stderr: The standard error of `edge_ratio` over runs; NaN for one.
        mass_stderr: That of `mass_ratio`.
        power_stderr: That of `power_ratio`.
    """

    edge_ratio: float
    mass_ratio: float
    power_ratio: float
    exponent: float
    nodes: int
    runs: int
    edge_stderr: float
    mass_stderr: float
    power_stderr: float

    @property
    def readable(self) -> bool:
        """Whether the spectrum is mainly positive, r_e <= 1: the criteria mean nothing else."""
        return self.edge_ratio <= 1

    def __str__(self) -> str:
        text = (
            f"lowest to highest eigenvalue {self.edge_ratio:.4g}, negative to positive mass "
            f"{self.mass_ratio:.4g}, with exponent {self.exponent:g} {self.power_ratio:.4g} "
            f"({self.nodes} nodes, {self.runs} run{'s' if self.runs > 1 else ''})"
        )
        return text if self.readable else f"{text}: mainly negative, not to be interpreted"

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types; a number that is not finite becomes None."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: None if not math.isfinite(v) else v for k, v in found.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The criteria that `to_dict` wrote."""
        own: dict[str, Any] = {k: math.nan if v is None else v for k, v in data.items()}
        return cls(**own)


def spectral_criteria(
    nodes: Spectrum,
    weights: Spectrum | None = None,
    *,
    exponent: float = 0.5,
) -> SpectralCriteria:
    r"""Ratios of negative to positive curvature from eigenvalues or a quadrature of the density.

    $$r_e = \left| \frac{\theta_{\min}}{\theta_{\max}} \right|, \qquad
    K_H^n = \frac{\sum_{\theta_i < 0} (|\theta_i| \omega_i)^n}{\sum_{\theta_i > 0} (\theta_i
    \omega_i)^n}$$

    with nodes $\theta_i$ and weights $\omega_i$ that sum to 1, computed for each run and then
    averaged. For all eigenvalues, or for many runs, $K_H^1$ is the ratio of the masses of the
    density on both sides of 0. $K_H^n$ with n < 1 grows with the number of nodes, since a mass
    that is cut into m parts adds $m^{1-n}$ times as much: compare it at one number of nodes, one
    batch and one network only. The others do not depend on it.

    On what the criteria are good for: in the paper their rise when the data change goes with the
    fall of accuracy. They say nothing where the spectrum is mainly negative (`readable`).

    Source: Gabdullin, Investigating Generalization Capabilities of Neural Networks by Means of Loss
    Landscapes and Hessian Analysis, 2024, arXiv 2412.10146.

    Args:
        nodes: All eigenvalues, shape (m,); or the nodes of one or several runs of a stochastic
            Lanczos quadrature, shape (runs, m), or a sequence of runs where m differs.
        weights: The weights, shaped as the nodes. Default: equal ones.
        exponent: n.

    Raises:
        InputError: no nodes, shapes that differ, a number that is not finite, negative weights, no
            positive node in a run, or an exponent not above 0.
    """
    if not (math.isfinite(exponent) and exponent > 0):
        raise InputError(f"exponent is {exponent}: give a finite number above 0, such as 0.5")
    thetas = _runs(nodes)
    if weights is None:
        omegas = [torch.full_like(theta, 1 / max(1, len(theta))) for theta in thetas]
    else:
        omegas = _runs(weights)
    if not thetas or [len(t) for t in thetas] != [len(w) for w in omegas]:
        raise InputError(
            f"nodes have the lengths {[len(t) for t in thetas]} and weights "
            f"{[len(w) for w in omegas]}: give one weight for each node"
        )
    found = torch.tensor(
        [_of_run(t, w, exponent) for t, w in zip(thetas, omegas, strict=True)], dtype=torch.float64
    )
    edge, mass, power = found.mean(0).tolist()
    runs = len(found)
    errors = found.std(0).div(math.sqrt(runs)).tolist() if runs > 1 else [math.nan] * 3
    edge_error, mass_error, power_error = errors
    size = max(len(theta) for theta in thetas)
    return SpectralCriteria(
        edge, mass, power, exponent, size, runs, edge_error, mass_error, power_error
    )


def _runs(values: Spectrum) -> list[Tensor]:
    """One tensor for each run, float64 on the CPU."""
    if isinstance(values, Tensor):
        runs: list[Any] = [values] if values.ndim == 1 else list(values)
    else:
        alone = bool(values) and isinstance(values[0], (int, float))
        runs = [values] if alone else list(values)
    return [torch.as_tensor(run).detach().cpu().double().flatten() for run in runs]


def _of_run(theta: Tensor, omega: Tensor, exponent: float) -> tuple[float, float, float]:
    if not len(theta):
        raise InputError("a run has no nodes: give at least one")
    if not (theta.isfinite().all() and omega.isfinite().all()):
        raise InputError("a node or weight is not finite: check the spectrum")
    if (omega < 0).any():
        raise InputError("a weight is negative: those of a quadrature are not")
    highest = float(theta.max())
    if not highest > 0:
        raise InputError(
            f"the highest node is {highest:g}: the criteria are ratios to the positive part of the "
            "spectrum, and there is none"
        )
    edge = abs(float(theta.min())) / highest
    masses = [_mass(theta, omega, n) for n in (1.0, exponent)]
    return edge, masses[0], masses[1]


def _mass(theta: Tensor, omega: Tensor, exponent: float) -> float:
    parts = (theta.abs() * omega) ** exponent
    above = float(parts[theta > 0].sum())
    return float(parts[theta < 0].sum()) / above if above > 0 else math.nan
