"""What a few seeds say: the mean of a metric, and the paired difference of two methods."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flatminima.errors import InputError
from flatminima.student import t_quantile

Floats = NDArray[np.float64]
Interval = tuple[float, float]

_EXACT_UP_TO = 16


@dataclass(frozen=True)
class Mean:
    """The mean of a metric over runs, with Student's t interval.

    Attributes:
        mean: The mean of the values.
        stderr: Its standard error, s / sqrt(n); None for one value.
        interval: The two ends of the interval; None for one value.
        level: The confidence level of the interval.
        samples: The number of values.
    """

    mean: float
    stderr: float | None
    interval: Interval | None
    level: float
    samples: int

    @property
    def half_width(self) -> float | None:
        """Half the length of the interval, the number after ±; None for one value."""
        return None if self.interval is None else (self.interval[1] - self.interval[0]) / 2

    def __str__(self) -> str:
        if self.half_width is None:
            return f"{self.mean:.4g}"
        return f"{self.mean:.4g} ± {self.half_width:.2g}"

    def to_dict(self) -> dict[str, Any]:
        """The result as plain numbers; the interval is `[low, high]`."""
        return {
            "mean": self.mean,
            "stderr": self.stderr,
            "interval": None if self.interval is None else list(self.interval),
            "level": self.level,
            "samples": self.samples,
        }


@dataclass(frozen=True)
class PairedDifference:
    """The mean difference of two methods over the seeds both have, values - reference.

    Attributes:
        difference: The mean of the differences.
        interval: Its BCa bootstrap interval; None for one pair.
        t_interval: Its Student's t interval; None for one pair. The one to trust below about 10
            pairs, where a bootstrap interval is too short: it cannot leave the range of the
            differences, so that with 3 pairs it excludes 0 in at least one of four comparisons of
            equals.
        p_value: Two-sided p-value of the sign-flip permutation test; at least 2^(1 - samples).
        exact: Whether all sign flips were counted, or random ones.
        level: The confidence level of both intervals.
        samples: The number of pairs.
        resamples: The number of bootstrap resamples.
        seed: The seed of the resamples.
    """

    difference: float
    interval: Interval | None
    t_interval: Interval | None
    p_value: float
    exact: bool
    level: float
    samples: int
    resamples: int
    seed: int

    def __str__(self) -> str:
        if self.t_interval is None:
            return f"{self.difference:+.4g} (one pair)"
        low, high = self.t_interval
        return f"{self.difference:+.4g} [{low:+.2g}, {high:+.2g}], p = {self.p_value:.2g}"

    def to_dict(self) -> dict[str, Any]:
        """The result as plain numbers; an interval is `[low, high]`."""
        return {
            "difference": self.difference,
            "interval": None if self.interval is None else list(self.interval),
            "t_interval": None if self.t_interval is None else list(self.t_interval),
            "p_value": self.p_value,
            "exact": self.exact,
            "level": self.level,
            "samples": self.samples,
            "resamples": self.resamples,
            "seed": self.seed,
        }


def mean_ci(values: Iterable[float], level: float = 0.95) -> Mean:
    """The mean and its Student's t interval, mean ± t_{(1 + level) / 2, n - 1} s / sqrt(n).

    Args:
        values: One value a run; s is their sample standard deviation (n - 1).
        level: The confidence level, between 0 and 1.

    Raises:
        InputError: there is no value, one is not finite, or the level is out of range.
    """
    _check_level(level)
    array = np.asarray(list(values), dtype=np.float64)
    if array.size == 0:
        raise InputError("no values to average: give at least one")
    if not np.isfinite(array).all():
        first = int(np.argmin(np.isfinite(array)))
        raise InputError(
            f"cannot average {array[first]}, value {first} of {array.size} from 0: "
            "leave out the runs that diverged, and say so"
        )
    mean = float(array.mean())
    if array.size == 1:
        return Mean(mean, None, None, level, 1)
    stderr = float(array.std(ddof=1) / math.sqrt(array.size))
    half = t_quantile((1 + level) / 2, array.size - 1) * stderr
    return Mean(mean, stderr, (mean - half, mean + half), level, array.size)


def paired(
    values: Mapping[int, float],
    reference: Mapping[int, float],
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> PairedDifference:
    """Compare a method with a reference on the seeds both have.

    Interval: BCa bootstrap of the mean difference (Efron 1987, "Better bootstrap confidence
    intervals"), beside Student's t. p-value: the share of the 2^n sign flips of the differences
    whose mean is as far from 0 as theirs (Fisher 1935); all of them up to 16 pairs, beyond that
    (1 + hits) / (1 + resamples) of random ones (Phipson & Smyth 2010). Neither is corrected for
    comparing several methods.

    Args:
        values: Seed to value of the method.
        reference: Seed to value of the reference.
        level: The confidence level of the intervals.
        resamples: The number of bootstrap resamples, and of random sign flips.
        seed: The seed of both.

    Raises:
        InputError: no seed is in both, a value is not finite, or an argument is out of range.
    """
    if resamples < 1:
        raise InputError(f"resamples={resamples}: give at least 1")
    seeds = [key for key in values if key in reference]
    if not seeds:
        raise InputError("no seed is in both the values and the reference: run both on the same")
    differences = np.array([values[key] - reference[key] for key in seeds], dtype=np.float64)
    mean = mean_ci(differences, level)
    exact = mean.samples <= _EXACT_UP_TO
    generator = np.random.default_rng(seed)
    interval = None
    if mean.samples > 1:
        interval = _bca(differences, level, resamples, generator)
    return PairedDifference(
        difference=mean.mean,
        interval=interval,
        t_interval=mean.interval,
        p_value=_sign_flip_p_value(differences, exact, resamples, generator),
        exact=exact,
        level=level,
        samples=mean.samples,
        resamples=resamples,
        seed=seed,
    )


def _bca(
    differences: Floats, level: float, resamples: int, generator: np.random.Generator
) -> Interval:
    n = differences.size
    estimate = differences.mean()
    centered = differences - estimate
    noise = _rounding(differences)
    if np.abs(centered).max() <= noise:
        return float(estimate), float(estimate)
    means = centered[generator.integers(n, size=(resamples, n))].mean(axis=1)
    # Resamples with the estimate's own mean count half; rounding must not decide their side.
    below = np.mean(means < -noise) + np.mean(np.abs(means) <= noise) / 2
    normal = NormalDist()
    bias = normal.inv_cdf(float(np.clip(below, 0.5 / resamples, 1 - 0.5 / resamples)))
    # For the mean, the jackknife's influences are the centered values themselves.
    scaled = centered / np.abs(centered).max()
    acceleration = float((scaled**3).sum() / (6 * (scaled**2).sum() ** 1.5))
    probabilities = []
    for tail in ((1 - level) / 2, (1 + level) / 2):
        z = bias + normal.inv_cdf(tail)
        probabilities.append(normal.cdf(bias + z / (1 - acceleration * z)))
    low, high = estimate + np.quantile(means, probabilities)
    return float(low), float(high)


def _sign_flip_p_value(
    differences: Floats, exact: bool, resamples: int, generator: np.random.Generator
) -> float:
    n = differences.size
    if exact:
        signs = 1.0 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
    else:
        signs = generator.choice([-1.0, 1.0], size=(resamples, n))
    # Flips that only differ by rounding are ties, and ties count.
    threshold = np.abs(differences.sum()) - n * _rounding(differences)
    hits = int(np.count_nonzero(np.abs(signs @ differences) >= threshold))
    return hits / 2**n if exact else (1 + hits) / (1 + resamples)


def _rounding(differences: Floats) -> float:
    return 1e-12 * float(np.abs(differences).max())


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise InputError(f"level={level}: give a number between 0 and 1, such as 0.95")
