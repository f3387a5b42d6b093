"""Images as rows of patches, and where the patches are."""

from __future__ import annotations

import torch
from torch import Tensor


def patchify(images: Tensor, size: int) -> Tensor:
    """Cut images into square patches, row by row; in a patch channels change fastest.

    Args:
        images: Shape (n, c, h, w), h and w multiples of `size`.
        size: Side of a patch, in pixels.

    Returns:
        Shape (n, h w / size^2, size^2 c).
    """
    n, c, h, w = images.shape
    grid = images.reshape(n, c, h // size, size, w // size, size)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(n, (h // size) * (w // size), size * size * c)


def unpatchify(patches: Tensor, size: int, height: int, width: int) -> Tensor:
    """Put patches together again: the inverse of `patchify`.

    Args:
        patches: Shape (n, height width / size^2, size^2 c).
        size: Side of a patch, in pixels.
        height: Of the images, in pixels.
        width: Of the images, in pixels.

    Returns:
        Shape (n, c, height, width).
    """
    rows, columns = height // size, width // size
    grid = patches.reshape(len(patches), rows, columns, size, size, -1)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), -1, height, width)


def sin_cos_positions(rows: int, columns: int, width: int) -> Tensor:
    r"""Sines and cosines of the row, then those of the column, at falling frequencies.

    With $\omega_k = 10000^{-4k/d}$, k below d / 4: a quarter each of $\sin(r \omega_k)$,
    $\cos(r \omega_k)$, $\sin(c \omega_k)$ and $\cos(c \omega_k)$.

    Args:
        rows: Of patches.
        columns: Of patches.
        width: d, a multiple of 4.

    Returns:
        Shape (rows * columns, d), row by row.
    """
    quarter = width // 4
    frequencies = 10000.0 ** -(torch.arange(quarter, dtype=torch.float64) / quarter)
    row = torch.arange(rows, dtype=torch.float64).repeat_interleave(columns)[:, None] * frequencies
    column = torch.arange(columns, dtype=torch.float64).repeat(rows)[:, None] * frequencies
    found = torch.cat([row.sin(), row.cos(), column.sin(), column.cos()], dim=1)
    return found.to(torch.get_default_dtype())
