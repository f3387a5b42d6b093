"""How badly patches are reconstructed, and how well that was predicted."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from flatminima.arguments import tensor
from flatminima.errors import InputError

SMALLEST = 1e-6
"""Added to variances, as the paper's code has it."""


def patch_losses(reconstruction: Tensor, patches: Tensor) -> Tensor:
    r"""$l_i = \frac1D \sum_d (\hat p_{id} - p_{id})^2$ of each patch.

    Args:
        reconstruction: Shape (..., D).
        patches: Shape (..., D).

    Returns:
        Shape (...).

    Raises:
        InputError: the two are no tensors of one shape.
    """
    _alike("reconstruction", reconstruction, "patches", patches)
    return (reconstruction - patches).square().mean(dim=-1)


def relative_loss(predicted: Tensor, losses: Tensor) -> Tensor:
    r"""How badly predictions order the patches of an image, in nats a pair.

    Over ordered pairs of patches of one image with $d_{ij} = \hat l_j - \hat l_i$,

    $$-\frac{\sum 1[l_j > l_i] \log \sigma(d_{ij}) + 1[l_j < l_i] \log \sigma(-d_{ij})}
    {\#\{(i, j) : l_i \ne l_j\}}$$

    which is the mean of $\log(1 + e^{-d_{ij}})$ over pairs with $l_j > l_i$: (j, i) tells what
    (i, j) does. Constant predictions give log 2; no unequal pair gives 0. Pairs of all images are
    pooled. No gradient flows to `losses`. Costs n M^2 numbers.

    Source: Wang et al., 2023, arXiv 2304.05919.

    Args:
        predicted: Shape (n, M).
        losses: Shape (n, M).

    Raises:
        InputError: the two are no tensors of such a shape.
    """
    _rows(predicted, losses)
    found, pairs = _over_pairs(softplus(_differences(predicted).neg()), losses)
    return found / pairs.clamp_min(1)


def absolute_loss(predicted: Tensor, losses: Tensor) -> Tensor:
    """Mean squared error against the losses, standardized in each image.

    The paper's other choice, which it found worse. Standardized with the unbiased variance; no
    gradient flows to `losses`.

    Args:
        predicted: Shape (n, M), M above 1.
        losses: Shape (n, M).

    Raises:
        InputError: the two are no tensors of such a shape.
    """
    _rows(predicted, losses)
    if losses.shape[1] < 2:
        raise InputError("a loss of one patch has no variance: mask two patches or more")
    return (predicted - _standardized(losses.detach())).square().mean()


def ranking_agreement(predicted: Tensor, losses: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs of patches of one image, unequal in loss, that predictions order as the losses do.

    Args:
        predicted: Shape (n, M).
        losses: Shape (n, M).

    Returns:
        How many, pairs of equal predictions counting half; and of how many.

    Raises:
        InputError: the two are no tensors of shape (n, M).
    """
    _rows(predicted, losses)
    order = _differences(predicted).sign()
    return _over_pairs((1 + order) / 2, losses)


def _rows(predicted: Tensor, losses: Tensor) -> None:
    _alike("predicted", predicted, "losses", losses)
    if losses.dim() != 2:
        raise InputError(
            f"losses have the shape {tuple(losses.shape)}: give (n, M), a row for each image"
        )


def _alike(name: str, one: Tensor, other_name: str, other: Tensor) -> None:
    if tensor(name, one).shape != tensor(other_name, other).shape:
        raise InputError(
            f"{name} has the shape {tuple(one.shape)} and {other_name} {tuple(other.shape)}: give "
            "both one shape"
        )


def _over_pairs(values: Tensor, losses: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of values (n, i, j) over pairs with l_j > l_i, and how many there are."""
    rising = _differences(losses.detach()) > 0
    return torch.where(rising, values, 0.0).sum(), rising.sum()


def _differences(values: Tensor) -> Tensor:
    """x_j - x_i at (n, i, j)."""
    return values[:, None, :] - values[:, :, None]


def _standardized(values: Tensor) -> Tensor:
    variance, mean = torch.var_mean(values, dim=-1, keepdim=True)
    return (values - mean) / (variance + SMALLEST).sqrt()
