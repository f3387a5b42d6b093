"""Conjugate gradients that notice when the matrix is not what was promised."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flatminima.errors import InputError
from flatminima.tuning.maid.problem import norm

NOT_CONVEX = """the lower problem is not strongly convex: along a direction its Hessian has the \
curvature {curvature:.3g} ({kind}), and its modulus `strong` is said to be {least:.3g}; add a \
ridge such as 0.5 * c * x.square().sum() to lower"""

TOO_FLAT = """the lower problem is less convex than it is said to be: along a direction its \
Hessian has the curvature {curvature:.3g}, below its modulus `strong` = {least:.3g}, so that no \
bound would hold; give a modulus that is at most the smallest eigenvalue for every x"""


def conjugate_gradients(
    product: Callable[[Tensor], Tensor],
    b: Tensor,
    start: Tensor | None,
    tolerance: float,
    *,
    least: float = 0.0,
    most: int = 2000,
    confirm: bool = True,
) -> tuple[Tensor, float]:
    r"""Solve $A q = b$ until $\lVert A q - b \rVert$ is at most the tolerance.

    Each direction p shows the curvature $p^\top A p / p^\top p$, which is no less than the smallest
    eigenvalue; one below `least` proves that `least` was no lower bound.

    Source: Hestenes and Stiefel, Methods of conjugate gradients for solving linear systems, 1952.

    Args:
        product: v -> A v, A symmetric.
        b: The right-hand side, of any shape.
        start: Where to start; None is 0.
        tolerance: What the residual may be.
        least: What the eigenvalues are promised to be at least.
        most: The most products.
        confirm: Whether the residual is computed anew at the end, and not only updated.

    Returns:
        q, and the norm of its residual, which is above the tolerance where `most` or rounding
        stopped it.

    Raises:
        InputError: a direction of less curvature than promised, or of none.
    """
    q = torch.zeros_like(b) if start is None else start.clone()
    r = b - product(q) if q.any() else b.clone()
    left, used = norm(r), 0
    while left > tolerance and used < most:
        before = left
        q, left, more = _sweep(product, q, r, tolerance, least, most - used)
        used += more
        if not confirm:
            break
        r = b - product(q)
        left = norm(r)
        # Rounding parts the updated residual from the true one, and at last nothing is gained.
        if left > before / 2:
            break
    return q, left


def _sweep(
    product: Callable[[Tensor], Tensor],
    q: Tensor,
    r: Tensor,
    tolerance: float,
    least: float,
    most: int,
) -> tuple[Tensor, float, int]:
    """One run of the recurrence from the residual r of q: q, the updated residual, its products."""
    p, square, used = r.clone(), float((r * r).sum()), 0
    while square**0.5 > tolerance and used < most:
        along = product(p)
        used += 1
        length, bend = float((p * p).sum()), float((p * along).sum())
        check_curvature(bend / length, least, torch.finfo(r.dtype).eps * norm(along) / length**0.5)
        q = q + (square / bend) * p
        r = r - (square / bend) * along
        previous, square = square, float((r * r).sum())
        p = r + (square / previous) * p
    return q, square**0.5, used


def check_curvature(curvature: float, least: float, rounding: float) -> None:
    """Refuse a curvature that belies what was promised.

    Args:
        curvature: p'Ap / p'p of some direction.
        least: What it is promised to be at least.
        rounding: The error of one product, relative to the direction's length.

    Raises:
        InputError: the curvature is below `least`, or not above 0.
    """
    slack = 1e-6 * least + 100 * rounding
    if curvature >= least - slack and curvature > 0:
        return
    flat = curvature <= slack
    kind = "negative" if curvature < -slack else "singular"
    text = NOT_CONVEX if flat else TOO_FLAT
    raise InputError(text.format(curvature=curvature, least=least, kind=kind))
