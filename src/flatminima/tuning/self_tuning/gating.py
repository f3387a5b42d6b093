"""Ordinary models made self-tuning, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flatminima.errors import InputError
from flatminima.tuning.self_tuning.gates import Gated, GatedConv2d, GatedLinear, Response

KINDS: dict[type[nn.Module], type[GatedLinear] | type[GatedConv2d]] = {
    nn.Linear: GatedLinear,
    nn.Conv2d: GatedConv2d,
}


def gate(model: nn.Module, knobs: int, *, center: bool = False, scaled: bool = False) -> nn.Module:
    """Replace the linear and convolution layers of a model by gated ones, in place.

    Each takes over its weight and bias as they are and adds a response, drawn from torch's global
    generator. Layers whose weight another layer also has, and frozen ones, stay as they are; so do
    subclasses of `nn.Linear` and `nn.Conv2d`, whose users may reach for the weight itself.

    Args:
        model: Of any architecture.
        knobs: H, how many knobs there are.
        center: Whether gates are given u - lambda. Then the model at home computes what it did
            before, bit for bit, and moving lambda alone does not change it. For pretrained models.
        scaled: Whether each layer has a learned factor of its ordinary part, from 1, as the
            released code for images has.

    Returns:
        The model; another module only if it is itself such a layer.

    Raises:
        InputError: no layer to gate.
    """
    response = Response()
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    found: dict[str, Gated] = {}
    made: dict[int, Gated] = {}
    # A layer that stands in two places is gated once.
    for name, module in model.named_modules(remove_duplicate=False):
        if type(module) not in KINDS or not isinstance(module, nn.Linear | nn.Conv2d):
            continue
        if not module.weight.requires_grad or owners[id(module.weight)] > 1:
            continue
        if id(module) not in made:
            kind: Any = KINDS[type(module)]
            made[id(module)] = kind(module, knobs, response, center=center, scaled=scaled)
            made[id(module)].train(module.training)
        found[name] = made[id(module)]
    if not found:
        raise InputError(
            "the model has no free nn.Linear or nn.Conv2d of its own: gates need one to answer "
            "to the knobs"
        )
    return _put(model, found)


def bake(model: nn.Module) -> nn.Module:
    """Make a gated model an ordinary one with the same outputs where the knobs stand, in place."""
    places = list(model.named_modules(remove_duplicate=False))
    baked = {id(m): m.baked() for _, m in places if isinstance(m, Gated)}
    return _put(model, {name: baked[id(m)] for name, m in places if id(m) in baked})


def gated_layers(model: nn.Module) -> dict[str, Gated]:
    """The gated layers of a model, by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, Gated)}


def response_of(model: nn.Module) -> Response:
    """What the gates of a model share.

    Raises:
        InputError: the model has none, or layers of two models are mixed.
    """
    found = {id(layer.response): layer.response for layer in gated_layers(model).values()}
    if len(found) != 1:
        raise InputError(
            "the model has no gated layers that share one response: make it by "
            "gate(model, len(knobs))"
        )
    return next(iter(found.values()))


def set_home(model: nn.Module, position: Tensor) -> None:
    """Tell every gated layer where the knobs stand.

    Raises:
        InputError: the gates are for another number of knobs.
    """
    for name, layer in gated_layers(model).items():
        if layer.home.shape != position.shape:
            raise InputError(
                f"the gates of {name or 'the model'} are for {len(layer.home)} knobs, and there "
                f"are {len(position)}: gate(model, {len(position)})"
            )
        with torch.no_grad():
            layer.home.copy_(position)


def _put(model: nn.Module, layers: dict[str, nn.Module] | dict[str, Gated]) -> nn.Module:
    for name, layer in layers.items():
        if not name:
            return layer
        place, _, own = name.rpartition(".")
        setattr(model.get_submodule(place), own, layer)
    return model
