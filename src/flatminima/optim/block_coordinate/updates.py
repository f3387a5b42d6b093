"""How a block moves, once it is chosen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flatminima.optim.block_coordinate import spectra
from flatminima.optim.block_coordinate.forest import Forest, Graph, tree_solve
from flatminima.optim.block_coordinate.line_search import armijo, enough
from flatminima.optim.block_coordinate.matrices import Array, Block
from flatminima.optim.block_coordinate.separable import Separable
from flatminima.optim.block_coordinate.smooth import Smooth

SMOOTH_ONLY = ("hb", "newton", "tree")
UPDATES = ("lb", "hb", "newton", "la", "tmp", "tree")


@dataclass
class Here:
    """Where the solver is: x, its margins, and what is known on the block."""

    smooth: Smooth
    added: Separable
    x: Array
    z: Array

    def total(self, block: Block, change: Array) -> tuple[float, Array]:
        """F after a change of the block, and the margins there."""
        x = self.x.copy()
        x[block] += change
        z = self.z + self.smooth.shift(block, change)
        return self.smooth.value(x, z) + self.added.value(x), z

    @property
    def eps(self) -> float:
        """Of the numbers that F is computed in."""
        return float(np.finfo(self.smooth.dtype).eps)

    def value(self) -> float:
        """F."""
        return self.smooth.value(self.x, self.z) + self.added.value(self.x)


def gradient_step(here: Here, block: Block, g: Array, constant: float) -> Array:
    """-g_b / L_b, or with psi its proximal step."""
    curvature = np.full_like(g, constant)
    return here.added.step(here.x[block], g, curvature, block)


def matrix_step(root: Array, g: Array) -> Array:
    """-H_b^+ g_b, given R with R^T R = H_b^+."""
    return np.asarray(-(root.T @ (root @ g)))


def newton_step(here: Here, block: Block, g: Array) -> Array:
    """alpha times -Hessian^+ g_b, alpha from 1 down by Armijo's rule."""
    scale = float(here.smooth.lipschitz[block].max())
    d = -spectra.solve(here.smooth.hessian(here.x, here.z, block), g, scale=scale)
    start, slope = here.value(), float(g @ d)
    if slope >= 0:
        return np.zeros_like(d)

    def along(alpha: float) -> float:
        return here.total(block, alpha * d)[0]

    return armijo(along, start, slope, here.eps) * d


def searching_step(here: Here, block: Block, g: Array, estimates: Array) -> Array:
    """A gradient step with the largest estimate of the block, doubled until its model holds.

    The estimates of the block are replaced by what was found.
    """
    start, constant = here.value(), float(estimates[block].max())
    for _ in range(200):
        d = gradient_step(here, block, g, constant)
        psi = here.added.l1[block] @ (np.abs(here.x[block] + d) - np.abs(here.x[block]))
        model = float(g @ d + 0.5 * constant * d @ d + psi)
        if enough(here.total(block, d)[0], start, model, here.eps):
            break
        constant *= 2
    estimates[block] = constant
    return d


def two_metric_step(here: Here, block: Block, g: Array) -> Array:
    """Newton where x is free to move, scaled gradients where a bound or a kink holds it.

    Within the side of the kink that x may move to, psi is linear and its kink a bound. Coordinates
    within eps of a bound that the gradient pushes to are held back from Newton's step, which is not
    one of descent for them; the others get Newton's step, and all are brought back within the
    bounds. Halved until F falls enough; a proximal step if it never does.
    """
    x = here.x[block]
    slopes, low, high = here.added.orthant(x, g, block)
    whole = g + slopes
    constants = here.smooth.lipschitz[block]
    reach = np.abs(np.clip(x - whole / constants, low, high) - x).max()
    eps = min(1e-4, float(reach))
    active = ((x - low <= eps) & (whole > 0)) | ((high - x <= eps) & (whole < 0)) | (low == high)
    d = np.zeros_like(g)
    working = np.flatnonzero(~active)
    if working.size:
        hessian = here.smooth.hessian(here.x, here.z, block)[np.ix_(working, working)]
        floor = float(np.sqrt(np.finfo(g.dtype).eps))
        d[working] = -spectra.solve(hessian, whole[working], floor, float(constants.max()))
    if active.any():
        d[active] = -whole[active] / constants[active].sum()
    start, rate = here.value(), 1.0
    for _ in range(40):
        change = np.clip(x + rate * d, low, high) - x
        promised = rate * float(whole[working] @ d[working]) + float(whole[active] @ change[active])
        if enough(here.total(block, change)[0], start, 1e-4 * promised, here.eps):
            return np.asarray(change)
        rate /= 2
    return gradient_step(here, block, g, spectra.largest(here.smooth.bound(block)))


def tree_step(here: Here, block: Block, g: Array, graph: Graph, forest: Forest | None) -> Array:
    """-M_bb^{-1} g_b by message passing; O(|b|)."""
    diagonal = here.smooth.coordinate_bounds()[block]
    return -tree_solve(forest or graph.forest(block), diagonal, g)
