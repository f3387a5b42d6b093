"""Taking parametrizations off a model, also where it is a copy of one that keeps them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from torch import nn
from torch.nn.utils import parametrize


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
