"""Gaussian noise looked up instead of computed: 16 weights at a time, from a table.

The table holds 2^16 vectors of 16 numbers, half of them drawn once from a Gaussian and made to have
covariance exactly I, the other half their negatives. Each 16 weights get a vector of their own, by
16 random bits, independent of all others. So over the draws of 16 weights

- the mean is 0, as are all odd moments: the table is symmetric;
- the covariance is I, up to float32: no bias enters sigma^2/2 Tr H;
- fourth moments are a Gaussian's within a few percent, and no weight moves by more than about 5;
- different tensors, steps, draws, and any two weights not in one such row of 16 are independent.

It is no Gaussian: 65536 places are few in 16 dimensions. What it saves is the drawing: one random
bit a weight instead of a Gaussian. Evolution strategies (Salimans et al., 2017, arXiv 1703.03864)
take one offset into a long table for a whole network instead, by which draws that overlap are
correlated; independent rows avoid that.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

WIDTH = 16
_HALF = 1 << 15
_SEED = 20240613


def fill_from_table(out: Tensor, generator: torch.Generator) -> Tensor:
    """Fill a contiguous tensor in place, its elements taken 16 at a time in their order.

    Args:
        out: float32 or float64.
        generator: What chooses the rows.
    """
    table, flat = _table(out.device, out.dtype), out.view(-1)
    rows, rest = divmod(flat.numel(), WIDTH)
    # One 64-bit number chooses four rows, so a multiple of 64 numbers uses up what it draws.
    bits = torch.empty(-(-flat.numel() // (4 * WIDTH)), dtype=torch.int64, device=out.device)
    bits.random_(-(2**63), None, generator=generator)
    chosen = bits.view(torch.int16).to(torch.int32).add_(_HALF)
    if rows:
        torch.index_select(table, 0, chosen[:rows], out=flat[: rows * WIDTH].view(rows, WIDTH))
    if rest:
        flat[rows * WIDTH :] = table[chosen[rows], :rest]
    return out


@cache
def _table(device: torch.device, dtype: torch.dtype) -> Tensor:
    """The table, made on the CPU so that it is the same everywhere; 4 MiB in float32."""
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        drawn = torch.empty(_HALF, WIDTH, dtype=torch.float64, device="cpu")
        drawn.normal_(generator=torch.Generator().manual_seed(_SEED))
        factor = torch.linalg.cholesky(drawn.T @ drawn / _HALF)
        white = torch.linalg.solve_triangular(factor, drawn.T, upper=False).T
        return torch.cat([white, -white]).to(dtype).contiguous().to(device)
