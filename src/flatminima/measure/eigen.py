"""The extreme eigenvalues of a symmetric operator."""

from __future__ import annotations

import torch
from torch import Tensor

from flatminima.errors import InputError, unknown
from flatminima.measure.cost import Meter
from flatminima.measure.operators import Operator
from flatminima.measure.results import EigenEstimate
from flatminima.perturb.noise import Stream
from flatminima.progress import Progress

_ORDERS = ("largest", "smallest", "magnitude")


def top_eigenvalues(
    operator: Operator,
    k: int = 1,
    *,
    which: str = "largest",
    tol: float = 1e-3,
    max_steps: int = 100,
    vectors: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> EigenEstimate:
    r"""The k extreme eigenvalues by block Lanczos with full reorthogonalization.

    Blocks of k vectors, so that an eigenvalue repeated up to k times is found as often, and one
    graph per batch serves k products; k = 1 is the plain Lanczos method. From
    $H Q_j = Q_j T_j + X_{j+1} B_j E_j^\top$ with $T_j s = \theta s$, the residual of $v = Q_j s$ is
    $\|B_j E_j^\top s\|$: it stops when that is at most tol |theta| for all k. Then each residual
    $\|Hv - \theta v\|$ is computed with one more product, which bounds the distance from theta to
    an eigenvalue of H whatever happened before. (That it is the extreme one is almost sure, since
    the start is random, but no finite number of products can prove it.)

    Cost: k HVPs a step and k at the end, 20 to 60 steps are usual for k = 1 and tol = 1e-3, fewer
    for larger k; (steps + 3) k vectors of memory.

    Source: Lanczos, 1950; Golub and Underwood, The block Lanczos method for computing eigenvalues,
    1977; the bound: Parlett, The Symmetric Eigenvalue Problem, 1998, section 4.5.

    Args:
        operator: The operator, n x n.
        k: How many eigenvalues, 1 <= k <= n.
        which: "largest" (algebraic, in descending order), "smallest" (in ascending order) or
            "magnitude" (by absolute value, descending).
        tol: The relative residual to stop at.
        max_steps: The most Lanczos steps. `converged` says whether they were enough.
        vectors: Whether to return the vectors, shape (n, k).
        seed: Of the start vectors; the global random state is not touched.
        progress: Called with ("eigenvalues", steps done, max_steps).

    Raises:
        InputError: k, which, tol or max_steps out of range.
    """
    n = operator.shape[0]
    if which not in _ORDERS:
        raise unknown("order of eigenvalues", which, _ORDERS)
    if not 1 <= k <= n:
        raise InputError(f"k is {k}: the operator has {n} eigenvalues, give 1 to {n}")
    if max_steps < 1:
        raise InputError(f"max_steps is {max_steps}: give at least 1")
    if not tol > 0:
        raise InputError(f"tol is {tol}: give a number above 0, such as 1e-3")
    meter = Meter(operator.device, operator.dtype, operator)
    lanczos = _Lanczos(operator, k, seed)
    for steps in range(1, max_steps + 1):
        lanczos.step()
        values, coordinates, bounds = lanczos.ritz(k, which)
        if progress is not None:
            progress("eigenvalues", steps, max_steps)
        if lanczos.small(bounds, values, tol):
            break
    if progress is not None:
        progress("eigenvalues", steps, steps)
    ritz = _combine(lanczos.basis, coordinates)
    products = operator.matmat(ritz.T).T
    values = (ritz * products).sum(1)
    residuals = torch.linalg.vector_norm(products - values[:, None] * ritz, dim=1)
    residuals, values = residuals.cpu().double(), values.cpu().double()
    order = _order(values, which)
    return EigenEstimate(
        tuple(values[order].tolist()),
        tuple(residuals[order].tolist()),
        steps,
        lanczos.small(residuals, values, tol),
        which,
        ritz[order.to(ritz.device)].T if vectors else None,
        method="block Lanczos, full reorthogonalization",
        seed=seed,
        **meter.read(),
    )


class _Lanczos:
    """The basis Q and the block tridiagonal T = Q'HQ, grown by a block at a time."""

    def __init__(self, operator: Operator, width: int, seed: int) -> None:
        self._operator, self._width = operator, width
        self._generator = Stream(seed).generator(operator.device, 0)
        self._eps = torch.finfo(operator.dtype).eps
        self._projected = torch.zeros(0, 0, dtype=torch.float64)
        self._coupling = torch.zeros(width, 0, dtype=torch.float64)
        self.basis: list[Tensor] = []
        self._next = self._filled([])

    def step(self) -> None:
        """One product with a block, one more block of the basis."""
        block = torch.stack(self._next)
        done, width = len(self.basis), len(block)
        self.basis += self._next
        products = self._operator.matmat(block.T).T.clone()
        inner = (block @ products.T).cpu().double()
        grown = torch.zeros(done + width, done + width, dtype=torch.float64)
        grown[:done, :done] = self._projected
        grown[done:, done - self._coupling.shape[1] : done] = self._coupling
        grown[done:, done:] = (inner + inner.T) / 2
        self._projected = grown.tril() + grown.tril(-1).T
        self._continue(products)

    def _continue(self, products: Tensor) -> None:
        """The next block X and B in HQ = QT + XB, by Gram-Schmidt on the rows of `products`."""
        found: list[Tensor] = []
        coupling = torch.zeros(self._width, len(products), dtype=torch.float64)
        for column, w in enumerate(products):
            coupling[: len(found), column] = self._orthogonalize(w, found)
            norm = torch.linalg.vector_norm(w).item()
            if norm > self._floor() and len(self.basis) + len(found) < len(w):
                coupling[len(found), column] = norm
                found.append(w / norm)
        self._next = self._filled(found)
        self._coupling = coupling[: len(self._next)]

    def ritz(self, k: int, which: str) -> tuple[Tensor, Tensor, Tensor]:
        """The leading Ritz values (k,), their coordinates (size, k), residual bounds (k,)."""
        values, vectors = torch.linalg.eigh(self._projected)
        order = _order(values, which)[:k]
        last = vectors[-self._coupling.shape[1] :, order]
        return (
            values[order],
            vectors[:, order],
            torch.linalg.vector_norm(self._coupling @ last, dim=0),
        )

    def small(self, residuals: Tensor, values: Tensor, tol: float) -> bool:
        """Whether every residual is within `tol` of its value, or at the level of rounding."""
        return bool((residuals <= (tol * values.abs()).clamp(min=self._floor())).all())

    def _floor(self) -> float:
        """The rounding error of a product, roughly: 10 eps ||T||_max."""
        return 10 * self._eps * self._projected.abs().max().item()

    def _filled(self, block: list[Tensor]) -> list[Tensor]:
        """The block, with random vectors for those that an exhausted Krylov space lacks."""
        n = self._operator.shape[0]
        while len(block) < self._width and len(self.basis) + len(block) < n:
            start = torch.empty(n, dtype=self._operator.dtype, device=self._operator.device)
            self._orthogonalize(start.normal_(generator=self._generator), block)
            block.append(start / torch.linalg.vector_norm(start))
        return block

    def _orthogonalize(self, w: Tensor, block: list[Tensor]) -> Tensor:
        """Take from w, in place, its parts along the basis and the block; returns the latter."""
        parts = torch.zeros(len(block), dtype=torch.float64)
        # Twice is enough (Kahan and Parlett): once leaves a component where cancellation was large.
        for _ in range(2):
            for q in self.basis:
                w.addcmul_(q, q @ w, value=-1)
            for i, q in enumerate(block):
                part = q @ w
                w.addcmul_(q, part, value=-1)
                parts[i] += part.item()
        return parts


def _order(values: Tensor, which: str) -> Tensor:
    key = values.abs() if which == "magnitude" else values
    return torch.argsort(key, descending=which != "smallest", stable=True)


def _combine(basis: list[Tensor], coordinates: Tensor) -> Tensor:
    """The unit vectors with these coordinates in the basis, as rows, shape (k, n)."""
    rows = torch.zeros(coordinates.shape[1], len(basis[0])).to(basis[0])
    for q, weights in zip(basis, coordinates.to(basis[0]), strict=True):
        rows.addr_(weights, q)
    return rows.div_(torch.linalg.vector_norm(rows, dim=1, keepdim=True))
