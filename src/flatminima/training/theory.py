"""The two models of the experiments on theory: a factored matrix, and a point among cosines."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MatrixFactor(nn.Module):
    r"""$\langle A, W W^\top \rangle$ of square weights, drawn from a standard normal.

    Args:
        entries: d (d + 1) / 2, the length of a measurement: the upper triangle of A, row by row,
            with twice the entries off the diagonal.
    """

    def __init__(self, entries: int) -> None:
        super().__init__()
        d = round(((8 * entries + 1) ** 0.5 - 1) / 2)
        self.weight = nn.Parameter(torch.randn(d, d))
        rows, columns = torch.triu_indices(d, d)
        self.register_buffer("upper", rows * d + columns, persistent=False)
        self.upper: Tensor

    def forward(self, measurements: Tensor) -> Tensor:
        """One product for each measurement, shape (samples,), of those of shape (samples, entries).

        Cost: O(d^3 + samples d^2).
        """
        product = (self.weight @ self.weight.T).flatten()
        return measurements @ product[self.upper]


class Cosines(nn.Module):
    r"""$\cos(a^\top w)$ at a point w, drawn from a standard normal.

    Args:
        features: The length of a.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(features))

    def forward(self, terms: Tensor) -> Tensor:
        """One cosine for each term, shape (samples,)."""
        return torch.cos(terms @ self.weight)
