"""An inexact hypergradient with a bound of its error."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from flatminima.errors import InputError
from flatminima.tuning.maid.conjugate import conjugate_gradients
from flatminima.tuning.maid.lower import solve_lower
from flatminima.tuning.maid.problem import Bilevel, Level, LowerPoint, check_points, norm
from flatminima.tuning.maid.regularity import Regularity, RegularityOf

MOST_COLUMNS = 256
"""Knobs up to which ||J|| is bounded by its Frobenius norm, one product each."""


@dataclass(frozen=True)
class Hypergradient:
    r"""$z = -J(x)^\top q$ (and $\partial_\theta g$), with $\lVert z - \nabla f \rVert \le \omega$.

    Attributes:
        value: z, of the shape of theta.
        size: $\lVert z \rVert$.
        bound: $\omega$, the smaller of two bounds; see `Regularity.bound`.
        paper_bound: The bound of the paper's Theorem 2.1 alone.
        x: The inexact solution of the lower problem.
        adjoint: q, with $H q \approx \nabla g$.
        error: What $\lVert x - \hat x \rVert$ is at most, from the lower gradient at x.
        residual: $\lVert H q - \nabla g \rVert$.
        upper: g(x).
        low: What $f(\theta)$ is at least.
        high: What it is at most.
    """

    value: Tensor
    size: float
    bound: float
    paper_bound: float
    x: Tensor
    adjoint: Tensor
    error: float
    residual: float
    upper: float
    low: float
    high: float


def inexact_hypergradient(
    upper: Level,
    lower: Level,
    x: Tensor,
    theta: Tensor,
    regularity: RegularityOf,
    *,
    accuracy: float,
    residual: float,
    most: int = 2000,
) -> Hypergradient:
    r"""The gradient of $f(\theta) = g(\hat x(\theta), \theta)$, as exact as asked.

    The lower problem is solved to $\lVert \nabla_x h \rVert \le \epsilon \mu$ and $H q = \nabla g$
    by conjugate gradients to a residual of $\delta$; then $z = \partial_\theta g - J^\top q$.
    Nothing is differentiated through a solver, and neither H nor J is formed.

    Cost: the products of both solves and one with J'; one gradient of g.

    Source: Salehi, Mukherjee, Roberts, Ehrhardt, An adaptively inexact first-order method for
    bilevel optimization with application to hyperparameter learning, 2023, arXiv 2308.10098.

    Args:
        upper: g(x, theta), a scalar.
        lower: h(x, theta), a scalar, strongly convex in x.
        x: Where the lower solve starts, any shape; float64 (or float32).
        theta: The knobs, any shape, of the same type.
        regularity: The constants at (x, theta).
        accuracy: $\epsilon$, above 0.
        residual: $\delta$, above 0.
        most: The most products of each solve.

    Raises:
        InputError: a type that cannot be differentiated, values that are not finite, a lower
            problem that is less convex than said.
    """
    check_points(x, theta)
    problem = Bilevel(upper, lower)
    strong = regularity(x, theta).strong
    point = solve_lower(problem, x, theta, accuracy, strong=strong, most=most)
    return hypergradient_at(problem, point, None, regularity(point.x, theta), residual, most)


def hypergradient_at(
    problem: Bilevel,
    point: LowerPoint,
    start: Tensor | None,
    regularity: Regularity,
    residual: float,
    most: int,
) -> Hypergradient:
    """The hypergradient from an inexact solution of the lower problem.

    Args:
        problem: The problem.
        point: The lower problem where its solve ended.
        start: Where the adjoint solve starts; None is 0.
        regularity: The constants there.
        residual: What ||H q - grad g|| may be.
        most: The most products of the solve.

    Raises:
        InputError: the lower problem or the hypergradient is not finite; a lower problem that is
            less convex than said; too many knobs to bound ||J|| by columns.
    """
    if not point.size < float("inf"):
        raise InputError(
            "the lower problem or its gradient is not finite at these knobs: start x and theta "
            "where lower is defined"
        )
    above = problem.upper_at(point.x, point.theta)
    if not math.isfinite(above.value) or not above.gradient.isfinite().all():
        raise InputError(
            f"the upper level is {above.value:g} and its gradient in x is finite at "
            f"{float(above.gradient.isfinite().double().mean()):.0%} of the entries: check the "
            "data, and whether upper is defined where the lower solution is"
        )
    adjoint, left = conjugate_gradients(
        point.product, above.gradient, start, residual, least=regularity.strong, most=most
    )
    value = -point.cross(adjoint)
    if above.direct is not None:
        value = value + above.direct
    if not value.isfinite().all():
        raise InputError(f"the hypergradient is not finite along {_places(value)}")
    error, slope = point.size / regularity.strong, norm(above.gradient)
    coupling = regularity.coupling
    if coupling is None:
        coupling = _frobenius(point)
    low, high = regularity.bracket(above.value, slope, error)
    return Hypergradient(
        value,
        norm(value),
        regularity.bound(slope, coupling, norm(adjoint), error, left),
        regularity.paper_bound(slope, coupling, error, left),
        point.x,
        adjoint,
        error,
        left,
        above.value,
        low,
        high,
    )


def _frobenius(point: LowerPoint) -> float:
    knobs = point.theta.numel()
    if knobs > MOST_COLUMNS:
        raise InputError(
            f"there are {knobs} knobs, too many to bound the norm of J by one product each: give "
            "`coupling` in the Regularity, an upper bound of the spectral norm of J"
        )
    columns = torch.eye(knobs, dtype=point.theta.dtype, device=point.theta.device)
    return float(sum(norm(point.along(c.view_as(point.theta))) ** 2 for c in columns) ** 0.5)


def _places(value: Tensor) -> str:
    bad = (~value.flatten().isfinite()).nonzero().flatten().tolist()
    named = ", ".join(str(i) for i in bad[:5])
    more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
    return (
        f"theta[{named}]{more}: at these knobs the derivative of lower's gradient is not defined; "
        "start elsewhere, or tune the logarithm of a knob that must be positive"
    )
