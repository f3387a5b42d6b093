"""A bilevel problem from start to result in one call."""

from __future__ import annotations

from torch import Tensor

from flatminima.errors import InputError
from flatminima.progress import Progress
from flatminima.tuning.maid.descent import MAID
from flatminima.tuning.maid.problem import Level
from flatminima.tuning.maid.regularity import RegularityOf
from flatminima.tuning.maid.result import BilevelResult
from flatminima.tuning.maid.settings import Settings


def minimize_bilevel(
    upper: Level,
    lower: Level,
    x: Tensor,
    theta: Tensor,
    *,
    regularity: RegularityOf | None = None,
    steps: int = 100,
    products: int = 20_000,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> BilevelResult:
    r"""Minimize $f(\theta) = g(\hat x(\theta), \theta)$, where $\hat x$ minimizes $h(x, \theta)$.

    By MAID: see `MAID`, whose steps these are. With `regularity` from theory each step's decrease
    of f is certain, up to rounding; without, the constants are measured and the result says that it
    is not certified.

    Cost: the products counted in the result; each is about two evaluations of h. Memory: the graph
    of one gradient of h, and a few vectors of the size of x.

    Source: Salehi, Mukherjee, Roberts, Ehrhardt, An adaptively inexact first-order method for
    bilevel optimization with application to hyperparameter learning, 2023, arXiv 2308.10098.

    Args:
        upper: g(x, theta), a scalar: the validation loss, say.
        lower: h(x, theta), a scalar, strongly convex in x: the training loss with its penalties.
        x: Where the first lower solve starts, any shape; float64 (float32 has few digits for this).
        theta: The knobs to start from, any shape, of the same type.
        regularity: (x, theta) -> `Regularity`; None measures the constants, see `Estimated`.
        steps: The most steps.
        products: The products after which no further step begins.
        settings: How it goes about it; None takes the defaults.
        progress: Called with ("MAID", steps done, steps).

    Raises:
        InputError: knobs that are not differentiable, a lower problem that is not strongly convex
            or less than said, values that are not finite, settings out of range.
    """
    if steps < 1 or products < 1:
        raise InputError(f"steps is {steps} and products {products}: give at least 1 of each")
    maid = MAID(upper, lower, x, theta, regularity=regularity, settings=settings)
    while maid.stopped is None and len(maid.history) < steps and maid.products < products:
        maid.step()
        if progress is not None:
            progress("MAID", len(maid.history), steps)
    return maid.result("steps" if len(maid.history) >= steps else "products")
