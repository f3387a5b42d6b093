"""From numbers at places to maps of the input: places in a grid, one size, one scale, one map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from flatminima.arguments import floats
from flatminima.errors import InputError, unknown

COMBINATIONS = ("product", "sum", "geometric")
WEIGHTS = ("uniform", "linear")

FLAT = 16
"""A map whose range is this many units of rounding of its largest value is constant."""


def to_grid(
    values: Tensor, image: tuple[int, int] | None, name: str, *, channels_last: bool = False
) -> Tensor:
    """The values of a layer as (n, c, h, w).

    Of tokens (n, t, c) the last h w make a grid of the image's proportions, and those before it
    (class tokens, registers) are left out; without an image they stay a row, h = 1.

    Args:
        values: What a layer gives or takes.
        image: Height and width of the input, None where it is no image.
        name: Of the layer.
        channels_last: Whether values of four dimensions are (n, h, w, c).

    Raises:
        InputError: the layer keeps no places, or its tokens make no grid.
    """
    if values.dim() == 4:
        return values.permute(0, 3, 1, 2) if channels_last else values
    if values.dim() != 3:
        raise InputError(
            f"the layer {name!r} gives the shape {tuple(values.shape)}, which has no places: name "
            "one that gives (n, channels, height, width) or (n, tokens, channels), or 'input'"
        )
    rows = values.transpose(1, 2)
    if image is None:
        return rows.unsqueeze(2)
    count = rows.shape[2]
    for extra in range(count):
        height = round(math.sqrt((count - extra) * image[0] / image[1]))
        width = round(math.sqrt((count - extra) * image[1] / image[0]))
        fits = height * width == count - extra and height * image[1] == width * image[0]
        if fits and (height * width > 1 or count == 1):
            return rows[:, :, extra:].reshape(*rows.shape[:2], height, width)
    raise InputError(
        f"the {count} tokens of the layer {name!r} make no grid of the proportions of an image of "
        f"{image[0]} x {image[1]} pixels: name another layer"
    )


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, (n, 1, h, w) to the size, corners not aligned."""
    if tuple(maps.shape[2:]) == size:
        return maps
    return nn.functional.interpolate(maps, size, mode="bilinear", align_corners=False)


def min_max(maps: Tensor) -> Tensor:
    """`(m - min) / (max - min)` for each map (n, ...); 1 everywhere for one that is constant.

    A constant map prefers no place, and as a factor of 1 it leaves a product to the other layers.
    """
    flat = maps.flatten(1)
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    rounding = FLAT * torch.finfo(maps.dtype).eps * flat.abs().amax(1, keepdim=True)
    varies = high - low > rounding
    scaled = (flat - low) / torch.where(varies, high - low, torch.ones_like(low))
    return torch.where(varies, scaled, torch.ones_like(flat)).view_as(maps)


def combine(
    maps: Sequence[Tensor],
    how: Literal["product", "sum", "geometric"] = "product",
    weights: Literal["uniform", "linear"] | Sequence[float] = "uniform",
) -> Tensor:
    r"""One map of several layers' maps of one size, each in [0, 1].

    `product`: $\prod_l m_l$. `sum`: $\sum_l w_l m_l$. `geometric`: $\prod_l m_l^{w_l}$, with
    $w_l = r_l / \sum r$ and r of `uniform` all 1, of `linear` 1, 2, ..., K from input to output.

    Args:
        maps: From early to late layers, each (n, 1, h, w).
        how: See above.
        weights: r by name, or numbers, one a layer (such as the accuracy of its map alone).

    Raises:
        InputError: an unknown name, or weights that are not one number of 0 and above a layer, or
            all 0, or given for a product, which has none.
    """
    if how not in COMBINATIONS:
        raise unknown("combination", how, COMBINATIONS)
    shares = _shares(weights, len(maps))
    if how == "product":
        if weights != "uniform":
            raise InputError("a product has no weights: take 'geometric', or leave weights out")
        return torch.stack(list(maps)).prod(0)
    stacked = torch.stack(list(maps))
    shape = (-1, *([1] * (stacked.dim() - 1)))
    factors = torch.tensor(shares, dtype=stacked.dtype, device=stacked.device).view(shape)
    return (factors * stacked).sum(0) if how == "sum" else stacked.pow(factors).prod(0)


def _shares(weights: str | Sequence[float], count: int) -> list[float]:
    if isinstance(weights, str):
        if weights not in WEIGHTS:
            raise unknown("choice of weights", weights, WEIGHTS)
        given = [1.0] * count if weights == "uniform" else [float(i + 1) for i in range(count)]
    else:
        given = floats("weights", weights).reshape(-1).tolist()
    good = all(math.isfinite(weight) and weight >= 0 for weight in given)
    if len(given) != count or not good or not sum(given):
        raise InputError(
            f"weights are {given}: give one number of 0 or above for each of the {count} layers, "
            "not all 0"
        )
    return [weight / sum(given) for weight in given]
