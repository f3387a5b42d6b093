r"""What random products say of a matrix once its large part is known exactly.

With orthonormal columns Q near the range of A and P = QQ', the trace splits into Tr(PAP), which is
known from A Q, and Tr((I-P)A(I-P)), whose probes vary little. For the trace of a diagonal block,
whose coordinates E picks, P stands on both sides likewise, so that the blocks add up to the whole:

$\mathrm{Tr}(EA) = \mathrm{Tr}(E[PA + AP - PAP]) + \mathrm{Tr}(E(I-P)A(I-P))$
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

Multiply: TypeAlias = Callable[[Tensor], Tensor]
"""The products of an operator with the columns of a matrix, shapes (n, m) -> (n, m)."""


class Deflation:
    """A fixed Q, and probes of what it leaves of A.

    Args:
        multiply: The products of A.
        basis: Q, shape (n, m).
        products: A Q.
    """

    def __init__(self, multiply: Multiply, basis: Tensor, products: Tensor) -> None:
        self._multiply = multiply
        self.basis, self.products = basis, products
        inner = _double(self.basis.T @ self.products)
        self._inner = (inner + inner.T) / 2

    def samples(self, tests: Tensor, blocks: Mapping[str, slice]) -> Tensor:
        """An estimate of each block's trace from each test vector, shape (blocks, m), float64.

        Args:
            tests: Random vectors of covariance I, shape (n, m).
            blocks: Where the blocks are.
        """
        rest = self._outside(tests)
        forms = block_forms(rest, self._outside(self._multiply(rest)), blocks)
        return forms + torch.stack([self._known(where) for where in blocks.values()])[:, None]

    def _outside(self, vectors: Tensor) -> Tensor:
        return vectors - self.basis @ (self.basis.T @ vectors)

    def _known(self, where: slice) -> Tensor:
        basis, products = self.basis[where], self.products[where]
        gram = _double(basis.T @ basis)
        return 2 * _double((basis * products).sum()) - (gram * self._inner).sum()


class LeaveOneOut:
    r"""XTrace: each of m test vectors probes what the other m - 1 leave of A.

    $Y = A\Omega = QR$. Leaving out column i turns the projection P into
    $P_i = Q (I - s_i s_i^\top) Q^\top$ with $s_i \propto R^{-\top} e_i$, so one A Q serves all. The
    estimate from $\omega_i$ is $\mathrm{Tr}(P_i A P_i) + c_i \mu_i^\top A \mu_i$ with
    $\mu_i = (I - P_i) \omega_i$ and $c_i = (n - m + 1) / \|\mu_i\|^2$, since the direction of a
    normal vector is uniform, and says more without its length. The m estimates are unbiased and
    exchangeable; memory is 4 m vectors.

    Source: Epperly, Tropp, Webber, XTrace: making the most of every sample in stochastic trace
    estimation, 2024, arXiv 2301.07825.

    Args:
        multiply: The products of A for `add`'s second half, A Q.

    Attributes:
        rest: The mean of $\\|(I - P_i) A (I - P_i) \\omega_i\\|^2$ as of the last `samples`: the
            squared Frobenius norm of what m - 1 test vectors leave, half the variance of an
            estimate.
    """

    rest: float

    def __init__(self, multiply: Multiply) -> None:
        self._multiply = multiply
        self.tests: Tensor | None = None
        self.sketch = self.basis = self.products = torch.empty(0)
        self._triangle = torch.zeros(0, 0, dtype=torch.float64)

    def add(self, tests: Tensor, sketch: Tensor) -> None:
        """Take in test vectors, standard normal, and their products, both (n, m)."""
        more = extension(None if self.tests is None else self.basis, sketch)
        products = self._multiply(more)
        done = len(self._triangle)
        grown = torch.zeros(done + tests.shape[1], done + tests.shape[1], dtype=torch.float64)
        grown[:done, :done] = self._triangle
        if self.tests is not None:
            grown[:done, done:] = _double(self.basis.T @ sketch)
        grown[done:, done:] = _double(more.T @ sketch).triu()
        new = (tests, sketch, more, products)
        old = (self.tests, self.sketch, self.basis, self.products)
        joined = new if self.tests is None else tuple(map(_join, old, new))
        self.tests, self.sketch, self.basis, self.products = joined
        self._triangle = grown

    def samples(self, blocks: Mapping[str, slice]) -> Tensor:
        """Each block's m estimates, shape (blocks, m), float64 on the CPU."""
        assert self.tests is not None
        n, m = self.tests.shape
        s = self.left_out()
        inner = _double(self.basis.T @ self.products)
        inner = (inner + inner.T) / 2
        onto = _without(s, _double(self.basis.T @ self.tests))
        back = _without(s, self._triangle - inner @ onto)
        onto_, back_ = onto.to(self.tests), back.to(self.tests)
        forms, known, lengths = [], [], torch.zeros(m, dtype=torch.float64)
        squares = 0.0
        for where in blocks.values():
            q, z = self.basis[where], self.products[where]
            rest = self.tests[where] - q @ onto_
            mapped = self.sketch[where] - z @ onto_ - q @ back_
            forms.append(_double((rest * mapped).sum(0)))
            lengths += _double(rest.square().sum(0))
            squares += mapped.square().sum().item()
            known.append(_known(_double(q.T @ q), _double(q.T @ z), inner, s))
        self.rest = squares / m
        return torch.stack(known) + torch.stack(forms) * ((n - m + 1) / lengths)

    def left_out(self) -> Tensor:
        """The s_i as columns, shape (m, m): what the projection loses without test vector i."""
        diagonal = self._triangle.diagonal()
        # Where the range of A is exhausted R ends in rounding errors, whose size must not be 0.
        floor = torch.finfo(self.basis.dtype).eps * diagonal.abs().max().clamp(min=1e-100)
        safe = torch.where(diagonal.abs() < floor, floor, diagonal)
        triangle = self._triangle - diagonal.diag() + safe.diag()
        identity = torch.eye(len(triangle), dtype=torch.float64)
        inverse: Tensor = torch.linalg.solve_triangular(triangle.T, identity, upper=False)
        return inverse.div_(torch.linalg.vector_norm(inverse, dim=0))

    def diagonals(self) -> Tensor:
        r"""XDiag: m estimates of the diagonal, shape (n, m), from test vectors of random signs.

        $\mathrm{diag}(P_i A) + \omega_i \circ (I - P_i) A \omega_i$, where the last factor is
        $Q s_i s_i^\top r_i$.
        """
        assert self.tests is not None
        s = self.left_out()
        scale = (s * self._triangle).sum(0).to(self.tests)
        lost = self.basis @ s.to(self.tests)
        estimates = (self.basis * self.products).sum(1, keepdim=True)
        estimates = estimates - lost * (self.products @ s.to(self.tests))
        return estimates.add_(self.tests * lost * scale)


def extension(basis: Tensor | None, vectors: Tensor) -> Tensor:
    """Orthonormal columns that span, with those of `basis`, the vectors too; as many as they."""
    found = vectors
    # Once leaves what cancellation magnifies; three times also where the vectors are dependent.
    for _ in range(3 if basis is not None else 1):
        if basis is not None:
            found = found - basis @ (basis.T @ found)
        found = torch.linalg.qr(found).Q
    return found


def block_forms(left: Tensor, right: Tensor, blocks: Mapping[str, slice]) -> Tensor:
    """The inner products of columns within each block, shape (blocks, m), float64 on the CPU."""
    rows = [torch.linalg.vecdot(left[b].T, right[b].T) for b in blocks.values()]
    return _double(torch.stack(rows))


def _known(gram: Tensor, cross: Tensor, inner: Tensor, s: Tensor) -> Tensor:
    """Tr(E[PA + AP - PAP]) for each P_i, from Q'EQ, Q'EAQ, Q'AQ and the s_i; shape (m,)."""
    one_sided = cross.trace() - _forms(s, cross, s)
    both = (
        (gram * inner).sum()
        - 2 * _forms(s, gram @ inner, s)
        + _forms(s, gram, s) * _forms(s, inner, s)
    )
    return 2 * one_sided - both


def _forms(left: Tensor, matrix: Tensor, right: Tensor) -> Tensor:
    return (left * (matrix @ right)).sum(0)


def _without(s: Tensor, columns: Tensor) -> Tensor:
    """(I - s_i s_i') times column i."""
    return columns - s * (s * columns).sum(0)


def _join(old: Tensor | None, new: Tensor) -> Tensor:
    assert old is not None
    return torch.cat([old.T, new.T]).T


def _double(tensor: Tensor) -> Tensor:
    return tensor.cpu().double()
