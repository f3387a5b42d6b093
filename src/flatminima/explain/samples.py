"""Inputs of a model as samples: counted, checked, cut up, and asked about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from flatminima.errors import InputError


def check(inputs: Any, pixel_range: tuple[float, float] | None) -> None:
    """Refuse inputs that a model cannot have been trained on.

    Raises:
        InputError: no samples; one image without its dimension of samples; images that are no
            finite numbers or out of the range.
    """
    tensor = first(inputs)
    if not len(tensor):
        raise InputError("there are no inputs: give at least one")
    if isinstance(inputs, Tensor) and tensor.dim() == 3:
        raise InputError(
            f"the images have the shape {shape_of(tensor)}: give (n, channels, height, width), "
            "one image as image[None]"
        )
    if image_size(inputs) is None:
        return
    if not tensor.is_floating_point():
        raise InputError(
            f"the images are {tensor.dtype}: give floating-point numbers, scaled as the model "
            "was trained (bytes: images.float() / 255)"
        )
    if not bool(tensor.isfinite().all()):
        raise InputError("the images hold numbers that are not finite: mend or leave them out")
    if pixel_range is None:
        return
    low, high = float(tensor.min()), float(tensor.max())
    if low < pixel_range[0] or high > pixel_range[1]:
        raise InputError(
            f"the pixels go from {low:g} to {high:g}, beyond {pixel_range}: scale them as "
            "the model was trained (bytes: images / 255), or say pixel_range=None"
        )


def targets(target: Any, count: int, device: torch.device) -> Tensor | None:
    """A class for each of the samples, int64 (count,), or None.

    Raises:
        InputError: not whole numbers, or not one for all or one a sample.
    """
    if target is None:
        return None
    try:
        found = torch.as_tensor(target)
    except (TypeError, ValueError, RuntimeError):
        found = torch.empty(0, 0)
    whole = not found.is_floating_point() and not found.is_complex() and found.dtype != torch.bool
    # Captum's lists of places in the output, of which rows of logits have one: [(1,), (0,)].
    if found.dim() == 2 and found.shape[1] == 1:
        found = found[:, 0]
    if not whole or found.dim() > 1 or (found.dim() == 1 and len(found) not in (1, count)):
        raise InputError(
            f"target is {target!r}: give the class as a whole number, one for all samples or one "
            f"for each of the {count}"
        )
    return found.to(device=device, dtype=torch.int64).expand(count)


def first(inputs: Any) -> Tensor:
    """The tensor that samples are counted in."""
    if isinstance(inputs, Mapping):
        chosen = inputs.get("pixel_values", next(iter(inputs.values()), None))
    else:
        chosen = inputs[0] if isinstance(inputs, (tuple, list)) and inputs else inputs
    if not isinstance(chosen, Tensor) or chosen.dim() < 2:
        raise InputError(
            f"inputs are {shape_of(inputs)}: give a tensor of samples, a tuple of such, or a "
            "mapping from names to them"
        )
    return chosen


def image_size(inputs: Any) -> tuple[int, int] | None:
    """Height and width of the inputs; None where they are no images."""
    shape = first(inputs).shape
    return (shape[2], shape[3]) if len(shape) == 4 else None


def mask(inputs: Any) -> Tensor | None:
    """Which tokens count, bool (n, 1, 1, tokens); None where all do."""
    found = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    return found[:, None, None].bool() if isinstance(found, Tensor) and found.dim() == 2 else None


def kept(values: Tensor, counts: Tensor | None) -> Tensor:
    """The values of a map, 0 at tokens that do not count."""
    if counts is None or counts.shape[-1] != values.shape[-1]:
        return values
    return torch.where(counts, values, torch.zeros_like(values))


def rows(inputs: Any, start: int, stop: int, count: int) -> Any:
    """The inputs of some of `count` samples; what has not one entry a sample stays whole."""
    if isinstance(inputs, Tensor):
        return inputs[start:stop] if inputs.dim() and len(inputs) == count else inputs
    if isinstance(inputs, Mapping):
        return {name: rows(value, start, stop, count) for name, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return tuple(rows(value, start, stop, count) for value in inputs)
    return inputs


def shape_of(inputs: Any) -> Any:
    """The shapes of inputs, for people."""
    if isinstance(inputs, Tensor):
        return tuple(inputs.shape)
    if isinstance(inputs, Mapping):
        return {name: shape_of(value) for name, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return [shape_of(value) for value in inputs]
    return type(inputs).__name__
