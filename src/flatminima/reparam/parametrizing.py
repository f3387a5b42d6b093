"""Which weights can be parametrized, and taking parametrizations off again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from torch import nn
from torch.nn.utils import parametrize


def shared(model: nn.Module) -> set[int]:
    """The ids of parameters that two modules hold: one would not see what changes at the other."""
    holders: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            holders[id(parameter)] = holders.get(id(parameter), 0) + 1
    return {own for own, count in holders.items() if count > 1}


def parametrized(model: nn.Module, kind: type[nn.Module]) -> Iterator[tuple[str, nn.Module, str]]:
    """The tensors that a kind of parametrization is on: the module's name, it, and theirs."""
    for place, module in list(model.named_modules()):
        if parametrize.is_parametrized(module):
            for name, chain in list(cast(nn.ModuleDict, module.parametrizations).items()):
                if any(isinstance(part, kind) for part in chain.children()):
                    yield place, module, name


def remove(model: nn.Module, kind: type[nn.Module]) -> None:
    """Leave what each tensor with a kind of parametrization is now as an ordinary parameter."""
    for _, module, name in parametrized(model, kind):
        # torch gives a module a class of its own, deep copies share it, and removing the property
        # from it would take it from them all.
        cls = type(module)
        own = {k: v for k, v in vars(cls).items() if k not in ("__dict__", "__weakref__")}
        module.__class__ = type(cls.__name__, cls.__bases__, own)
        parametrize.remove_parametrizations(module, name)
