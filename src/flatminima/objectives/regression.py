"""Losses of numbers."""

from __future__ import annotations

from torch import Tensor, nn

from flatminima.arguments import between
from flatminima.cards import Card
from flatminima.errors import InputError
from flatminima.objectives.cross_entropy import NONE
from flatminima.objectives.registry import register
from flatminima.objectives.supervised import Batch, inputs_and_targets, logits


def predictions(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """What a model predicts of each sample, and the target: two tensors of shape (samples,).

    Raises:
        InputError: the model gives more than one number for a sample, or the targets are none.
    """
    inputs, targets = inputs_and_targets(batch)
    outputs = logits(model, inputs)
    predicted = outputs[:, 0] if outputs.dim() == 2 and outputs.shape[1] == 1 else outputs
    if predicted.shape != targets.shape:
        raise InputError(
            f"the model gives outputs of shape {tuple(outputs.shape)} for targets of shape "
            f"{tuple(targets.shape)}: give it one output for each number"
        )
    return predicted, targets.to(predicted.dtype)


@register(
    Card(
        name="squared-error",
        title="Squared error",
        equation="s (f(x) - y)^2",
        gradients="1",
        buffers=NONE,
        strength="",
        suggested="",
        source="the loss of least squares",
        slot="objective",
        aliases=("mse",),
        tasks=("regression",),
    )
)
class SquaredError:
    r"""$\frac{s}{n} \sum_i (f(x_i) - y_i)^2$, in squared units of the label.

    Args:
        scale: s; theory often has 1/2 or 1/4.
    """

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = between("scale", scale, 0)

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss of `model` on `batch`, a scalar tensor."""
        return self.scale * nn.functional.mse_loss(*predictions(model, batch))


@register(
    Card(
        name="absolute-error",
        title="Absolute error",
        equation="|f(x) - y|",
        gradients="1",
        buffers=NONE,
        strength="",
        suggested="",
        source="the loss of the median",
        slot="objective",
        aliases=("l1", "mae"),
        tasks=("regression",),
    )
)
class AbsoluteError:
    r"""$\frac{1}{n} \sum_i |f(x_i) - y_i|$, in units of the label."""

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss of `model` on `batch`, a scalar tensor."""
        return nn.functional.l1_loss(*predictions(model, batch))


@register(
    Card(
        name="linear",
        title="Linear loss",
        equation="y f(x)",
        gradients="1",
        buffers=NONE,
        strength="",
        suggested="",
        source="for functions that are sums of terms",
        slot="objective",
        tasks=("cosines",),
    )
)
class LinearLoss:
    r"""$\frac{1}{n} \sum_i y_i f(x_i)$: a function given by its terms and their coefficients."""

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss of `model` on `batch`, a scalar tensor."""
        outputs, coefficients = predictions(model, batch)
        return (coefficients * outputs).mean()
