"""The learning rates at which SGD, linearized at a minimum, stays there: linear algebra alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from flatminima.errors import InputError
from flatminima.measure.eigen import top_eigenvalues

RANK_CUT = 1e-10
"""Directions whose eigenvalue of H is smaller, as a part of the largest, are taken for flat."""


@dataclass(frozen=True)
class Threshold:
    """A learning rate up to which SGD is stable.

    Attributes:
        value: The learning rate; infinite where the loss is flat.
        error: How much too large it may be, by the residual of the eigenvalue it comes from.
        converged: Whether that residual is within the tolerance.
        steps: Lanczos steps.
    """

    value: float
    error: float
    converged: bool
    steps: int


class LinearSGD:
    r"""SGD linearized at a minimum, $u \leftarrow u - \frac{\eta}{B} \sum_{i \in batch} H_i u$.

    $H_i = J_i^\top J_i$ is the Hessian of sample i's loss and $H = \frac1n \sum_i H_i$ that of the
    mean loss. All is held in float64, in the coordinates of H's eigenvectors with eigenvalues
    above 0: directions in which no sample's loss changes neither grow nor decay.

    Cost: an eigendecomposition of the smaller of the Gram matrix of all rows and of H.

    Source: Mulayoff, Michaeli, Exact Mean Square Linear Stability Analysis for SGD, 2024,
    arXiv 2306.07850; Wu, Su, The Implicit Regularization of Dynamical Stability in Stochastic
    Gradient Descent, 2023, arXiv 2305.17490.

    Args:
        rows: J, shape (n, outputs, parameters); for one output (n, parameters) will do. For half
            the squared error J_i is the Jacobian of the outputs; in general it is that, from the
            left times the root of the Hessian of the loss in the outputs.

    Raises:
        InputError: another shape, no sample, or a number that is not finite.
    """

    def __init__(self, rows: Tensor) -> None:
        if rows.ndim == 2:
            rows = rows[:, None]
        if rows.ndim != 3 or not rows.numel():
            raise InputError(
                f"the Jacobian has shape {tuple(rows.shape)}: give (samples, outputs, parameters)"
            )
        if not rows.isfinite().all():
            raise InputError("the Jacobian has a number that is not finite: mend model or data")
        self.samples, self.outputs = rows.shape[:2]
        flat = rows.flatten(0, 1)
        if len(flat) <= flat.shape[1]:
            eigenvalues, vectors = torch.linalg.eigh(_gram(flat) / self.samples)
            kept = eigenvalues > RANK_CUT * eigenvalues[-1]
            coordinates = vectors[:, kept] * (self.samples * eigenvalues[kept]).sqrt()
        else:
            eigenvalues, vectors = torch.linalg.eigh(_gram(flat.T) / self.samples)
            kept = eigenvalues > RANK_CUT * eigenvalues[-1]
            coordinates = flat.double() @ vectors[:, kept]
        self.eigenvalues = eigenvalues[kept]
        """Those of H that are not 0, ascending."""
        self._rows = coordinates.view(self.samples, self.outputs, -1)
        grams = self._rows @ self._rows.mT
        self.sample_frobenius = float(grams.square().sum((1, 2)).mean())
        """The mean over samples of the squared Frobenius norm of H_i."""

    @property
    def top(self) -> float:
        """The largest eigenvalue of H."""
        return float(self.eigenvalues[-1]) if len(self.eigenvalues) else 0.0

    @property
    def trace(self) -> float:
        """Tr H."""
        return float(self.eigenvalues.sum())

    @property
    def frobenius(self) -> float:
        """The Frobenius norm of H."""
        return float(torch.linalg.vector_norm(self.eigenvalues))

    def mean_threshold(self) -> float:
        """2 / lambda_max: up to there gradient descent is stable, and the mean of SGD."""
        return _over(2.0, self.top)

    def trace_bound(self, batch_size: int) -> float:
        r"""$2 C / (p\,\mathrm{Tr}\,H)$, C outputs: SGD is not stable above it.

        Necessary, not sufficient; at B = 1 and one output it is Tr H <= 2 / lr.
        """
        return _over(2.0 * self.outputs, self.part(batch_size) * self.trace)

    def frobenius_bound(self, batch_size: int) -> float:
        r"""Another necessary one, never above `trace_bound`.

        $2\,\mathrm{Tr}\,H / ((1-p) \|H\|_F^2 + p\, \overline{\|H_i\|_F^2})$.
        """
        p = self.part(batch_size)
        square = (1 - p) * self.frobenius**2 + p * self.sample_frobenius
        return _over(2 * self.trace, square)

    def threshold(self, batch_size: int, *, tol: float = 1e-5, max_steps: int = 100) -> Threshold:
        r"""The learning rate up to which SGD is stable in mean square, exactly.

        With batches of B samples without replacement the second moment $M = E[u u^\top]$ obeys a
        linear map, and does not grow iff $\eta \le 2 / \lambda_{\max}(\mathcal C^+ \mathcal D)$,
        where $\mathcal C(M) = (HM + MH)/2$ and
        $\mathcal D(M) = (1-p) H M H + \frac{p}{n} \sum_i H_i M H_i$, $p = (n-B)/(B(n-1))$. The
        eigenvalue is that of the symmetric $\mathcal C^{-1/2} \mathcal D\, \mathcal C^{-1/2}$, by
        the Lanczos method; none of these maps is formed.

        Cost: O(n C r^2) a step and r^2 numbers of memory, r the rank of H; some 20 steps.

        Args:
            batch_size: B, from 1 to n.
            tol: Stops when the residual is at most so small a part of the eigenvalue; its error is
                then of the order of tol squared.
            max_steps: Stops then in any case.

        Raises:
            InputError: batch_size is not in 1 to n; tol or max_steps out of their range.
        """
        p = self.part(batch_size)
        if p == 0 or not len(self.eigenvalues):
            return Threshold(self.mean_threshold(), 0.0, True, 0)
        moments = _Moments(self.eigenvalues, self._rows, p)
        found = top_eigenvalues(moments, tol=tol, max_steps=max_steps)
        value = 2 / found.value
        error = value - 2 / (found.value + found.residual)
        return Threshold(value, error, found.converged, found.steps)

    def part(self, batch_size: int) -> float:
        """P = (n - B) / (B (n - 1)): 1 at B = 1, 0 at B = n.

        Raises:
            InputError: batch_size is not in 1 to n.
        """
        if not 1 <= batch_size <= self.samples:
            raise InputError(
                f"batch_size is {batch_size}: give 1 to {self.samples}, the number of samples"
            )
        if batch_size == self.samples:
            return 0.0
        return (self.samples - batch_size) / (batch_size * (self.samples - 1))


class _Moments:
    """C^(-1/2) D C^(-1/2) as an operator on the r^2 entries of a second moment.

    In the eigenvectors of H the map C multiplies entry (a, b) by the mean of the two eigenvalues.
    """

    description = "map of second moments"

    def __init__(self, eigenvalues: Tensor, rows: Tensor, part: float) -> None:
        self._h, self._rows, self._part = eigenvalues, rows, part
        self._roots = ((eigenvalues[:, None] + eigenvalues) / 2).sqrt()
        size = self._roots.numel()
        self.shape, self.dtype, self.device = (size, size), rows.dtype, rows.device
        self.blocks: Mapping[str, slice] = {"all": slice(0, size)}
        self.gradients = self.hvps = 0

    def matmat(self, vectors: Tensor) -> Tensor:
        """The products with the columns of `vectors`, shapes (r^2, m) -> (r^2, m)."""
        self.hvps += vectors.shape[1]
        return torch.stack([self._grow(column) for column in vectors.T], 1)

    def _grow(self, column: Tensor) -> Tensor:
        moment = column.reshape(self._roots.shape) / self._roots
        inner = (self._rows @ moment) @ self._rows.mT
        flat = self._rows.flatten(0, 1)
        grown = flat.T @ (inner @ self._rows).flatten(0, 1) * (self._part / len(self._rows))
        grown += (1 - self._part) * self._h[:, None] * moment * self._h
        return (grown / self._roots).flatten()


def _gram(rows: Tensor) -> Tensor:
    """The inner products of the rows, float64; by pieces, so that no float64 copy is whole."""
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for piece in torch.split(rows, 4096, 1):
        wide = piece.double()
        total.addmm_(wide, wide.T)
    return total


def _over(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0 else torch.inf
