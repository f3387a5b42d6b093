"""What layers gave and took in one forward pass, and the score's gradient there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flatminima.errors import InputError
from flatminima.explain.layers import INPUT, first_tensor
from flatminima.explain.predicting import predicted, scores
from flatminima.measure.untouched import check_recording, untouched
from flatminima.objectives.supervised import Supervised


@dataclass(frozen=True, eq=False)
class Record:
    """One layer in one pass.

    Attributes:
        output: What it gave, before anything overwrote it.
        inputs: What it took; its output where it took nothing that is a tensor.
        gradient: Of the score with respect to `output`.
    """

    output: Tensor
    inputs: Tensor
    gradient: Tensor


@contextmanager
def at_rest(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Evaluation mode, and parameters that need no gradient; afterwards all is as it was."""
    check_recording()
    needed = {name: p.requires_grad for name, p in model.named_parameters()}
    parameters = dict(model.named_parameters())
    with untouched(model, Supervised(), device), torch.enable_grad():
        try:
            for parameter in parameters.values():
                parameter.requires_grad_(False)
            yield
        finally:
            for name, needs in needed.items():
                parameters[name].requires_grad_(needs)


def record(
    model: nn.Module, layers: Sequence[str], inputs: Any, target: Tensor | None
) -> dict[str, Record]:
    """Run the model once, and take the gradient of each sample's score at each layer.

    What the layers give is handed on as a copy, so that a ReLU in place behind one does not
    overwrite what is recorded.

    Args:
        model: In evaluation mode.
        layers: Names of modules, or "input".
        inputs: As the model takes them.
        target: The class of each sample, (n,); None where the model gives one score a sample.

    Raises:
        InputError: a layer that was not called, or more than once, or that gives no tensor; inputs
            that the model cannot take.
    """
    outputs: dict[str, Tensor] = {}
    taken: dict[str, Tensor] = {}

    def leaf(value: Tensor) -> Tensor:
        return value if value.requires_grad else value.detach().clone().requires_grad_()

    def hook(name: str, given: tuple[Any, ...], output: Any) -> Any:
        found = first_tensor(output)
        if found is None or not found.is_floating_point():
            raise InputError(f"the layer {name!r} gives no tensor of numbers: name another layer")
        if name in outputs:
            raise InputError(
                f"the layer {name!r} is called more than once in a pass, so that its output is "
                "not one thing: name the layer around it, or one before or behind it"
            )
        kept = outputs[name] = leaf(found)
        first = first_tensor(given)
        taken[name] = kept if first is None else first.detach().clone()
        handed = kept.clone()
        return handed if isinstance(output, Tensor) else type(output)((handed, *output[1:]))

    modules = dict(model.named_modules())
    if INPUT in layers and INPUT not in modules:
        inputs, outputs[INPUT] = _with_leaf(inputs)
        taken[INPUT] = outputs[INPUT]
    handles = [
        modules[name].register_forward_hook(lambda _m, i, o, name=name: hook(name, i, o))
        for name in layers
        if name in modules
    ]
    try:
        score = scores(predicted(model, inputs), target).sum()
    finally:
        for handle in handles:
            handle.remove()
    for name in layers:
        if name not in outputs:
            raise InputError(f"the layer {name!r} is not called when the model runs: name another")
    kept = [outputs[name] for name in layers]
    gradients: Sequence[Tensor | None] = (
        torch.autograd.grad(score, kept, allow_unused=True)
        if score.requires_grad
        else [None] * len(kept)
    )
    found = {}
    for name, output, gradient in zip(layers, kept, gradients, strict=True):
        if gradient is None:
            raise InputError(f"the score does not depend on the layer {name!r}: name another")
        found[name] = Record(output.detach(), taken[name].detach(), gradient.detach())
    return found


def _with_leaf(inputs: Any) -> tuple[Any, Tensor]:
    """The inputs with a leaf in place of their numbers, and the leaf."""
    if isinstance(inputs, Tensor) and inputs.is_floating_point():
        leaf = inputs.detach().clone().requires_grad_()
        return leaf.clone(), leaf
    if isinstance(inputs, Mapping):
        for name, value in inputs.items():
            if isinstance(value, Tensor) and value.is_floating_point():
                leaf = value.detach().clone().requires_grad_()
                return {**inputs, name: leaf.clone()}, leaf
    if isinstance(inputs, (tuple, list)) and isinstance(inputs[0], Tensor):
        first, leaf = _with_leaf(inputs[0])
        return (first, *inputs[1:]), leaf
    raise InputError("these inputs are no numbers that have a gradient: name a layer, not 'input'")
