"""Derivatives of gradients: many products on one graph, and what cannot be differentiated twice."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import Tensor

from flatminima.errors import InputError

_NO_SECOND_DERIVATIVE = re.compile(
    r"differentiate twice|double backward|double-backward|once_differentiable"
    r"|derivative for .* is not implemented|does not support higher order",
    re.IGNORECASE,
)


def rows_of_derivative(
    outputs: list[Tensor], inputs: list[Tensor], cotangents: list[Tensor], *, keep: bool
) -> tuple[Tensor | None, ...]:
    """The outputs' derivative in the inputs, transposed, times each row of the cotangents.

    Args:
        outputs: What is differentiated.
        inputs: In what.
        cotangents: For each output, shape (m, *output.shape).
        keep: Whether the graph is needed again.

    Returns:
        For each input, shape (m, *input.shape), or None where nothing depends on it.

    Raises:
        TwiceError: the outputs are derivatives, and of a function that has no second one.
    """
    batched = len(cotangents[0]) > 1
    try:
        found = torch.autograd.grad(
            outputs,
            inputs,
            cotangents if batched else [part[0] for part in cotangents],
            retain_graph=keep,
            allow_unused=True,
            is_grads_batched=batched,
        )
    except RuntimeError as error:
        if _NO_SECOND_DERIVATIVE.search(str(error)):
            raise TwiceError(str(error).splitlines()[0]) from error
        raise
    return found if batched else tuple(None if f is None else f[None] for f in found)


def check_twice(derivatives: Iterable[Tensor]) -> None:
    """Refuse derivatives that cannot be differentiated themselves.

    A custom function that is marked once_differentiable leaves an error in the graph, which torch
    passes over silently where it looks for the way to given inputs: the products would be wrong.

    Args:
        derivatives: What is to be differentiated again.

    Raises:
        TwiceError: there is such a function.
    """
    todo = [d.grad_fn for d in derivatives if d.grad_fn is not None]
    met = set(todo)
    while todo:
        node = todo.pop()
        if node.name().endswith("autograd::Error"):
            raise TwiceError("a custom function is marked once_differentiable")
        new = {parent for parent, _ in node.next_functions if parent is not None} - met
        met |= new
        todo += new


class TwiceError(InputError):
    """Torch cannot differentiate a gradient."""

    def __init__(self, reason: str, mend: str = "give Hessian(..., backend='differences')") -> None:
        super().__init__(f"torch has no second derivative here ({reason}): {mend}")
        self.reason = reason
