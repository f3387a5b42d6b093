"""The basis of a Krylov space and what it says of the extreme eigenvalues."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flatminima.measure.operators import Operator
from flatminima.perturb.noise import Stream


class Lanczos:
    r"""An orthonormal basis Q and T = Q'HQ, with $HQ = QT + X B E^\top$ and X the next block.

    E picks the last block. T is taken from all inner products, so that it is right whatever the
    basis began with: random vectors, or Ritz vectors after a restart.

    Args:
        operator: H, n x n.
        width: Vectors of a block.
        seed: Of the start vectors.
        capacity: The most vectors of the basis, at least 3 `width` + 2 or n.
    """

    def __init__(self, operator: Operator, width: int, seed: int, capacity: int) -> None:
        self._operator, self._width = operator, width
        n = operator.shape[0]
        self._generator = Stream(seed).generator(operator.device, 0)
        self._eps = torch.finfo(operator.dtype).eps
        # Room for a block more than asked, where steps are so few that a restart never comes.
        rows = min(n, max(capacity, 3 * width + 2))
        self._rows = torch.empty(rows, n, dtype=operator.dtype, device=operator.device)
        self.size = 0
        self._projected = torch.zeros(0, 0, dtype=torch.float64)
        self._coupling = torch.zeros(width, 0, dtype=torch.float64)
        self._next = self._filled([])

    def step(self, k: int, which: str) -> None:
        """One product with a block, one more block of the basis, after a restart if it is full.

        Args:
            k: How many Ritz vectors a restart must keep.
            which: "largest", "smallest" or "magnitude": which Ritz vectors it keeps.
        """
        if self.size + len(self._next) > len(self._rows):
            self._restart(k, which)
        block = torch.stack(self._next)
        products = self._operator.matmat(block.T).T.clone()
        done, size = self.size, self.size + len(block)
        self._rows[done:size] = block
        inner = self._rows[:size] @ products.T
        products.addmm_(inner.T, self._rows[:size], alpha=-1)
        # Twice is enough (Kahan and Parlett): once leaves a component where cancellation was large.
        rest = self._rows[:size] @ products.T
        products.addmm_(rest.T, self._rows[:size], alpha=-1)
        inner = (inner + rest).cpu().double()
        grown = torch.zeros(size, size, dtype=torch.float64)
        grown[:done, :done] = self._projected
        grown[:done, done:] = inner[:done]
        grown[done:, :done] = inner[:done].T
        grown[done:, done:] = (inner[done:] + inner[done:].T) / 2
        self._projected, self.size = grown, size
        self._continue(products)

    def ritz(self, k: int, which: str) -> tuple[Tensor, Tensor, Tensor]:
        """The leading Ritz values (k,), their coordinates (size, k), residual bounds (k,)."""
        values, vectors = torch.linalg.eigh(self._projected)
        order = leading(values, which)[:k]
        last = vectors[len(vectors) - self._coupling.shape[1] :, order]
        return (
            values[order],
            vectors[:, order],
            torch.linalg.vector_norm(self._coupling @ last, dim=0),
        )

    def small(self, residuals: Tensor, values: Tensor, tol: float) -> bool:
        """Whether every residual is within `tol` of its value, or at the level of rounding."""
        return bool((residuals <= (tol * values.abs()).clamp(min=self.floor)).all())

    def confirmed(self, ritz: Tensor, values: Tensor, residuals: Tensor) -> bool:
        """Whether one product with a random combination of Ritz vectors bears the residuals out.

        Args:
            ritz: The vectors v, as rows (k, n).
            values: Their Ritz values.
            residuals: What is said of ||Hv - theta v||.
        """
        weights = torch.empty(len(ritz), dtype=ritz.dtype, device=ritz.device)
        weights.normal_(generator=self._generator)
        product = self._operator.matmat((weights @ ritz)[:, None])[:, 0]
        left = product - (weights * values.to(weights)) @ ritz
        # Of independent directions, so that they add up like squares, and rounding.
        size = torch.linalg.vector_norm(weights.cpu().double() * residuals).item()
        found = torch.linalg.vector_norm(left).item()
        return bool(found <= 3 * size + self.floor * math.sqrt(len(ritz)))

    def combine(self, coordinates: Tensor) -> Tensor:
        """The unit vectors with these coordinates (size, k) in the basis, as rows (k, n)."""
        rows = coordinates.T.to(self._rows) @ self._rows[: self.size]
        return rows.div_(torch.linalg.vector_norm(rows, dim=1, keepdim=True))

    def _continue(self, products: Tensor) -> None:
        """The next block X and B in HQ = QT + XBE', by Gram-Schmidt on the rows of `products`."""
        found: list[Tensor] = []
        coupling = torch.zeros(self._width, len(products), dtype=torch.float64)
        for column, w in enumerate(products):
            before = torch.linalg.vector_norm(w).item()
            for _ in range(2):
                coupling[: len(found), column] += _subtract(w, found)
            norm = torch.linalg.vector_norm(w).item()
            if norm < before / 10:
                # What is left of so much cancellation has its share of rounding along the basis.
                self._subtract_basis(w)
                norm = torch.linalg.vector_norm(w).item()
            if norm > self.floor and self.size + len(found) < len(w):
                coupling[len(found), column] = norm
                found.append(w / norm)
        self._next = self._filled(found)
        self._coupling = coupling[: len(self._next)]

    def _restart(self, k: int, which: str) -> None:
        """Keep the leading Ritz vectors, k and half of the rest, in place."""
        room = len(self._rows) - len(self._next)
        keep = min(k + (room - k) // 2, self.size)
        values, coordinates, _ = self.ritz(keep, which)
        turn = coordinates.T.to(self._rows)
        # By columns, since the whole product would need as much memory again.
        for i in range(0, self._rows.shape[1], 2**16):
            part = self._rows[:, i : i + 2**16]
            part[:keep] = turn @ part[: self.size]
        self._projected, self.size = values.diag(), keep

    @property
    def floor(self) -> float:
        """The rounding error of a product, roughly: 10 eps ||T||_max."""
        return 10 * self._eps * self._projected.abs().max().item()

    def _filled(self, block: list[Tensor]) -> list[Tensor]:
        """The block, with random vectors for those that an exhausted Krylov space lacks."""
        n = self._operator.shape[0]
        while len(block) < self._width and self.size + len(block) < n:
            start = torch.empty(n, dtype=self._operator.dtype, device=self._operator.device)
            start.normal_(generator=self._generator)
            for _ in range(2):
                self._subtract_basis(start)
                _subtract(start, block)
            block.append(start / torch.linalg.vector_norm(start))
        return block

    def _subtract_basis(self, w: Tensor) -> None:
        basis = self._rows[: self.size]
        w.addmv_(basis.T, basis @ w, alpha=-1)


def leading(values: Tensor, which: str) -> Tensor:
    """The places of the values, the leading one first."""
    key = values.abs() if which == "magnitude" else values
    return torch.argsort(key, descending=which != "smallest", stable=True)


def _subtract(w: Tensor, block: list[Tensor]) -> Tensor:
    """Take from w, in place, its parts along the block; returns these."""
    parts = torch.zeros(len(block), dtype=torch.float64)
    for i, q in enumerate(block):
        part = q @ w
        w.addcmul_(q, part, value=-1)
        parts[i] = part.item()
    return parts
