"""Student's t distribution: its tail and its quantiles, without scipy."""

from __future__ import annotations

import math

from flatminima.errors import InputError


def t_quantile(probability: float, degrees: float) -> float:
    r"""The quantile of Student's t: the `t` with `P(T <= t) = probability`.

    Found by bisection of the two-sided tail `P(|T| > t) = I_x(degrees / 2, 1 / 2)`,
    `x = degrees / (degrees + t^2)`, where I is the regularized incomplete beta function
    (Abramowitz & Stegun 1964, 26.7.1).

    Args:
        probability: Between 0 and 1, exclusive.
        degrees: Degrees of freedom, above 0.

    Raises:
        InputError: an argument is outside its range.
    """
    if not 0 < probability < 1 or not 0 < degrees < math.inf:
        raise InputError(
            f"no t quantile at probability={probability}, degrees={degrees}: "
            "the probability is strictly between 0 and 1, the degrees of freedom are above 0"
        )
    if probability == 0.5:
        return 0.0
    if probability < 0.5:
        return -_positive_quantile(2 * probability, degrees)
    return _positive_quantile(2 * (1 - probability), degrees)


def t_reach(level: float, samples: int) -> float:
    """How many standard errors the confidence interval of a mean goes to each side.

    Args:
        level: Of confidence, between 0 and 1, exclusive.
        samples: How many the mean is of; of 0 or 1 as of 2, whose standard error is NaN.

    Raises:
        InputError: the level is outside its range.
    """
    if not 0 < level < 1:
        raise InputError(f"the level is {level}: give a probability between 0 and 1, such as 0.95")
    return t_quantile((1 + level) / 2, max(samples - 1, 1))


def _positive_quantile(tail: float, degrees: float) -> float:
    low, high = 0.0, 1.0
    while two_sided_tail(high, degrees) > tail:
        low, high = high, 2 * high
    while low < (middle := (low + high) / 2) < high:
        if two_sided_tail(middle, degrees) > tail:
            low = middle
        else:
            high = middle
    return middle


def two_sided_tail(t: float, degrees: float) -> float:
    """`P(|T| > |t|)` of Student's t, the p-value of a two-sided t-test.

    Args:
        t: The statistic.
        degrees: Degrees of freedom, above 0.
    """
    square = t * t
    total = degrees + square
    return _incomplete_beta(degrees / 2, 0.5, degrees / total, square / total)


def _incomplete_beta(a: float, b: float, x: float, y: float) -> float:
    """I_x(a, b), with y = 1 - x given apart because it keeps its digits where x is near 1."""
    if x <= 0 or y <= 0:
        return 0.0 if x <= 0 else 1.0
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(log_front + a * math.log(x) + b * math.log(y))
    # The continued fraction converges fast on this side of the mean only.
    if x < (a + 1) / (a + b + 2):
        return front * _beta_fraction(a, b, x) / a
    return 1 - front * _beta_fraction(b, a, y) / b


def _beta_fraction(a: float, b: float, x: float) -> float:
    """The continued fraction of I_x(a, b) by Lentz's method (Abramowitz & Stegun 1964, 26.5.8)."""
    tiny = 1e-300
    c, d = 1.0, 1 / ((1 - (a + b) * x / (a + 1)) or tiny)
    fraction = d
    for m in range(1, 10_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        step = 1.0
        for coefficient in (even, odd):
            d = 1 / ((1 + coefficient * d) or tiny)
            c = (1 + coefficient / c) or tiny
            step = c * d
            fraction *= step
        if abs(step - 1) < 1e-16:
            break
    return fraction
