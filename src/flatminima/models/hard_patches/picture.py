"""Masks drawn on their images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flatminima.arguments import kind_of, tensor, whole
from flatminima.errors import InputError, require
from flatminima.models.hard_patches.model import MaskedViT
from flatminima.models.hard_patches.patches import unpatchify
from flatminima.objectives import HardPatchesMining, PatchOutput

HIDDEN = np.array([0.16, 0.36, 0.58])
"""The colour of a masked patch."""


@torch.no_grad()
def mask_plot(
    model: MaskedViT,
    images: Tensor,
    objective: HardPatchesMining | None = None,
    seed: int = 0,
) -> Any:
    """A figure: an image a column; below it a random mask, the predicted losses, the mask they
    give, and what the model makes of what that mask leaves over.

    Args:
        model: In any mode; it is drawn in evaluation mode and left as it was.
        images: Shape (n, c, h, w); each is stretched to the range of a picture.
        objective: Says how much is masked and what is looked at for it. Default: as its defaults.
        seed: Draws the masks.

    Returns:
        The matplotlib figure.

    Raises:
        InputError: no images, or images that the model does not take; matplotlib is not installed.
    """
    if not isinstance(model, MaskedViT):
        raise InputError(f"the model is {kind_of(model)}: give a MaskedViT")
    if not isinstance(objective, HardPatchesMining | None):
        raise InputError(f"the objective is {kind_of(objective)}: give a HardPatchesMining")
    if not len(tensor("images", images)):
        raise InputError("there is no mask to draw: give at least one image")
    objective = objective or HardPatchesMining()
    generator = torch.Generator().manual_seed(whole("seed", seed, 0))
    training = model.training
    model.eval()
    hardness = objective.hardness(model, images, generator)
    easy = objective.masker(hardness, 0.0, generator)
    hard = objective.masker(hardness, 1.0, generator)
    found: PatchOutput = model(images, hard)
    model.train(training)
    pixels = torch.where(hard[..., None], found.reconstruction, found.patches)
    rows = {
        "image": _pictures(images, images),
        "random mask": _hidden(_pictures(images, images), easy, model.patch),
        "predicted loss": _maps(hardness, model),
        "hard mask": _hidden(_pictures(images, images), hard, model.patch),
        "reconstruction": _pictures(
            unpatchify(pixels, model.patch, model.size, model.size), images
        ),
    }
    pyplot = require("matplotlib.pyplot", "plot")
    size = 1.1 * len(images) + 1.2, 1.15 * len(rows)
    figure, axes = pyplot.subplots(
        len(rows), len(images), figsize=size, squeeze=False, layout="constrained"
    )
    for row, (name, shown) in zip(axes, rows.items(), strict=True):
        for ax, one in zip(row, shown, strict=True):
            ax.imshow(one, cmap="viridis" if one.ndim == 2 else None, interpolation="nearest")
            ax.set_xticks([])
            ax.set_yticks([])
        row[0].set_ylabel(name, fontsize=8)
    return figure


def _pictures(images: Tensor, like: Tensor) -> NDArray[np.float64]:
    """Colours in [0, 1], (n, h, w, 3); stretched by the range of other images, one by one."""
    low, high = (like.double().flatten(1).aminmax(dim=1)[i].cpu().numpy() for i in (0, 1))
    shape = (-1, 1, 1, 1)
    width = np.where(high > low, high - low, 1.0).reshape(shape)
    found: NDArray[np.float64] = images.double().cpu().numpy()
    found = ((found - low.reshape(shape)) / width).clip(0, 1).transpose(0, 2, 3, 1)
    return found if found.shape[3] == 3 else found.mean(3, keepdims=True).repeat(3, axis=3)


def _hidden(pictures: NDArray[np.float64], mask: Tensor, patch: int) -> NDArray[np.float64]:
    rows = pictures.shape[1] // patch
    grid = mask.cpu().numpy().reshape(len(pictures), rows, -1)
    over = grid.repeat(patch, axis=1).repeat(patch, axis=2)[..., None]
    return np.where(over, HIDDEN, pictures)


def _maps(hardness: Tensor, model: MaskedViT) -> NDArray[np.float64]:
    side = model.size // model.patch
    found: NDArray[np.float64] = hardness.double().cpu().numpy()
    return found.reshape(-1, side, side)
