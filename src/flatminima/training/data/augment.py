"""Random changes to training images, drawn from torch's global generator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flatminima.errors import require
from flatminima.training.data.encode import Encoding
from flatminima.training.data.examples import DataSet


def photo_augmentation(size: int) -> Any:
    """A random part of the image (8% to 100% of its area) scaled to `size`, then perhaps mirrored.

    Args:
        size: Side of the result, in pixels.

    Returns:
        A module from (n, c, h, w) in [0, 1] to (n, c, size, size).

    Raises:
        InputError: kornia is not installed.
    """
    kornia = require("kornia.augmentation", "vision")
    return kornia.ImageSequential(
        # "slice" scales only the chosen part; "resample" would warp the whole image without need.
        kornia.RandomResizedCrop((size, size), scale=(0.08, 1.0), cropping_mode="slice"),
        kornia.RandomHorizontalFlip(),
    )


def crop_augmentation(size: int) -> Any:
    """A random part of the image, half of its area or more, scaled to `size`; never mirrored.

    Args:
        size: Side of the result, in pixels.

    Returns:
        A module from (n, c, h, w) in [0, 1] to (n, c, size, size).

    Raises:
        InputError: kornia is not installed.
    """
    kornia = require("kornia.augmentation", "vision")
    return kornia.RandomResizedCrop((size, size), scale=(0.5, 1.0), cropping_mode="slice")


def jitter_augmentation() -> Any:
    """A small rotation (10 degrees), shift and scaling (10%): what leaves a digit the same digit.

    Returns:
        A module from (n, c, h, w) to the same shape.

    Raises:
        InputError: kornia is not installed.
    """
    kornia = require("kornia.augmentation", "vision")
    return kornia.RandomAffine(degrees=10.0, translate=(0.1, 0.1), scale=(0.9, 1.1), p=1.0)


def views_of(data: DataSet, encoding: Encoding) -> Callable[[Tensor], Tensor] | None:
    """Random changes to a batch of encoded images, as the augmentation of their data set has them.

    Args:
        data: Its files are cropped and mirrored, its arrays turned and shifted a little.
        encoding: Says how large images are.

    Returns:
        From images (n, c, h, w) to the same shape; None for what is no image.

    Raises:
        InputError: kornia is not installed.
    """
    if data.kind != "image":
        return None
    size = data.spec.image_size or encoding.size
    if isinstance(data.train.inputs, np.ndarray) or size is None:
        module = jitter_augmentation()
    else:
        module = photo_augmentation(size)

    def views(images: Tensor) -> Tensor:
        # Without autocast: kornia mixes the types of images and of the maps that it makes.
        with torch.autocast(images.device.type, enabled=False):
            changed: Tensor = module(images)
        return changed

    return views


def augmented(module: Any, images: Tensor) -> Tensor:
    """Apply an augmentation, clipped to [0, 1], where interpolation may overshoot."""
    result: Tensor = module(images)
    return result.clamp(0.0, 1.0)
