"""Dual activations: what an activation does to the angle between two inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from flatminima.arguments import above, floats, tensor, whole
from flatminima.errors import InputError
from flatminima.models.wide_and_deep.series import above_lowest, hermite_coefficients

NOTHING = 1e-12
"""Squared coefficients below this are taken as rounding errors of 0."""

SLACK = 1e-3
"""How far below 1 an integral that should be 1 may come out, for activations with kinks."""


@dataclass(frozen=True)
class Limit:
    """The classifier that an infinitely wide network becomes as it gets infinitely deep.

    Attributes:
        kind: "1nn", the label of the nearest sample; "majority", that of most samples; or
            "singular", a vote with weights that grow like |x - x'|^-alpha.
        alpha: Of the singular kernel; None of the others.
    """

    kind: Literal["1nn", "majority", "singular"]
    alpha: float | None = None


@dataclass(frozen=True)
class DualActivation:
    r"""$\hat\phi(t) = E[\phi(u) \phi(v)] = \sum_k a_k^2 t^k$, (u, v) normal, correlation t.

    $a_k = E[\phi(z) h_k(z)]$ with $h_k$ the normalized Hermite polynomials; the activation is
    scaled to $E[\phi(z)^2] = 1$, so $\hat\phi(1) = 1$. Immutable; made by the class methods.

    Source: Daniely, Frostig, Singer, 2016, arXiv 1602.05897, for the dual; Radhakrishnan, Belkin,
    Uhler, 2022, arXiv 2204.14126, for the limits.

    Attributes:
        squares: a_k^2 for k = 0, 1, ...; they add up to 1, of a closed form nearly.
        slope_at_one: B = E[phi'(z)^2], the derivative at t = 1; inf for one that jumps.
        missing: The part of E[phi^2] that the series left out before it was scaled.
        closed: "relu" where a closed form is used in place of the series.
    """

    squares: tuple[float, ...]
    slope_at_one: float
    missing: float = 0.0
    closed: Literal["", "relu"] = ""

    @classmethod
    def from_hermite(cls, coefficients: Sequence[float]) -> DualActivation:
        """Of a sum of normalized Hermite polynomials, a_0 + a_1 h_1 + ...

        h_1 = x, h_2 = (x^2 - 1) / sqrt 2, h_3 = (x^3 - 3 x) / sqrt 6.

        Raises:
            InputError: none of them is other than 0, or one is not finite.
        """
        squares = np.square(floats("coefficients", coefficients))
        total = squares.sum()
        if squares.ndim != 1 or not 0 < total < np.inf:
            raise InputError("give a list of finite Hermite coefficients, not all of them 0")
        squares = squares / total
        slope = float((np.arange(len(squares)) * squares).sum())
        return cls(tuple(squares.tolist()), slope)

    @classmethod
    def from_function(
        cls, activation: Callable[[Tensor], Tensor], degree: int = 100
    ) -> DualActivation:
        """Of any activation, by its Hermite series.

        The integrals are sums over 32768 points in float64, good to rounding for smooth
        activations and to about 1e-3 for kinks. B is an integral too, of autograd's derivative.

        Args:
            activation: A function of a float64 tensor, elementwise, such as `torch.tanh`.
            degree: The last degree kept.

        Raises:
            InputError: E[phi(z)^2] is 0 or not finite.
        """
        degree = whole("degree", degree, 1)
        coefficients, power, slope = hermite_coefficients(activation, degree)
        if not 0 < power < np.inf:
            raise InputError(
                f"E[phi(z)^2] is {power} for a standard normal z: give an activation for which "
                "it is finite and not 0"
            )
        squares = np.square(coefficients)
        squares[squares < 1e-20 * power] = 0
        kept = squares.sum()
        partial = float((np.arange(len(squares)) * squares).sum())
        # The derivative of a jump is infinite, and autograd does not see it.
        slope = math.inf if partial > 1.02 * slope else slope / power
        return cls(tuple((squares / kept).tolist()), slope, missing=max(0.0, 1 - kept / power))

    @classmethod
    def sine(cls, a: float) -> DualActivation:
        """Of sin(sqrt(a) x), scaled: sinh(a t) / sinh(a).

        Raises:
            InputError: a is not above 0, or above 200.
        """
        a = above("a", a, 0, 200)
        k = np.arange(1, 1000, 2)
        logs = k * math.log(a) - np.array([math.lgamma(n + 1.0) for n in k])
        squares = np.zeros(1000)
        squares[1::2] = np.exp(logs - (a + math.log(-math.expm1(-2 * a)) - math.log(2)))
        return cls(_trimmed(squares), a / math.tanh(a))

    @classmethod
    def erf(cls) -> DualActivation:
        """Of the error function, scaled: arcsin(2 t / 3) / arcsin(2 / 3)."""
        squares, term = np.zeros(100), 2 / 3
        for n in range(50):
            squares[2 * n + 1] = term / (2 * n + 1)
            term *= (2 * n + 1) / (2 * n + 2) * (2 / 3) ** 2
        slope = (2 / 3) / math.sqrt(1 - 4 / 9) / math.asin(2 / 3)
        return cls(_trimmed(squares / math.asin(2 / 3)), slope)

    @classmethod
    def relu(cls) -> DualActivation:
        """Of sqrt(2) max(x, 0): (t (pi - arccos t) + sqrt(1 - t^2)) / pi."""
        squares, term = np.zeros(60), 1.0
        squares[0], squares[1] = 1 / math.pi, 1 / 2
        for n in range(1, 30):
            # Coefficients of t arcsin t + sqrt(1 - t^2).
            squares[2 * n] = term / ((2 * n) * (2 * n - 1)) / math.pi
            term *= (2 * n - 1) / (2 * n)
        return cls(tuple(squares.tolist()), 1.0, missing=1 - squares.sum(), closed="relu")

    @property
    def at_zero(self) -> float:
        """a_0^2, the dual at t = 0."""
        return self.squares[0]

    @property
    def slope_at_zero(self) -> float:
        """A = a_1^2, the derivative of the dual at t = 0."""
        return self.squares[1] if len(self.squares) > 1 else 0.0

    def __call__(self, t: Tensor) -> Tensor:
        """The dual at t in [-1, 1], elementwise."""
        tensor("t", t)
        if self.closed:
            return (t * (math.pi - t.acos()) + (1 - t * t).clamp(min=0).sqrt()) / math.pi
        lowest, rest = above_lowest(self._terms(0), t)
        return rest * t**lowest

    def derivative(self, t: Tensor) -> Tensor:
        """The derivative of the dual at t in [-1, 1], elementwise."""
        tensor("t", t)
        if self.closed:
            return (math.pi - t.acos()) / math.pi
        lowest, rest = above_lowest(self._terms(1), t)
        return rest * t**lowest

    def log_dual(self, log_t: Tensor) -> Tensor:
        """log of the dual at t = exp(log_t), t in [0, 1]; does not underflow.

        Near t = 1 it is B log t, to first order: there 1 - t would be lost in rounding.
        """
        if self.closed:
            # Its second derivative is infinite at 1, so the first order holds only very near.
            near, slope, found = 1e-12, 1.0, self(log_t.exp()).log()
        else:
            lowest, rest = above_lowest(self._terms(0), log_t.exp())
            near, slope, found = 1e-8, self._series_slope(), rest.log_()
            found = found.add_(log_t, alpha=lowest) if lowest else found
        return torch.where(log_t > -near, slope * log_t, found)

    def log_derivative(self, log_t: Tensor) -> Tensor:
        """log of the derivative of the dual at t = exp(log_t), t in [0, 1]."""
        if self.closed:
            return self.derivative(log_t.exp()).log()
        lowest, rest = above_lowest(self._terms(1), log_t.exp())
        return rest.log_().add_(log_t, alpha=lowest) if lowest else rest.log_()

    def taxonomy(self) -> Limit:
        r"""What the network becomes with depth, read off $\hat\phi(0)$, A and B.

        $\hat\phi(0) > 0$ and B at least 1: the majority. $\hat\phi(0) = 0$ and A = 0: the nearest
        neighbour. $\hat\phi(0) = 0$ and 0 < A < 1: a singular kernel with
        $\alpha = 2 \log(1/A) / \log B$. Numbers below 1e-12 are taken as 0.

        Raises:
            InputError: none of the three: a line, an activation that jumps, or
                $\hat\phi(0) > 0$ with B < 1, where all inputs become alike.
        """
        zero, a, b = self.at_zero, self.slope_at_zero, self.slope_at_one
        if not math.isfinite(b):
            raise InputError(
                "the activation jumps, so E[phi'^2] is infinite and the limits of wide and deep "
                "networks do not cover it: take a continuous one"
            )
        if zero > NOTHING:
            if b < 1 - SLACK:
                raise InputError(
                    f"phi^(0) is {zero:.3g} and B = E[phi'^2] is {b:.3g}, below 1: all inputs "
                    "become alike with depth, and there is no classifier; subtract the "
                    "activation's mean, or take a steeper one"
                )
            return Limit("majority")
        if a <= NOTHING:
            return Limit("1nn")
        if a > 1 - NOTHING:
            raise InputError("the activation is a line: depth changes nothing; add a curved term")
        return Limit("singular", 2 * math.log(1 / a) / math.log(b))

    def _terms(self, derivatives: int) -> list[tuple[int, float]]:
        """(exponent, coefficient) of the series, or of its derivative."""
        terms = [(k, s) for k, s in enumerate(self.squares) if s > 0]
        return [(k - 1, k * s) for k, s in terms if k] if derivatives else terms

    def _series_slope(self) -> float:
        return math.fsum(k * s for k, s in enumerate(self.squares))


def optimal_activation(dimension: int) -> DualActivation:
    r"""The activation whose singular kernel has $\alpha = d$, which is Bayes-consistent.

    d = 1: $(h_7 + h_1) / \sqrt 2$. d at least 2:
    $2^{-d/4} h_3 + \sqrt{1 - 2^{1 - d/2}} h_2 + 2^{-d/4} h_1$, so A = 2^{-d/2} and B = 2.

    Source: Radhakrishnan, Belkin, Uhler, 2022, arXiv 2204.14126; the formula for all d from 2 is
    read off the cases in the code released with it.

    Args:
        dimension: d, of the sphere (or the data on it); rows of n numbers brought to length 1 lie
            on a sphere of n - 1.

    Raises:
        InputError: the dimension is not a whole number of 1 or above.
    """
    d = whole("dimension", dimension, 1)
    if d == 1:
        return DualActivation.from_hermite([0, 0.5**0.5, 0, 0, 0, 0, 0, 0.5**0.5])
    outer, middle = 2 ** (-d / 4), math.sqrt(1 - 2 ** (1 - d / 2))
    return DualActivation.from_hermite([0, outer, middle, outer])


def limiting_classifier(activation: Callable[[Tensor], Tensor]) -> Limit:
    """Which classifier a fully connected network with this activation becomes, wide and deep.

    Args:
        activation: A function of a tensor such as `torch.tanh`, or a `DualActivation`.

    Raises:
        InputError: none of the three; see `DualActivation.taxonomy`.

    Example:
        >>> limiting_classifier(torch.nn.functional.relu).kind
        'majority'
    """
    if isinstance(activation, DualActivation):
        return activation.taxonomy()
    return DualActivation.from_function(activation).taxonomy()


def _trimmed(squares: np.ndarray[tuple[int], np.dtype[np.float64]]) -> tuple[float, ...]:
    last = int(np.flatnonzero(squares > 1e-18)[-1])
    kept = squares[: last + 1] / squares[: last + 1].sum()
    return tuple(kept.tolist())
