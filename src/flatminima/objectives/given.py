"""The objective that a user's loss means."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import FunctionType
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.nn.modules.loss import _Loss

from flatminima.errors import InputError
from flatminima.objectives.supervised import Batch, Objective, Supervised

Loss: TypeAlias = "Objective | _Loss | None"
"""One of torch's losses, an objective, or None for a model that returns its own loss."""


class OwnLoss:
    """`model(**batch).loss`, the loss that the model itself returns: those of transformers do."""

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss of `model` on `batch`.

        Raises:
            InputError: the batch is no mapping, or the model returned no loss for it.
        """
        if not isinstance(batch, Mapping):
            raise InputError(
                f"the batch is a {type(batch).__name__}, and loss=None calls model(**batch): "
                "give batches that are mappings, with labels, or a loss"
            )
        loss: Any = getattr(model(**batch), "loss", None)
        if not isinstance(loss, Tensor):
            raise InputError(
                f"the model returned no loss for a batch with {', '.join(map(str, batch))}: "
                "put the labels into the batch, or give a loss"
            )
        return loss


def as_objective(loss: Any) -> Objective:
    """The objective `(model, batch) -> scalar` that is meant.

    Args:
        loss: A loss of torch, a module or a function of `torch.nn.functional`, is the criterion of
            `Supervised`; None is `OwnLoss`; all else is taken for an objective.

    Raises:
        InputError: it is none of these; or a criterion that is no mean.
    """
    reduction = getattr(loss, "reduction", "mean")
    if reduction != "mean":
        raise InputError(f"the loss has reduction={reduction!r}: give one with reduction='mean'")
    if loss is None:
        return OwnLoss()
    if not callable(loss):
        raise InputError(
            f"the loss is a {type(loss).__name__}: give a loss of torch, such as "
            "torch.nn.CrossEntropyLoss(), or a function (model, batch) -> loss"
        )
    functional = getattr(loss, "__module__", "") == "torch.nn.functional"
    if isinstance(loss, _Loss) or functional:
        return Supervised(loss)
    if isinstance(loss, FunctionType | partial):
        return _Called(loss)
    objective: Objective = loss
    return objective


class _Called:
    """A user's function, whose first error says how it was called."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, model: nn.Module, batch: Batch) -> Any:
        """The loss of `model` on `batch`."""
        try:
            return self._function(model, batch)
        except (AttributeError, TypeError) as error:
            raise InputError(
                f"the loss is called as loss(model, batch), and raised {type(error).__name__}: "
                f"{error}. If it is a function of (outputs, targets), give "
                "flatminima.Supervised(loss)"
            ) from error
