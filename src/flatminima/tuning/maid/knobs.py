"""Checks before the first step: that knobs can be moved, and that the lower problem is convex."""

from __future__ import annotations

import torch
from torch import Tensor

from flatminima.errors import InputError
from flatminima.tuning.maid.conjugate import check_curvature
from flatminima.tuning.maid.estimate import smallest_eigenvalue
from flatminima.tuning.maid.problem import Bilevel, LowerPoint, norm

MOST_CHECKED = 64
"""Knobs without a derivative that are looked at one by one."""


def check_start(problem: Bilevel, x: Tensor, theta: Tensor, strong: float) -> None:
    """Refuse a start from which nothing could be certified.

    Args:
        problem: The problem.
        x: Where the lower solve starts.
        theta: The knobs.
        strong: The modulus of strong convexity.

    Raises:
        InputError: a lower problem that is not finite, or less convex than said; a knob without a
            derivative.
    """
    first = problem.at(x, theta)
    if not first.size < float("inf"):
        raise InputError(
            "the lower problem or its gradient is not finite at the start: start x and theta where "
            "lower is defined"
        )
    check_modulus(first, strong)
    check_reach(problem, x, theta)


def check_modulus(point: LowerPoint, strong: float, steps: int = 30) -> None:
    """Refuse a modulus of strong convexity above a Ritz value of the lower problem's Hessian.

    Some Lanczos steps find most wrong moduli before anything is spent. What they miss is found by
    the solves, if their directions show it; no test of this kind can prove a modulus right.

    Args:
        point: Where to look.
        strong: The modulus.
        steps: Products to spend.

    Raises:
        InputError: a direction of less curvature than `strong`.
    """
    stiff = norm(point.product(point.gradient)) / max(point.size, 1e-300)
    rounding = torch.finfo(point.x.dtype).eps * stiff
    check_curvature(smallest_eigenvalue(point, steps), strong, rounding)


def check_reach(problem: Bilevel, x: Tensor, theta: Tensor) -> None:
    """Refuse knobs that change the lower problem without having a derivative.

    A knob with a derivative of exactly 0 is moved by 1; if the lower gradient then changes, the
    knob acts by rounding, comparing or counting, and no descent can see it.

    Args:
        problem: The problem.
        x: Where to look; it is done beside it.
        theta: The knobs.

    Raises:
        InputError: such a knob; or no knob that reaches any level.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(2, *x.shape, generator=generator, dtype=x.dtype).to(x.device)
    # Beside x, since at x = 0, where many start, no ridge can be felt.
    at = x + 0.1 * (1 + norm(x)) / norm(drawn[0]) * drawn[0]
    point = problem.at(at, theta)
    if not point.size < float("inf"):
        return
    reach = point.cross(drawn[1]).flatten().abs()
    direct = problem.upper_at(at, theta).direct
    if direct is not None:
        reach = reach + direct.flatten().abs()
    if (reach > 0).all():
        return
    for i in (reach == 0).nonzero().flatten().tolist()[:MOST_CHECKED]:
        for by in (1.0, -1.0):
            changed = theta.clone().flatten()
            changed[i] += by
            moved = problem.at(at, changed.view_as(theta))
            change = norm(moved.gradient - point.gradient)
            if 0 < change < float("inf"):
                raise InputError(
                    f"theta[{i}] is not differentiable: moving it by {by:+g} changes the lower "
                    f"problem's gradient by {change:.3g}, yet its derivative is exactly 0, as of "
                    "rounding, comparing, .item() or .detach(); MAID moves knobs along a gradient: "
                    "write lower in torch operations that are smooth in this knob, or fix it and "
                    "compare its values"
                )
    if not (reach > 0).any():
        raise InputError(
            "no knob reaches the lower problem's gradient or the upper level: f does not depend on "
            "theta; use theta in lower(x, theta)"
        )
