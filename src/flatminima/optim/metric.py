"""The fixed metric that steps are measured in, as a change of coordinates."""

from __future__ import annotations

import torch
from torch import Tensor

from flatminima.errors import InputError


class Metric:
    r"""An SPD matrix $B = L L^\top$ as coordinates in which its norms are Euclidean ones.

    A step is $h = L^{-\top} y$ with $\|h\|_B = \sqrt{h^\top B h} = \|y\|_2$, and a gradient g is
    $L^{-1} g$ with $\|g\|_* = \sqrt{g^\top B^{-1} g} = \|L^{-1} g\|_2$. A curvature H becomes
    $L^{-1} H L^{-\top}$, and $H + \lambda B$ becomes $L^{-1} H L^{-\top} + \lambda I$.

    Cost: nothing without B, O(n) a vector for a diagonal one, O(n^2) for a matrix, which is
    factored once, O(n^3).

    Args:
        given: B: None for the identity, shape (n,) for a diagonal, or (n, n).

    Raises:
        InputError: of another shape, not finite, not symmetric or not positive definite.
    """

    def __init__(self, given: Tensor | None) -> None:
        self._factor: Tensor | None = None
        if given is None:
            return
        if not given.is_floating_point() or given.ndim not in (1, 2) or not given.isfinite().all():
            raise InputError(
                f"metric is {given.dtype} of shape {tuple(given.shape)}: give finite "
                "floating-point numbers, shape (n,) for a diagonal or (n, n)"
            )
        given = given.detach()
        if given.ndim == 1:
            if not (given > 0).all():
                raise InputError("metric has an entry that is not above 0: give positive ones")
            self._factor = given.sqrt()
            return
        if given.shape[0] != given.shape[1] or not torch.allclose(given, given.T):
            raise InputError("metric is not a symmetric matrix: give (B + B.T) / 2")
        factor, failed = torch.linalg.cholesky_ex(given)
        if failed:
            raise InputError("metric is not positive definite: add a little to its diagonal")
        self._factor = factor

    @property
    def size(self) -> int | None:
        """n; None for the identity, which fits any."""
        return None if self._factor is None else len(self._factor)

    @property
    def diagonal(self) -> bool:
        """Whether coordinates are only scaled."""
        return self._factor is None or self._factor.ndim == 1

    def dual(self, vectors: Tensor) -> Tensor:
        """L^-1 times the columns of `vectors`, shape (n, m): of gradients."""
        if self._factor is None:
            return vectors
        factor = self._factor.to(vectors)
        if factor.ndim == 1:
            return vectors / factor[:, None]
        found: Tensor = torch.linalg.solve_triangular(factor, vectors, upper=False)
        return found

    def primal(self, vectors: Tensor) -> Tensor:
        """L^-T times the columns of `vectors`, shape (n, m): steps, from coordinates."""
        if self._factor is None:
            return vectors
        factor = self._factor.to(vectors)
        if factor.ndim == 1:
            return vectors / factor[:, None]
        found: Tensor = torch.linalg.solve_triangular(factor.T, vectors, upper=True)
        return found
