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
from flatminima.explain.samples import shape_of
from flatminima.measure.untouched import check_recording, untouched
from flatminima.objectives.supervised import Supervised, logits


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
        score = scores(_forward(model, inputs), target).sum()
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


def scores(outputs: Tensor, target: Tensor | None) -> Tensor:
    """The logit of each sample's class, (n,).

    Raises:
        InputError: no target for several outputs, one that is out of range, or outputs of another
            shape.
    """
    if outputs.dim() == 1 or (outputs.dim() == 2 and outputs.shape[1] == 1 and target is None):
        return outputs.flatten()
    if outputs.dim() != 2:
        raise InputError(
            f"the model gives outputs of the shape {tuple(outputs.shape)}, and maps are for those "
            "of (samples, classes)"
        )
    if target is None:
        raise InputError(
            f"the model gives {outputs.shape[1]} outputs a sample: say which with target="
        )
    classes = outputs.shape[1]
    if len(target) and not 0 <= int(target.min()) <= int(target.max()) < classes:
        raise InputError(
            f"a target is {int(target.max()) if target.max() >= classes else int(target.min())}, "
            f"and the model has the classes 0 to {classes - 1}"
        )
    return outputs.gather(1, target.unsqueeze(1)).squeeze(1)


def _forward(model: nn.Module, inputs: Any) -> Tensor:
    try:
        return logits(model, inputs)
    except InputError:
        raise
    except (RuntimeError, ValueError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise InputError(
            f"the model cannot take inputs of the shape {shape_of(inputs)}: {lines[0]}; give them "
            "the size and the channels that it was trained on"
        ) from error


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
