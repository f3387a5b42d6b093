"""What a model's head is given: the features of a sample, of any model, by a hook."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from flatminima.errors import InputError, unknown

WRAPPERS = ("module.", "_orig_mod.")
"""What wrappers (DDP, compiled modules) put before the names of modules."""

DID_NOT_RUN = """the layer whose input is to be taken for the features did not run, or was given \
no tensor: name another by layer="""


class Features:
    """The features of the last forward pass."""

    def __init__(self) -> None:
        self._seen: Tensor | None = None
        self._layer: nn.Module | None = None

    def saw(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """A forward pre-hook; of several modules, the one that ran last counts."""
        if inputs and isinstance(inputs[0], Tensor):
            self._seen, self._layer = inputs[0], module

    @property
    def layer(self) -> nn.Module:
        """The module that was given them.

        Raises:
            InputError: it did not run.
        """
        if self._layer is None:
            raise InputError(DID_NOT_RUN)
        return self._layer

    def of(self, samples: int) -> Tensor:
        """The features, one row a sample, shape (samples, D).

        Raises:
            InputError: the head did not run, or is not given one row for each sample.
        """
        if self._seen is None:
            raise InputError(DID_NOT_RUN)
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
            runs last, the head of most models. One that carries adapters (of peft) counts whole:
            what enters it are its features, not what enters the matrices inside.

    Raises:
        InputError: there is no such layer, or no linear one.
    """
    modules = {_unwrapped(name): module for name, module in model.named_modules() if name}
    if layer and layer not in modules:
        raise unknown("layer", layer, modules)
    chosen = [modules[layer]] if layer else _linear_layers(model)
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


def _linear_layers(model: nn.Module) -> list[nn.Module]:
    """Its linear layers; one that carries adapters counts whole, and nothing within it."""
    # By the names that peft gives them, for it need not be installed.
    adapted = hasattr(model, "adapter_layer_names") and hasattr(model, "base_layer")
    if isinstance(model.base_layer if adapted else model, nn.Linear):
        return [model]
    if adapted:
        return []
    found = [layer for child in model.children() for layer in _linear_layers(child)]
    return list(dict.fromkeys(found))


def _unwrapped(name: str) -> str:
    for prefix in WRAPPERS:
        name = name.removeprefix(prefix)
    return name
