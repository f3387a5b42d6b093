"""The layers of a model that a map is made of: named, matched, or chosen."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from flatminima.errors import InputError, unknown
from flatminima.objectives.supervised import logits

INPUT = "input"
"""The name of the place before the first layer, in models that have no layer of this name."""

MOST = 4
"""Layers that are chosen where none are named."""


def named_layers(model: nn.Module, wanted: str | Iterable[str]) -> list[str]:
    """The layers that names or globs mean, in the model's order.

    Args:
        model: The model.
        wanted: Names as `model.named_modules()` has them, or globs (`*`, `?`, `[...]`); "input" for
            the place before the first layer.

    Raises:
        InputError: none given, or one that no layer has, with the nearest name that is.
    """
    known = [name for name, _ in model.named_modules() if name]
    patterns = [wanted] if isinstance(wanted, str) else list(wanted)
    if not patterns:
        raise InputError("layers is empty: name at least one layer")
    chosen: set[str] = set()
    for pattern in patterns:
        matched = fnmatch.filter(known, pattern)
        if not matched and pattern != INPUT:
            raise unknown("layer", pattern, known)
        chosen.update(matched or [INPUT])
    before = [INPUT] if INPUT in chosen and INPUT not in known else []
    return before + [name for name in known if name in chosen]


def first_tensor(output: Any) -> Tensor | None:
    """The tensor that a layer gives, or the first of several; None for anything else."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
        return output[0]
    return None


@torch.no_grad()
def default_layers(model: nn.Module, inputs: Any) -> list[str]:
    """Layers to look at where a user names none: up to `MOST`, from early to late.

    Of a convolutional network the last at each resolution above 1 x 1; of one on tokens, blocks
    spread over its depth without the last, behind which only the first token may count; of one
    that keeps no places, its input.

    Args:
        model: The model, in evaluation mode.
        inputs: One or a few samples, as the model takes them.
    """
    called: dict[str, tuple[int, tuple[int, ...]]] = {}
    twice: set[str] = set()

    def note(name: str, output: Any) -> None:
        found = first_tensor(output)
        if name in called:
            twice.add(name)
        if found is not None:
            called.pop(name, None)
            called[name] = (found.dim(), tuple(found.shape[2:]))

    handles = [
        module.register_forward_hook(lambda _m, _i, output, name=name: note(name, output))
        for name, module in model.named_modules()
        if name
    ]
    try:
        logits(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    seen = {name: shape for name, shape in called.items() if name not in twice}
    blocks = [name for name, (dims, _) in seen.items() if dims == 3 and _is_block(model, name)][:-1]
    if blocks:
        step = -(-len(blocks) // MOST)
        return blocks[::-1][::step][::-1]
    maps: dict[tuple[int, ...], str] = {}
    for name, (dims, shape) in seen.items():
        if dims == 4 and max(shape) > 1:
            maps.pop(shape, None)
            maps[shape] = name
    return list(maps.values())[-MOST:] or [INPUT]


def _is_block(model: nn.Module, name: str) -> bool:
    parent, _, own = name.rpartition(".")
    return own.isdigit() and isinstance(model.get_submodule(parent), (nn.ModuleList, nn.Sequential))
