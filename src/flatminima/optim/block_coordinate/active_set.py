"""How soon the variables that end on a bound or a kink are known."""

from __future__ import annotations

import math

import numpy as np

from flatminima.errors import InputError
from flatminima.optim.block_coordinate.matrices import Array
from flatminima.optim.block_coordinate.separable import Separable


def nondegeneracy_margin(added: Separable, x: Array, g: Array) -> float:
    r"""$\delta$, how deep $-\nabla f$ lies within the subdifferential of psi where x is pinned.

    The smallest distance of $-g_i$ to the boundary of $\partial \psi_i(x_i)$, over the i on a bound
    or a kink; infinite if there is none, 0 or below where the solution is degenerate or x is none.
    """
    pinned = added.pinned(x)
    if not pinned.any():
        return math.inf
    low, high = added.slopes(x)
    return float(np.minimum(high + g, -g - low)[pinned].min())


def identification_steps(lipschitz: float, convexity: float, margin: float, excess: float) -> float:
    r"""Full proximal steps after which the pinned variables are surely known and stay so.

    $k \ge \frac{L}{\mu} \log \frac{8 L^2 (F_0 - F^*)}{\mu \delta^2}$: as soon as
    $\lVert x^k - x^* \rVert \le \delta / (2 L)$ a step of length 1/L puts each of them exactly in
    its place, and a linear rate of 1 - mu/L brings x there. A worst case: usually far fewer do.

    Args:
        lipschitz: L.
        convexity: mu, the strong convexity of f, above 0.
        margin: delta, above 0.
        excess: F_0 - F*.

    Raises:
        InputError: a constant that is not above 0.
    """
    named = {"lipschitz": lipschitz, "convexity": convexity, "margin": margin}
    for name, value in named.items():
        if not value > 0:
            raise InputError(f"{name} must be above 0, not {value!r}")
    inside = 8 * lipschitz**2 * excess / (convexity * margin**2)
    return max(0.0, lipschitz / convexity * math.log(inside)) if inside > 0 else 0.0
