"""The losses of boosting: where it starts, what a stage is fitted to, and how far it goes."""

from __future__ import annotations

from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logsumexp, softmax

Floats: TypeAlias = NDArray[np.float64]

FLOOR = 1e-12
"""The least curvature that a Newton step divides by."""


class Loss(Protocol):
    """A loss of scores F of shape (n, k) and targets y of the same shape."""

    def start(self, y: Floats) -> Floats:
        """The constant scores F_0 that boosting starts from, shape (k,)."""

    def residuals(self, y: Floats, scores: Floats) -> Floats:
        """-dl/dF of each sample, shape (n, k); of squares, half of it."""

    def step(self, y: Floats, scores: Floats, outputs: Floats) -> float:
        """How far to go along `outputs`, shape (n, k): a Newton step from 0."""

    def mean(self, y: Floats, scores: Floats) -> float:
        """The mean loss over samples."""


class Squares:
    """sum_k (y_k - F_k)^2; y real. Starts at the mean of y; its step is 1, as in the paper."""

    def start(self, y: Floats) -> Floats:
        """The mean of y."""
        found: Floats = y.mean(0)
        return found

    def residuals(self, y: Floats, scores: Floats) -> Floats:
        """Y - F."""
        return y - scores

    def step(self, y: Floats, scores: Floats, outputs: Floats) -> float:
        """1: least squares has already found the length, but for the penalty and the subset."""
        return 1.0

    def mean(self, y: Floats, scores: Floats) -> float:
        """The mean over samples of the sum of squares over outputs."""
        return float(np.square(y - scores).sum(1).mean())


class Binary:
    """log(1 + exp(-2 y F)); y is -1 or 1, k = 1. The probability of 1 is sigmoid(2 F)."""

    def start(self, y: Floats) -> Floats:
        """Half the log-odds, log((1 + mean y) / (1 - mean y)) / 2; finite with both classes."""
        mean = y.mean(0)
        found: Floats = 0.5 * np.log((1 + mean) / (1 - mean))
        return found

    def residuals(self, y: Floats, scores: Floats) -> Floats:
        """2 y / (1 + exp(2 y F))."""
        found: Floats = 2 * y * expit(-2 * y * scores)
        return found

    def step(self, y: Floats, scores: Floats, outputs: Floats) -> float:
        """sum r h / sum h^2 r (2 y - r), the exact Newton step; r (2 y - r) = 4 s (1 - s)."""
        margins = 2 * y * scores
        slope = float((self.residuals(y, scores) * outputs).sum())
        bend = float((np.square(outputs) * 4 * expit(-margins) * expit(margins)).sum())
        return slope / max(bend, FLOOR)

    def mean(self, y: Floats, scores: Floats) -> float:
        """The mean over samples."""
        return float(np.logaddexp(0, -2 * y * scores).mean())


class Multiclass:
    """logsumexp(F) - F_y; y one-hot, k classes, P = softmax(F). Starts at 0."""

    def start(self, y: Floats) -> Floats:
        """0 for each class."""
        return np.zeros(y.shape[1])

    def residuals(self, y: Floats, scores: Floats) -> Floats:
        """Y - P."""
        found: Floats = y - softmax(scores, axis=1)
        return found

    def step(self, y: Floats, scores: Floats, outputs: Floats) -> float:
        """sum h (y - P) / sum h^2 P (1 - P): Newton with the diagonal of softmax's Hessian."""
        chances = softmax(scores, axis=1)
        slope = float((outputs * (y - chances)).sum())
        bend = float((np.square(outputs) * chances * (1 - chances)).sum())
        return slope / max(bend, FLOOR)

    def mean(self, y: Floats, scores: Floats) -> float:
        """The mean over samples."""
        return float((logsumexp(scores, axis=1) - (y * scores).sum(1)).mean())
