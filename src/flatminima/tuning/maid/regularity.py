"""What must be known of a problem to certify a hypergradient, and the bounds that follow."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TypeAlias

from torch import Tensor

from flatminima.errors import InputError


@dataclass(frozen=True)
class Regularity:
    r"""Constants of a bilevel problem at one theta; all norms are spectral.

    They must hold on a ball about x that holds $\hat x(\theta)$; constants for all x always do. A
    constant that is too large costs work; one that is too small takes the certificate away.

    Attributes:
        strong: $\mu > 0$, at most the smallest eigenvalue of $H = \nabla_{xx} h$ for all x.
        upper: $L_g$, the Lipschitz constant in x of $\nabla_x g$.
        cross: $L_J$, that of $J = \partial_\theta \nabla_x h$.
        hessian: $L_H$, that of H; 0 where h is quadratic in x.
        coupling: $\lVert J \rVert$ at the x asked about, or more; None has it bounded by its
            Frobenius norm, one product for each knob.
        direct: The Lipschitz constant in x of $\nabla_\theta g$; 0 where theta is not in g.
        convex: Whether g is convex in x, which makes the lower end of its bracket tighter.
    """

    strong: float
    upper: float
    cross: float
    hessian: float = 0.0
    coupling: float | None = None
    direct: float = 0.0
    convex: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "convex" or value is None:
                continue
            if not math.isfinite(value) or (value < 0 and field.name != "strong"):
                raise InputError(f"the constant {field.name} is {value}: give a finite one >= 0")
        if not self.strong > 0:
            raise InputError(
                f"the modulus of strong convexity `strong` is {self.strong:.3g}: MAID needs a "
                "strongly convex lower problem; add a ridge such as 0.5 * c * x.square().sum(), "
                "and c to the modulus"
            )

    def bracket(self, value: float, slope: float, error: float) -> tuple[float, float]:
        r"""Bounds of $f(\theta) = g(\hat x)$ from $g(x)$ at an x within `error` of $\hat x$.

        $g \pm (\lVert \nabla g \rVert \epsilon + L_g \epsilon^2 / 2)$; below without the last term
        if g is convex.

        Args:
            value: g(x).
            slope: $\lVert \nabla_x g(x) \rVert$.
            error: $\epsilon$.
        """
        first, second = slope * error, self.upper * error**2 / 2
        return value - first - (0 if self.convex else second), value + first + second

    def paper_bound(self, slope: float, coupling: float, error: float, residual: float) -> float:
        r"""$\omega$ of Theorem 2.1: how far $z = -J^\top q$ is from $\nabla f$ at most.

        $\omega = c\,\epsilon + \frac{\lVert J \rVert}{\mu} \delta + \frac{L_J L_g}{\mu}
        \epsilon^2$ with $c = \frac{L_g \lVert J \rVert}{\mu} + \frac{L_H}{\mu^2} \lVert \nabla g
        \rVert \lVert J \rVert + \frac{L_J \lVert \nabla g \rVert}{\mu}$, and $L_H / \mu^2$ for the
        Lipschitz constant of $H^{-1}$.

        Args:
            slope: $\lVert \nabla_x g(x) \rVert$.
            coupling: $\lVert J \rVert$ at x.
            error: $\epsilon$, at least $\lVert x - \hat x \rVert$.
            residual: $\delta = \lVert H q - \nabla g \rVert$.
        """
        mu = self.strong
        c = self.upper * coupling / mu + self.hessian / mu**2 * slope * coupling
        c += self.cross * slope / mu
        omega = c * error + coupling / mu * residual + self.cross * self.upper / mu * error**2
        return omega + self.direct * error

    def bound(
        self, slope: float, coupling: float, adjoint: float, error: float, residual: float
    ) -> float:
        r"""The smaller of the paper's bound and one that knows $\lVert q \rVert$.

        $p = H^{-1} \nabla g$ at x has $\lVert p \rVert \le \lVert q \rVert + \delta/\mu$, and moves
        by at most $D = \frac{\epsilon}{\mu} (L_H \lVert p \rVert + L_g)$ on the way to $\hat x$. So
        $\omega \le \frac{\lVert J \rVert}{\mu} \delta + \lVert J \rVert D + L_J \epsilon (\lVert p
        \rVert + D)$. It is far smaller where $\nabla g$ lies along stiff directions of H.

        Args:
            slope: $\lVert \nabla_x g(x) \rVert$.
            coupling: $\lVert J \rVert$ at x.
            adjoint: $\lVert q \rVert$.
            error: $\epsilon$.
            residual: $\delta$.
        """
        mu = self.strong
        p = adjoint + residual / mu
        moved = error / mu * (self.hessian * p + self.upper)
        ours = coupling * (residual / mu + moved) + self.cross * error * (p + moved)
        return min(ours + self.direct * error, self.paper_bound(slope, coupling, error, residual))


RegularityOf: TypeAlias = Callable[[Tensor, Tensor], Regularity]
"""`(x, theta) -> Regularity`; `strong` may depend on theta alone."""
