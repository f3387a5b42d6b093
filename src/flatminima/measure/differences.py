"""Hessian products from differences of gradients, where there is no second derivative."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from flatminima.errors import InputError

TRIES = 5
"""Steps tried: each is a quarter of the one before."""

LARGEST_ERROR = 0.1
"""A change between neighbouring steps above which no step is trusted."""


class Differences:
    r"""Central differences $\frac{\|v\|}{2h}[\nabla f(W + h v/\|v\|) - \nabla f(W - h v/\|v\|)]$.

    The weights move by h, whatever the length of v: a probe of random signs has length sqrt(n), a
    Lanczos vector length 1, and both want the same displacement. The truncation error falls with
    h^2 and the rounding error grows with eps/h, so the start is $h = 4\,eps^{1/3} \|W\|$. A
    self-check compares the products at h, h/4, h/16, ... and takes the step whose product changes
    least to the next. It is done on one vector, so for a vector of another kind the error can be
    another.

    Args:
        params: The parameters that move.
    """

    def __init__(self, params: list[Tensor]) -> None:
        self._params = params
        self.step: float | None = None
        self.error: float | None = None

    @property
    def steps(self) -> str:
        """The step and its error, in words."""
        if self.step is None:
            return ""
        return f" (step {self.step:.1e}, self-check {self.error:.1e})"

    def settle(self, product: Callable[[], Tensor]) -> None:
        """Choose the step, and measure its error, on one vector.

        Args:
            product: The product of that vector with the step in force.

        Raises:
            InputError: no two neighbouring steps agree within `LARGEST_ERROR`.
        """
        size = torch.linalg.vector_norm(torch.cat([p.detach().flatten() for p in self._params]))
        eps = torch.finfo(size.dtype).eps
        first = 4 * eps ** (1 / 3) * (size.item() or 1.0)
        steps = [first / 4**i for i in range(TRIES)]
        products = []
        for step in steps:
            self.step = step
            products.append(product())
        self.step = None
        errors = [_change(a, b) for a, b in itertools.pairwise(products)]
        best = min(range(len(errors)), key=errors.__getitem__)
        # Not `>`: a NaN is no agreement either.
        if not errors[best] <= LARGEST_ERROR:
            raise InputError(
                f"central differences of gradients change by {errors[best]:.1%} between steps: "
                "give dtype=torch.float64"
            )
        self.step, self.error = steps[best], errors[best]

    def add(
        self,
        loss: Callable[[], Tensor],
        directions: list[Tensor],
        blocks: Mapping[str, slice],
        count: int,
        products: Tensor,
    ) -> Tensor:
        """Add `count` times the products of one batch; returns its loss at W.

        The weights are back bit for bit on return, and after an exception.

        Args:
            loss: The batch's loss at the weights as they are.
            directions: The vectors, one tensor of shape (m, *parameter.shape) per parameter.
            blocks: Where each parameter lies in a row of `products`.
            count: The factor.
            products: Shape (m, n).
        """
        params = self._params
        home = [p.detach().clone() for p in params]
        try:
            at_home = loss().detach()
            for row in range(len(products)):
                v = [part[row] for part in directions]
                length = torch.linalg.vector_norm(torch.cat([part.flatten() for part in v])).item()
                if not length:
                    continue
                # Without a step yet, only zeros are multiplied.
                assert self.step is not None
                for sign in (1, -1):
                    with torch.no_grad():
                        for p, h, part in zip(params, home, v, strict=True):
                            p.copy_(h).add_(part, alpha=sign * self.step / length)
                    gradient = torch.autograd.grad(loss(), params, allow_unused=True)
                    factor = sign * count * length / (2 * self.step)
                    for g, where in zip(gradient, blocks.values(), strict=True):
                        if g is not None:
                            products[row, where].add_(g.reshape(-1), alpha=factor)
            return at_home
        finally:
            with torch.no_grad():
                torch._foreach_copy_(params, home)


def _change(a: Tensor, b: Tensor) -> float:
    """How far a is from b, relative to b; 0 where both are 0."""
    apart, size = (float(torch.linalg.vector_norm(x)) for x in (a - b, b))
    return apart / size if size else (math.inf if apart else 0.0)
