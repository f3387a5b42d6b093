"""Constants of a problem by measuring it, where theory gives none."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flatminima.errors import InputError
from flatminima.measure import top_eigenvalues
from flatminima.tuning.maid.problem import Bilevel, Level, LowerPoint, norm
from flatminima.tuning.maid.regularity import Regularity

SAFETY = 2.0
"""The factor on each estimate, and under that of the modulus."""

_KEPT = ("upper", "cross", "hessian", "direct")


class Estimated:
    r"""A problem's constants, measured at the points visited. Nothing is certified by them.

    $\lVert J \rVert$ and $L_g$ by power iteration; $L_J$ and $L_H$ by power iteration on the
    differences of J and H between x and x + r u, u random, divided by r; running maxima of the
    Lipschitz constants. The modulus, unless given, from Lanczos' smallest Ritz value. All of these
    err to the side that promises too much, so each is taken with a factor of 2.

    Cost: some 40 products at each theta; 30 more without a modulus.

    Args:
        upper: g(x, theta).
        lower: h(x, theta).
        strong: theta -> the modulus of strong convexity, where it is known.
        rounds: Power iterations for each norm.
        seed: Of the random directions.
    """

    def __init__(
        self,
        upper: Level,
        lower: Level,
        *,
        strong: Callable[[Tensor], float] | None = None,
        rounds: int = 3,
        seed: int = 0,
    ) -> None:
        self._problem, self._above = Bilevel(upper, lower), Bilevel(upper, upper)
        self._strong = strong
        self._rounds, self._seed, self._calls = rounds, seed, 0
        self._largest = dict.fromkeys(_KEPT, 0.0)
        self._last: tuple[Tensor, Regularity] | None = None

    @property
    def products(self) -> int:
        """The products of all estimates so far."""
        return self._problem.products + self._above.products

    def __call__(self, x: Tensor, theta: Tensor) -> Regularity:
        """The estimates at theta, made anew where it differs from the last."""
        if self._last is not None and torch.equal(self._last[0], theta):
            return self._last[1]
        generator = torch.Generator().manual_seed(self._seed + self._calls)
        self._calls += 1

        def random(like: Tensor) -> Tensor:
            drawn = torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)
            return drawn / norm(drawn)

        radius = 1e-3 * (1 + norm(x))
        here, above = self._problem.at(x, theta), self._above.at(x, theta)
        there = self._problem.at(x + radius * random(x), theta)
        found = {
            "upper": self._power(above.product, random(x)),
            "direct": self._power(lambda v: above.cross(above.along(v)), random(theta)) ** 0.5,
            "cross": self._power(lambda v: _cross_square(v, there, here), random(theta)) ** 0.5
            / radius,
            "hessian": self._power(lambda v: there.product(v) - here.product(v), random(x))
            / radius,
        }
        for name, value in found.items():
            self._largest[name] = max(self._largest[name], SAFETY * value)
        coupling = self._power(lambda v: here.cross(here.along(v)), random(theta)) ** 0.5
        made = Regularity(
            strong=self._modulus(here),
            upper=self._largest["upper"],
            cross=self._largest["cross"],
            hessian=self._largest["hessian"],
            coupling=SAFETY * coupling,
            direct=self._largest["direct"],
        )
        self._last = theta.clone(), made
        return made

    def at_trial(self, x: Tensor, theta: Tensor) -> Regularity:
        """The last constants with the modulus at theta, for a step that is only tried.

        Where a step is refused the constants there must not weigh on those that are kept.
        """
        last = self._last[1] if self._last is not None else self(x, theta)
        return replace(last, strong=self._modulus(self._problem.at(x, theta)))

    def _modulus(self, point: LowerPoint) -> float:
        if self._strong is not None:
            return self._strong(point.theta)
        return smallest_eigenvalue(point) / SAFETY

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs: the running maxima and where the random numbers are."""
        return {
            "largest": dict(self._largest),
            "calls": self._calls,
            "products": self.products,
            "last": None if self._last is None else [self._last[0], vars(self._last[1]).copy()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self._largest, self._calls = dict(state["largest"]), state["calls"]
        self._problem.products, self._above.products = state["products"], 0
        last = state["last"]
        self._last = None if last is None else (last[0].clone(), Regularity(**last[1]))

    def _power(self, product: Callable[[Tensor], Tensor], v: Tensor) -> float:
        size = 0.0
        for _ in range(self._rounds):
            v = product(v)
            size = norm(v)
            if not size > 0:
                return 0.0
            v = v / size
        if not math.isfinite(size):
            raise InputError("an estimate is not finite: check the problem at the starting point")
        return size


def smallest_eigenvalue(point: LowerPoint, steps: int = 30) -> float:
    """The smallest Ritz value of H after some Lanczos steps: at least the smallest eigenvalue."""
    found = top_eigenvalues(_Curvature(point), which="smallest", max_steps=steps)
    return found.values[0]


class _Curvature:
    """H at a point, as an operator on flat vectors."""

    description = "Hessian of the lower problem"

    def __init__(self, point: LowerPoint) -> None:
        n = point.x.numel()
        self._point, self.shape = point, (n, n)
        self.dtype, self.device = point.x.dtype, point.x.device
        self.blocks = {"x": slice(0, n)}
        self.gradients, self.hvps = 0, 0

    def matmat(self, vectors: Tensor) -> Tensor:
        """The products with the columns of `vectors`."""
        self.hvps += vectors.shape[1]
        shape = self._point.x.shape
        columns = [self._point.product(v.reshape(shape)).flatten() for v in vectors.T]
        return torch.stack(columns, 1)


def _cross_square(v: Tensor, there: LowerPoint, here: LowerPoint) -> Tensor:
    moved = there.along(v) - here.along(v)
    return there.cross(moved) - here.cross(moved)
