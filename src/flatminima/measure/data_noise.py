"""How much a trace depends on which samples the data set happens to hold."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flatminima.measure.operators import Operator
from flatminima.measure.over_batches import OverBatches
from flatminima.measure.ranks import Ranks


class BatchForms:
    r"""The quadratic forms $z_j^\top A_b z_j$ of each batch b, from products that are made anyway.

    With $w_b = n_b/N$ and $d_{bj} = z_j^\top A_b z_j - z_j^\top A z_j$, the variance of
    $\mathrm{Tr}\,A = \sum_b w_b \mathrm{Tr}\,A_b$ over batches drawn anew is estimated by

    $\frac{B}{B-1} \sum_b w_b^2 \left[\bar d_b^2 - s_b^2/m\right]$,

    where $\bar d_b$ and $s_b^2$ are mean and variance of $d_{bj}$ over the m probes. All batches
    see the same probes, so most of the probes' noise cancels in $d_{bj}$, and the last term takes
    off, on average, what is left. Batches must be drawn at random for it to mean something; one of
    sorted samples overstates it.
    """

    def __init__(self) -> None:
        self._counts: list[int] = []
        self._forms: list[Tensor] = []
        self._ranks: Ranks | None = None

    def multiply(self, operator: Operator, vectors: Tensor) -> Tensor:
        """The products with the columns of `vectors`; the batches' forms are noted on the way."""
        if not isinstance(operator, OverBatches):
            return operator.matmat(vectors)
        counts: list[int] = []
        forms: list[Tensor] = []

        def each(count: int, products: Tensor) -> None:
            counts.append(count)
            forms.append(torch.linalg.vecdot(vectors.T, products.T))

        products = operator.matmat(vectors, each)
        self._counts, self._ranks = counts, operator.ranks
        self._forms.append(torch.stack(forms).cpu().double())
        return products

    def stderr(self, *, exact: bool = False) -> float:
        """The standard error; NaN for fewer than two batches or two probes.

        Args:
            exact: Whether the probes were all unit vectors, so that the forms add up to the traces.
        """
        if not self._forms:
            return math.nan
        counts, forms = self._counts, torch.cat(self._forms, 1)
        if self._ranks is not None:
            parts = self._ranks.gather((counts, forms))
            counts = [count for part, _ in parts for count in part]
            forms = torch.cat([part for _, part in parts])
        number, probes = forms.shape
        if number < 2 or (probes < 2 and not exact):
            return math.nan
        weights = torch.tensor(counts, dtype=torch.float64)
        weights /= weights.sum()
        apart = forms - weights @ forms
        squares = apart.sum(1).square() if exact else apart.mean(1).square() - apart.var(1) / probes
        variance = number / (number - 1) * (weights.square() @ squares).item()
        return math.sqrt(max(variance, 0.0))
