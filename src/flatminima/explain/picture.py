"""Saliency maps drawn over their images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from flatminima.arguments import above, floats
from flatminima.errors import InputError, require

Pixels = NDArray[np.uint8]

STRENGTH = 0.65
"""How much of a pixel the colour of the map takes, where the map is 1."""

_COLOURS = np.array([[48, 18, 120], [30, 130, 160], [90, 190, 90], [245, 200, 50], [215, 40, 40]])
"""From 0 to 1."""


def overlay(
    image: Tensor | NDArray[Any], saliency: Tensor | NDArray[Any], *, power: float = 1.0
) -> Pixels:
    """An image in grey with its map in colour over it.

    Args:
        image: (c, h, w), or (1, h, w) and (h, w) in grey; of any range, which is stretched to that
            of a picture.
        saliency: (1, h, w) or (h, w), 0 and above; stretched until its largest value is 1.
        power: What the stretched map is raised to, above 0. A product of K layers is small nearly
            everywhere: 1 / K shows it on the scale of one layer, as their geometric mean.

    Returns:
        Pixels (h, w, 3), 0 to 255.

    Raises:
        InputError: a map of another size than the image; a power of 0 or below.
    """
    above("power", power)
    grey, shown = _plane("image", image), _plane("map", saliency)
    if grey.shape != shown.shape:
        raise InputError(
            f"the map is of {shown.shape[0]} x {shown.shape[1]} pixels and the image of "
            f"{grey.shape[0]} x {grey.shape[1]}: give them one size"
        )
    low, high = float(grey.min()), float(grey.max())
    grey = (grey - low) / (high - low) if high > low else np.zeros_like(grey)
    most = float(shown.max())
    shown = (shown.clip(min=0) / most) ** power if most > 0 else 0 * shown
    at = np.linspace(0, 1, len(_COLOURS))
    colour = np.stack([np.interp(shown, at, channel) for channel in _COLOURS.T], axis=-1)
    part = STRENGTH * shown[..., None]
    mixed = (1 - part) * 255 * grey[..., None] + part * colour
    found: Pixels = mixed.round().clip(0, 255).astype(np.uint8)
    return found


def saliency_plot(
    images: Tensor | NDArray[Any],
    maps: Mapping[str, Tensor | NDArray[Any]] | Tensor | NDArray[Any],
    titles: Sequence[str] = (),
    *,
    power: float | Mapping[str, float] = 1.0,
) -> Any:
    """A figure: an image a row, its maps beside it.

    Args:
        images: (n, c, h, w).
        maps: (n, 1, h, w), or several such by what to call them.
        titles: What to write beside each image.
        power: As `overlay` takes it, for all maps or by their names; said in their titles.

    Returns:
        The matplotlib figure.

    Raises:
        InputError: nothing to draw, maps that are not one an image; matplotlib is not installed.
    """
    named = dict(maps) if isinstance(maps, Mapping) else {"map": maps}
    _batch("images", images)
    powers = {name: power.get(name, 1.0) if isinstance(power, Mapping) else power for name in named}
    if not len(images) or not named:
        raise InputError("there is no map to draw: give at least one image and its map")
    for name, one in named.items():
        _batch(name, one)
        if len(one) != len(images):
            raise InputError(f"{name}: {len(one)} maps for {len(images)} images")
    pyplot = require("matplotlib.pyplot", "plot")
    rows, columns = len(images), 1 + len(named)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(1.7 * columns, 1.7 * rows), squeeze=False, layout="constrained"
    )
    for i, row in enumerate(axes):
        row[0].imshow(_plane("image", images[i]), cmap="gray")
        if i < len(titles):
            row[0].set_ylabel(titles[i], fontsize=7)
        for ax, (name, one) in zip(row[1:], named.items(), strict=True):
            ax.imshow(overlay(images[i], one[i], power=powers[name]))
        for ax in row:
            ax.set_xticks([])
            ax.set_yticks([])
    axes[0][0].set_title("image", fontsize=8)
    for ax, (name, own) in zip(axes[0][1:], powers.items(), strict=True):
        ax.set_title(name if own == 1 else f"{name}, power {own:.2g}", fontsize=8)
    return figure


def _plane(name: str, values: Any) -> NDArray[np.float64]:
    """As (h, w), the mean over channels."""
    found = floats(name, values)
    if found.ndim not in (2, 3):
        raise InputError(f"the {name} has the shape {found.shape}: give (h, w) or (c, h, w)")
    return found.mean(0) if found.ndim == 3 else found


def _batch(name: str, values: Any) -> None:
    if getattr(values, "ndim", 0) not in (3, 4):
        raise InputError(f"{name} must be a tensor or an array of (n, h, w) or (n, c, h, w)")
