r"""Solutions of $(M + \lambda I)\, y = -g$ for one M and g and one $\lambda$ after another.

M is a curvature in the coordinates of a `Metric`. What is expensive, the products with M, is done
once and serves all $\lambda$.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from flatminima.errors import InputError
from flatminima.optim.metric import Metric

if TYPE_CHECKING:
    # Only for its type: `measure` imports `perturb`, which imports this room.
    from flatminima.measure.operators import Operator

PROBES = 20
"""Products for an estimate of a diagonal."""

NOT_FINITE = "the curvature has a product that is not finite: mend the data or the model"


class Shifted(Protocol):
    """Answers for one M and g."""

    def solve(self, shift: float) -> Tensor | None:
        """-(M + shift I)^-1 g, shape (n,); None where M + shift I is not positive definite."""
        ...


class Spectral:
    r"""$M = Q\,\mathrm{diag}(\theta)\,Q^\top$ with orthonormal columns of Q, 0 outside of them.

    $y = -Q (\theta + \lambda)^{-1} Q^\top g - (g - Q Q^\top g) / \lambda$, O(n r) for each
    $\lambda$.

    Args:
        values: The theta, shape (r,).
        basis: Q, shape (n, r); None for the axes, r = n.
        gradient: g, shape (n,).

    Raises:
        InputError: a value is not finite.
    """

    def __init__(self, values: Tensor, basis: Tensor | None, gradient: Tensor) -> None:
        if not values.isfinite().all():
            raise InputError(NOT_FINITE)
        self._values, self._basis = values, basis
        self._inner = gradient if basis is None else basis.T @ gradient
        self._rest: Tensor | None = None
        if basis is not None and basis.shape[1] < basis.shape[0]:
            self._rest = gradient - basis @ self._inner

    def solve(self, shift: float) -> Tensor | None:
        """-(M + shift I)^-1 g, shape (n,); None where M + shift I is not positive definite."""
        shifted = self._values + shift
        if not (shifted > 0).all():
            return None
        found = self._inner / shifted
        if self._basis is not None:
            found = self._basis @ found
        if self._rest is not None:
            if shift <= 0:
                return None
            found = found + self._rest / shift
        return -found


class Krylov:
    r"""The solution in the Krylov space of M and g, which is the same for all $\lambda$.

    Lanczos with full reorthogonalization makes $Q_m^\top M Q_m = T_m$, tridiagonal, and
    $y = -\|g\|\, Q_m (T_m + \lambda I)^{-1} e_1$. It is the iterate of conjugate gradients, whose
    residual is $\|g\| \prod_i \beta_i / d_i$, where $d_i$ are the pivots of $T_m + \lambda I$ and
    $\beta_i$ the entries beside its diagonal; so the space grows until that is at most
    `rtol` $\|g\|$, and a pivot that is not positive tells a direction along which
    $M + \lambda I$ is not. A larger $\lambda$ mostly needs no further product. If the space
    must not grow any more, $y$ is the exact solution for $Q_m T_m Q_m^\top$ in the place of M,
    a curvature of rank m.

    Cost: one product and O(n m) for each m; m + 1 vectors of memory.

    Source: Lanczos, 1952; Golub and Van Loan, Matrix Computations, 2013, section 11.3.

    Args:
        multiply: The products of M, shapes (n, m) -> (n, m).
        gradient: g, shape (n,), not 0.
        most: The most products.
        rtol: The relative residual to stop at.
    """

    def __init__(
        self, multiply: Callable[[Tensor], Tensor], gradient: Tensor, *, most: int, rtol: float
    ) -> None:
        self._multiply, self._rtol = multiply, rtol
        self._norm = torch.linalg.vector_norm(gradient).item()
        self._most = min(most, len(gradient))
        self._rows = gradient.new_empty(self._most, len(gradient))
        self._rows[0] = gradient / self._norm
        self._diagonal: list[float] = []
        self._beside: list[float] = []

    def solve(self, shift: float) -> Tensor | None:
        """-(M + shift I)^-1 g, shape (n,); None where M + shift I is not positive definite.

        Raises:
            InputError: a product is not finite.
        """
        pivots: list[float] = []
        residual = 1.0
        while residual > self._rtol and len(pivots) < self._most:
            j = len(pivots)
            if j == len(self._diagonal):
                self._grow()
            pivot = self._diagonal[j] + shift
            if pivots:
                pivot -= self._beside[j - 1] ** 2 / pivots[-1]
            if not pivot > 0:
                return None
            pivots.append(pivot)
            residual *= self._beside[j] / pivot
        return self._rows[: len(pivots)].T @ self._coordinates(pivots)

    def _coordinates(self, pivots: list[float]) -> Tensor:
        """The solution of the tridiagonal system, by its factors L D L'."""
        found = [-self._norm]
        for beside, pivot in zip(self._beside, pivots[:-1], strict=False):
            found.append(-beside / pivot * found[-1])
        found[-1] /= pivots[-1]
        for i in range(len(pivots) - 2, -1, -1):
            found[i] = (found[i] - self._beside[i] * found[i + 1]) / pivots[i]
        return torch.tensor(found, dtype=self._rows.dtype, device=self._rows.device)

    def _grow(self) -> None:
        """One product more."""
        j = len(self._diagonal)
        product = self._multiply(self._rows[j][:, None])[:, 0]
        known = self._rows[: j + 1]
        # Twice is enough (Kahan and Parlett).
        inner = known @ product
        rest = product - inner @ known
        rest = rest - (known @ rest) @ known
        self._diagonal.append(inner[-1].item())
        beside = torch.linalg.vector_norm(rest).item()
        if not math.isfinite(self._diagonal[-1] + beside):
            raise InputError(NOT_FINITE)
        scale = max(map(abs, [*self._diagonal, *self._beside]))
        if beside <= 10 * torch.finfo(rest.dtype).eps * scale:
            # The space is whole: what is left is rounding.
            beside = 0.0
        elif j + 1 < self._most:
            self._rows[j + 1] = rest / beside
        self._beside.append(beside)


def shifted(
    form: str,
    operator: Operator,
    metric: Metric,
    gradient: Tensor,
    *,
    products: int,
    rtol: float,
    rank: int,
    seed: int,
) -> Shifted:
    """The curvature of one point, ready for one shift after another.

    Args:
        form: "full": whole, by its eigenvectors where n <= `products`, else by `Krylov`;
            "diagonal": its diagonal, an estimate from 20 products by XDiag, negative entries as 0;
            "low-rank": its `rank` largest eigenvalues, negative ones as 0.
        operator: H.
        metric: B.
        gradient: g in the metric's coordinates, shape (n,).
        products: The most products of "full".
        rtol: Of `Krylov`.
        rank: Of "low-rank".
        seed: Of the estimates of "diagonal" and "low-rank".

    Raises:
        InputError: a product is not finite.
    """
    from flatminima.measure import hessian_diagonal, top_eigenvalues

    def multiply(vectors: Tensor) -> Tensor:
        found = operator.matmat(metric.primal(vectors).to(operator.dtype))
        return metric.dual(found.to(vectors.dtype))

    n = len(gradient)
    if form == "diagonal":
        estimate = hessian_diagonal(operator, probes=PROBES, seed=seed).values.to(gradient)
        scaled = metric.dual(metric.dual(estimate[:, None]))[:, 0]
        return Spectral(scaled.clamp(min=0), None, gradient)
    if form == "low-rank":
        found = top_eigenvalues(operator, min(rank, n), vectors=True, seed=seed, tol=1e-2)
        assert found.vectors is not None
        values = torch.tensor(found.values, dtype=gradient.dtype, device=gradient.device)
        if not values.isfinite().all():
            raise InputError(NOT_FINITE)
        basis, triangle = torch.linalg.qr(metric.dual(found.vectors.to(gradient)))
        values, turn = torch.linalg.eigh((triangle * values.clamp(min=0)) @ triangle.T)
        return Spectral(values.clamp(min=0), basis @ turn, gradient)
    if n <= products:
        matrix = multiply(torch.eye(n, dtype=gradient.dtype, device=gradient.device))
        if not matrix.isfinite().all():
            raise InputError(NOT_FINITE)
        values, basis = torch.linalg.eigh((matrix + matrix.T) / 2)
        return Spectral(values, basis, gradient)
    return Krylov(multiply, gradient, most=products, rtol=rtol)
