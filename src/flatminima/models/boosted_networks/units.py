"""A few hidden units fitted to residuals by least squares."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from flatminima.models.boosted_networks.losses import Floats

RELATIVE = 1e-9
"""Fitting stops where an iteration gains less than this part of the residuals' mean square."""


@dataclass(frozen=True)
class Units:
    """h(x) = outer sigmoid(inner x + inner_bias) + outer_bias.

    Attributes:
        inner: Shape (j, d).
        inner_bias: Shape (j,).
        outer: Shape (k, j).
        outer_bias: Shape (k,).
        iterations: Those that L-BFGS took.
    """

    inner: Floats
    inner_bias: Floats
    outer: Floats
    outer_bias: Floats
    iterations: int = 0

    def __call__(self, X: Floats) -> Floats:
        """Outputs of shape (n, k)."""
        hidden = expit(X @ self.inner.T + self.inner_bias)
        found: Floats = hidden @ self.outer.T + self.outer_bias
        return found


def objective(
    flat: Floats, X: Floats, targets: Floats, count: int, alpha: float
) -> tuple[float, Floats]:
    r"""Half the mean square over samples and outputs, plus $\alpha \|W\|^2 / 2n$, and its gradient.

    Args:
        flat: The weights of `count` units, as `unpack` reads them.
        X: Shape (n, d).
        targets: Shape (n, k).
        count: The number of units, j.
        alpha: The penalty's weight; biases are free of it.
    """
    units = unpack(flat, X.shape[1], count, targets.shape[1])
    hidden = expit(X @ units.inner.T + units.inner_bias)
    errors = hidden @ units.outer.T + units.outer_bias - targets
    penalty = alpha / len(X)
    value = 0.5 * np.square(errors).mean()
    value += 0.5 * penalty * (np.square(units.inner).sum() + np.square(units.outer).sum())
    errors = errors / errors.size
    back = (errors @ units.outer) * hidden * (1 - hidden)
    gradient = (
        back.T @ X + penalty * units.inner,
        back.sum(0),
        errors.T @ hidden + penalty * units.outer,
        errors.sum(0),
    )
    return float(value), np.concatenate([part.ravel() for part in gradient])


def unpack(flat: Floats, features: int, count: int, outputs: int) -> Units:
    """The units that a vector of weights means."""
    sizes = np.cumsum([count * features, count, outputs * count])
    inner, inner_bias, outer, outer_bias = np.split(flat, sizes)
    return Units(
        inner.reshape(count, features), inner_bias, outer.reshape(outputs, count), outer_bias
    )


def fit_units(
    X: Floats,
    targets: Floats,
    count: int,
    *,
    alpha: float,
    max_iter: int,
    random: np.random.RandomState,
) -> Units:
    """Fit new units to targets by L-BFGS; costs one pass over the data an iteration.

    Weights and biases start in U(-r, r), r = sqrt(2 / (fan_in + fan_out)).

    Args:
        X: Shape (n, d), about standardized.
        targets: Shape (n, k).
        count: The number of units, j.
        alpha: Weight of the squared weights, see `objective`.
        max_iter: The most iterations.
        random: Where the start comes from.
    """
    features, outputs = X.shape[1], targets.shape[1]
    first, last = np.sqrt(2 / (features + count)), np.sqrt(2 / (count + outputs))
    inner = random.uniform(-first, first, count * features + count)
    outer = random.uniform(-last, last, outputs * count + outputs)
    start = np.concatenate([inner, outer])
    # In units of the residuals' size, so that late stages, of small ones, are fitted as well.
    size = max(0.5 * float(np.square(targets).mean()), np.finfo(np.float64).tiny)

    def scaled(flat: Floats) -> tuple[float, Floats]:
        value, gradient = objective(flat, X, targets, count, alpha)
        return value / size, gradient / size

    options = {"maxiter": max_iter, "maxfun": 20 * max_iter, "ftol": RELATIVE, "gtol": 0.0}
    found = minimize(scaled, start, jac=True, method="L-BFGS-B", options=options)
    units = unpack(np.asarray(found.x, np.float64), features, count, outputs)
    return Units(
        units.inner, units.inner_bias, units.outer, units.outer_bias, iterations=int(found.nit)
    )
