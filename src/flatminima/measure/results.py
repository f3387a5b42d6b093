"""What a measurement returns: the number, its error, and what it cost.

One gradient, and one Hessian-vector product (HVP), is one over all batches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field, fields
from decimal import Decimal
from typing import Any, Self

from torch import Tensor

from flatminima.student import t_reach

SHOWN_IN_FULL = 3
"""The most eigenvalues that are printed with a residual each."""


@dataclass(frozen=True)
class Result:
    """What every measurement says about itself.

    Attributes:
        method: How it was measured, in words.
        gradients: Gradients computed, each over all batches.
        hvps: Hessian-vector products computed, each over all batches.
        seconds: Wall time.
        peak_bytes: The most CUDA memory allocated meanwhile; None on other devices, where torch
            does not count it.
        seed: The seed of the random numbers.
        dtype: The type the products were computed in.
    """

    _: KW_ONLY
    method: str
    gradients: int = 0
    hvps: int = 0
    seconds: float = 0.0
    peak_bytes: int | None = None
    seed: int | None = None
    dtype: str = "float32"

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types; a number that is not finite becomes None."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The result that `to_dict` wrote."""
        return cls(**data)


@dataclass(frozen=True)
class Estimate(Result):
    """The mean of independent samples.

    Attributes:
        value: The mean.
        stderr: Its standard error, s / sqrt(samples) with s the sample standard deviation; NaN for
            one sample.
        samples: How many samples.
    """

    value: float
    stderr: float
    samples: int

    def __str__(self) -> str:
        return plus_minus(self.value, self.stderr)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The confidence interval by Student's t, exact for normal samples; NaN for one sample.

        Args:
            level: Its probability to hold the truth, in (0, 1).

        Raises:
            InputError: another level.
        """
        reach = t_reach(level, self.samples) * self.stderr
        return self.value - reach, self.value + reach

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The result that `to_dict` wrote."""
        return cls(**{**data, "value": _number(data["value"]), "stderr": _number(data["stderr"])})


@dataclass(frozen=True)
class TraceEstimate(Estimate):
    """The trace of an operator, and of its diagonal blocks.

    `stderr` is the error of the probes: how far the trace over these very samples may be.

    Attributes:
        blocks: The trace of each diagonal block (of each parameter tensor, for a Hessian), from the
            same probes. They add up to the whole; their errors are correlated.
        data_stderr: The error of the data: how much the trace would vary over other samples, as
            many and from the same source, judged by how much it varies between batches. NaN for
            fewer than two batches.
        stopped: Why it stopped: "probes" (all done), "rel_error", "max_seconds", "interrupted".
    """

    blocks: Mapping[str, Estimate] = field(default_factory=dict)
    data_stderr: float = math.nan
    stopped: str = "probes"

    @property
    def total_stderr(self) -> float:
        """Of probes and data together, as an estimate of the trace over the source of the data."""
        return math.hypot(self.stderr, self.data_stderr)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types; of a block only what differs from the whole."""
        data = super().to_dict()
        data["blocks"] = {
            name: {"value": _plain(block.value), "stderr": _plain(block.stderr)}
            for name, block in self.blocks.items()
        }
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The result that `to_dict` wrote."""
        whole = {key: value for key, value in data.items() if key != "blocks"}
        shared = {f.name: data[f.name] for f in fields(Estimate) if f.name in data}
        blocks = {
            name: Estimate.from_dict({**shared, **block}) for name, block in data["blocks"].items()
        }
        return cls(
            **{
                **whole,
                "value": _number(data["value"]),
                "stderr": _number(data["stderr"]),
                "data_stderr": _number(data.get("data_stderr")),
                "blocks": blocks,
            }
        )


@dataclass(frozen=True)
class EigenEstimate(Result):
    """Eigenvalues of a symmetric operator, each with a bound on its error.

    Attributes:
        values: Ritz values theta = v'Hv, in the order asked for.
        residuals: ||Hv - theta v|| of each, ||v|| = 1. Within this distance of theta lies an
            eigenvalue of H (as computed in `dtype`).
        steps: Lanczos steps taken.
        converged: Whether every residual is within the tolerance.
        which: "largest", "smallest" or "magnitude".
        vectors: The Ritz vectors v as columns, shape (n, k), where asked for; not in `to_dict`.
        stopped: Why it stopped: "converged", "max_steps", "max_seconds", "interrupted".
    """

    values: tuple[float, ...]
    residuals: tuple[float, ...]
    steps: int
    converged: bool
    which: str
    vectors: Tensor | None = field(default=None, repr=False, compare=False)
    stopped: str = "converged"

    @property
    def value(self) -> float:
        """The first eigenvalue."""
        return self.values[0]

    @property
    def residual(self) -> float:
        """The residual of the first eigenvalue."""
        return self.residuals[0]

    def __str__(self) -> str:
        if len(self.values) > SHOWN_IN_FULL:
            worst = max(self.residuals)
            text = f"{', '.join(f'{v:.4g}' for v in self.values)} (residuals at most {worst:.1g})"
        else:
            pairs = zip(self.values, self.residuals, strict=True)
            text = ", ".join(plus_minus(value, residual) for value, residual in pairs)
        return text if self.converged else f"{text} (not converged in {self.steps} steps)"

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types, without the vectors."""
        data = super().to_dict()
        del data["vectors"]
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The result that `to_dict` wrote."""
        return cls(
            **{
                **data,
                "values": tuple(map(_number, data["values"])),
                "residuals": tuple(map(_number, data["residuals"])),
            }
        )


def mean_and_stderr(samples: Tensor) -> tuple[float, float]:
    """The mean of independent samples, shape (m,), and its standard error; NaN for m = 1."""
    m = len(samples)
    return samples.mean().item(), samples.std().item() / math.sqrt(m) if m > 1 else math.nan


def plus_minus(value: float, error: float) -> str:
    """`value ± error` with as many digits as the error gives a meaning to.

    The error keeps one digit, two if the first is a 1: 12.3 ± 0.4, 12.31 ± 0.14, 1230 ± 60.
    """
    if not (math.isfinite(value) and math.isfinite(error)) or error <= 0:
        return f"{value:.6g} ± {error:.2g}"
    largest = max(abs(value), error)
    exponent = math.floor(math.log10(largest))
    if -4 <= exponent < 6:
        return _rounded(value, error)
    # Decimal, since 10.0**exponent is 0 for the smallest numbers.
    value, error = (float(Decimal(x).scaleb(-exponent)) for x in (value, error))
    return f"({_rounded(value, error)})e{exponent:+d}"


def _rounded(value: float, error: float) -> str:
    mantissa, exponent = f"{error:.1e}".split("e")
    decimals = (1 if mantissa.startswith("1") else 0) - int(exponent)
    value, error = round(value, decimals) + 0.0, round(error, decimals)  # -0.0 becomes 0.0
    decimals = max(decimals, 0)
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _number(value: float | None) -> float:
    return math.nan if value is None else value
