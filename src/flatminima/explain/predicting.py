"""What a model says of inputs, and what is said of inputs that it cannot take."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from flatminima.errors import InputError
from flatminima.explain.samples import shape_of
from flatminima.objectives.supervised import logits


def predicted(model: nn.Module, inputs: Any) -> Tensor:
    """The model's outputs of inputs, its logits where it gives more.

    Raises:
        InputError: inputs that the model cannot take, or outputs that are no tensor.
    """
    try:
        return logits(model, inputs)
    except InputError:
        raise
    except (RuntimeError, TypeError, ValueError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        mend = (
            "give what its forward takes, and a model that gives logits"
            if isinstance(error, TypeError)
            else "give them the size, the channels and the type that it was trained on"
        )
        raise InputError(
            f"the model cannot take inputs of the shape {shape_of(inputs)}: {lines[0]}; {mend}"
        ) from error


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
