"""The layers of a model that a map is made of: named, matched, or chosen."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from flatminima.arguments import network
from flatminima.errors import InputError, unknown
from flatminima.explain.predicting import predicted

INPUT = "input"
"""The name of the place before the first layer, in models that have no layer of this name."""

Layers: TypeAlias = str | nn.Module | Iterable[str | nn.Module]
"""Names, globs or modules."""

MOST = 4
"""Layers that are chosen where none are named."""


def named_layers(model: nn.Module, wanted: Layers) -> list[str]:
    """The layers that names, globs or modules mean, in the model's order.

    Args:
        model: The model.
        wanted: Names as `model.named_modules()` has them, or globs (`*`, `?`, `[...]`); "input" for
            the place before the first layer; or modules of the model themselves.

    Raises:
        InputError: none given, or one that no layer has, with the nearest name that is; a module
            that is not part of the model, or is the model.
    """
    known = [name for name, _ in model.named_modules() if name]
    patterns = _listed(wanted)
    if not patterns:
        raise InputError("layers is empty: name at least one layer")
    chosen: set[str] = set()
    for pattern in patterns:
        if isinstance(pattern, nn.Module):
            chosen.add(_name_of(pattern, model))
            continue
        matched = fnmatch.filter(known, pattern)
        if not matched and pattern != INPUT:
            raise unknown("layer", pattern, known)
        chosen.update(matched or [INPUT])
    before = [INPUT] if INPUT in chosen and INPUT not in known else []
    return before + [name for name in known if name in chosen]


def _listed(wanted: Any) -> list[Any]:
    # A Sequential and a ModuleList are layers themselves, though they can be iterated over.
    if isinstance(wanted, (str, nn.Module)):
        return [wanted]
    found = list(wanted) if isinstance(wanted, Iterable) else [wanted]
    for one in found:
        if not isinstance(one, (str, nn.Module)):
            raise InputError(
                f"layers holds {one!r}: give names or globs of layers, or the modules themselves"
            )
    return found


def _name_of(layer: nn.Module, model: nn.Module) -> str:
    if layer is model:
        raise InputError("the layer is the whole model: give one of the layers in it")
    names: list[str] = [name for name, module in model.named_modules() if module is layer]
    if names:
        return names[0]
    raise InputError(
        f"the layer {type(layer).__name__} is not part of this model: give one of its own "
        "modules (of a copy of a model, those of the copy)"
    )


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

    Raises:
        InputError: inputs that the model cannot take.
    """
    network(model)
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
        predicted(model, inputs)
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
