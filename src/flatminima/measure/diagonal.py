"""The diagonal of an operator, and its Frobenius norm."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from flatminima.errors import InputError
from flatminima.measure.cost import Meter
from flatminima.measure.deflation import LeaveOneOut
from flatminima.measure.operators import Operator
from flatminima.measure.probing import probe_vectors, round_size
from flatminima.measure.results import Estimate, Result, mean_and_stderr
from flatminima.progress import Progress

FEWEST = 20
"""Products before an error is believed."""


@dataclass(frozen=True, eq=False)
class DiagonalEstimate(Result):
    """The diagonal of an operator.

    Attributes:
        values: The estimate of each entry, shape (n,), on the operator's device.
        stderrs: The standard error of each.
        samples: How many estimates it is the mean of.
    """

    values: Tensor
    stderrs: Tensor
    samples: int

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types."""
        data = super().to_dict()
        return {**data, "values": self.values.tolist(), "stderrs": self.stderrs.tolist()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The result that `to_dict` wrote, on the CPU."""
        dtype = getattr(torch, data["dtype"])
        both = {name: torch.tensor(data[name], dtype=dtype) for name in ("values", "stderrs")}
        return cls(**{**data, **both})


def hessian_diagonal(
    operator: Operator,
    *,
    probes: int = 100,
    seed: int = 0,
    progress: Progress | None = None,
) -> DiagonalEstimate:
    r"""The diagonal by XDiag.

    With signs $\omega_i$ and the projections $P_i$ of XTrace, the mean over i of
    $\mathrm{diag}(P_i H) + \omega_i \circ (I - P_i) H \omega_i$: unbiased, and what P captures is
    exact. The error of an entry is $\sqrt 2\, s/\sqrt m$ over the m estimates, as for XTrace.
    With `probes` >= n it multiplies all n unit vectors and is exact.

    Cost: `probes` HVPs, about 3 `probes` vectors of memory.

    Source: Epperly, Tropp, Webber, XTrace: making the most of every sample in stochastic trace
    estimation, 2024, arXiv 2301.07825, section 4.

    Args:
        operator: The operator.
        probes: Products with a vector, two for each estimate; at least 4.
        seed: Of the signs; the global random state is not touched.
        progress: Called with ("diagonal", products done, probes).

    Raises:
        InputError: probes < 4.
    """
    if probes < 4:
        raise InputError(f"probes is {probes}: give at least 4")
    meter = Meter(operator.device, operator.dtype, operator)
    n = operator.shape[0]
    if n <= probes:
        identity = torch.eye(n, dtype=operator.dtype, device=operator.device)
        values = operator.matmat(identity).diagonal().clone()
        stderrs, samples, name = torch.zeros_like(values), 1, "exact, all unit vectors"
        done = n
    else:
        state, samples = LeaveOneOut(operator.matmat), 0
        while samples < probes // 2:
            size = round_size(operator, samples, probes // 2)
            tests = probe_vectors(operator, range(samples, samples + size), seed, "rademacher")
            state.add(tests, operator.matmat(tests))
            samples += size
            if progress is not None:
                progress("diagonal", 2 * samples, probes)
        estimates = state.diagonals()
        values = estimates.mean(1)
        stderrs = math.sqrt(2 / samples) * estimates.std(1)
        done, name = 2 * samples, f"XDiag, {samples} test vectors of signs"
    if progress is not None:
        progress("diagonal", done, done)
    return DiagonalEstimate(
        values,
        stderrs,
        samples,
        method=f"{name}; {operator.description}",
        seed=seed,
        **meter.read(),
    )


def squared_frobenius_norm(
    operator: Operator,
    *,
    probes: int = 100,
    rel_error: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Estimate:
    r"""$\|H\|_F^2 = \sum_i \lambda_i^2 = E\|Hz\|^2$ for random signs z.

    It is Hutchinson's estimate of the trace of $H^2$, for one product a probe. It sets the
    variance of the trace and of the perturbation gap.

    Cost: `probes` HVPs.

    Args:
        operator: The operator.
        probes: Products, or the most of them if `rel_error` is given.
        rel_error: The relative standard error to stop at, looked at after every 10 probes from 20
            on.
        seed: Probe j depends on (seed, j) alone; the global random state is not touched.
        progress: Called with ("frobenius", probes done, probes).

    Raises:
        InputError: probes < 1, or rel_error not above 0.
    """
    if probes < 1:
        raise InputError(f"probes is {probes}: give at least 1")
    if rel_error is not None and not rel_error > 0:
        raise InputError(f"rel_error is {rel_error}: give a number above 0, such as 0.05")
    meter = Meter(operator.device, operator.dtype, operator)
    samples = torch.empty(0, dtype=torch.float64)
    while len(samples) < probes:
        size = round_size(operator, len(samples), probes)
        numbers = range(len(samples), len(samples) + size)
        products = operator.matmat(probe_vectors(operator, numbers, seed, "rademacher"))
        # In float64, since the square of a float32 norm can overflow.
        norms = torch.linalg.vector_norm(products, dim=0, dtype=torch.float64).cpu()
        samples = torch.cat([samples, norms.square()])
        if progress is not None:
            progress("frobenius", len(samples), probes)
        value, stderr = mean_and_stderr(samples)
        if rel_error is not None and len(samples) >= FEWEST and stderr <= rel_error * value:
            break
    if progress is not None:
        progress("frobenius", len(samples), len(samples))
    return Estimate(
        *mean_and_stderr(samples),
        len(samples),
        method=f"squared norm of products with signs; {operator.description}",
        seed=seed,
        **meter.read(),
    )
