"""What a model's head is given: the features of a sample, of any model, by a hook."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from flatminima.errors import InputError, unknown

WRAPPERS = ("module.", "_orig_mod.")
"""What wrappers (DDP, compiled modules) put before the names of modules."""


class Features:
    """The features of the last forward pass."""

    def __init__(self) -> None:
        self._seen: Tensor | None = None

    def saw(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """A forward pre-hook; of several modules, the one that ran last counts."""
        if inputs and isinstance(inputs[0], Tensor):
            self._seen = inputs[0]

    def of(self, samples: int) -> Tensor:
        """The features, one row a sample, shape (samples, D).

        Raises:
            InputError: the head did not run, or is not given one row for each sample.
        """
        if self._seen is None:
            raise InputError(
                "the layer whose input is to be taken for the features did not run, or was given "
                "no tensor: name another by layer="
            )
        if len(self._seen) != samples:
            raise InputError(
                f"the layer whose input is to be taken for the features is given "
                f"{len(self._seen)} rows for {samples} samples: name another by layer="
            )
        return self._seen.flatten(1)


@contextmanager
def features_of(model: nn.Module, layer: str = "") -> Iterator[Features]:
    """Look at what enters a layer, while the context is open.

        with features_of(model) as features:
            outputs = model(x)
        features.of(len(x))

    The features are part of the graph, so a loss on them trains the layers below.

    Args:
        model: Any model; what wraps it (DDP, `torch.compile`) does not matter.
        layer: The name of the layer, as `named_modules` has it. Default: the linear layer that
            runs last, the head of most models.

    Raises:
        InputError: there is no such layer, or no linear one.
    """
    modules = {_unwrapped(name): module for name, module in model.named_modules() if name}
    if layer and layer not in modules:
        raise unknown("layer", layer, modules)
    chosen = [modules[layer]] if layer else [m for m in modules.values() if _is_linear(m)]
    if not chosen and _is_linear(model):
        chosen = [model]
    if not chosen:
        raise InputError(
            "the model has no linear layer, whose input would be its features: name a layer by "
            "layer="
        )
    features = Features()
    hooks = [module.register_forward_pre_hook(features.saw) for module in chosen]
    try:
        yield features
    finally:
        for hook in hooks:
            hook.remove()


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)


def _unwrapped(name: str) -> str:
    for prefix in WRAPPERS:
        name = name.removeprefix(prefix)
    return name
