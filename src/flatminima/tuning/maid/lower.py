"""The lower problem, solved until its gradient certifies how near the solution is."""

from __future__ import annotations

import math

from torch import Tensor

from flatminima.tuning.maid.conjugate import conjugate_gradients
from flatminima.tuning.maid.problem import Bilevel, LowerPoint

SHORTEST = 1e-9
"""The shortest part of a Newton step before rounding is taken to be all that is left."""


def solve_lower(
    problem: Bilevel, x: Tensor, theta: Tensor, accuracy: float, *, strong: float, most: int = 2000
) -> LowerPoint:
    r"""A point with $\lVert \nabla_x h \rVert \le \epsilon \mu$, hence
    $\lVert x - \hat x(\theta) \rVert \le \epsilon$.

    Newton steps by conjugate gradients, each shortened until the norm of the gradient falls, which
    it does along an inexact Newton step of a strongly convex h. How well a step is solved follows
    from how well the last one foretold the gradient, so that a quadratic takes two.

    Source: Eisenstat and Walker, Choosing the forcing terms in an inexact Newton method, 1996
    (their first choice).

    Args:
        problem: The problem; its products are counted there.
        x: Where to start.
        theta: The knobs.
        accuracy: $\epsilon$.
        strong: $\mu$, a modulus of strong convexity of h(., theta).
        most: The most products, roughly.

    Returns:
        Where it ended; its gradient is larger than asked where rounding or `most` stopped it, and
        not finite where h is not finite at the start.

    Raises:
        InputError: a direction along which h is less convex than `strong`.
    """
    target, end = accuracy * strong, problem.products + most
    point, forcing = problem.at(x, theta), 0.1
    while math.isfinite(point.size) and point.size > target and problem.products < end:
        step, left = conjugate_gradients(
            point.product,
            -point.gradient,
            None,
            max(forcing * point.size, 0.5 * target),
            least=strong,
            most=end - problem.products,
            confirm=False,
        )
        length, reached = 1.0, None
        while reached is None and length > SHORTEST:
            tried = problem.at(point.x + length * step, theta)
            if tried.size <= (1 - 1e-4 * length) * point.size:
                reached = tried
            length /= 2
        if reached is None:
            break
        # Choice 1 compares what the linear model foretold with what came.
        forcing = min(0.5, max(abs(reached.size - left) / point.size, 1e-12))
        point = reached
    return point
