"""Objectives that add a measure of sharpness to the loss, by derivatives of derivatives."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from flatminima.arguments import between
from flatminima.cards import Card
from flatminima.errors import InputError
from flatminima.objectives.registry import register
from flatminima.objectives.supervised import Batch, Supervised


class _Penalized(Supervised):
    """A loss and its penalty in training mode; the loss alone in evaluation mode."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = between("weight", weight, 0)

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss of `model` on `batch` and the penalty, a scalar tensor."""
        if not model.training or self.weight == 0 or not torch.is_grad_enabled():
            return super().__call__(model, batch)
        # The fused kernels of attention have no second derivative.
        with sdpa_kernel(SDPBackend.MATH):
            loss = super().__call__(model, batch)
        free = [parameter for parameter in model.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(loss, free, create_graph=True, allow_unused=True)
        pairs = [(p, g) for p, g in zip(free, gradients, strict=True) if g is not None]
        if not pairs:
            raise InputError("the loss depends on no free parameter: there is nothing to penalize")
        return loss + self.weight * self.penalty(pairs)

    def penalty(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """What is added, from parameters and their gradients."""
        raise NotImplementedError


@register(
    Card(
        name="gradient-norm",
        title="Gradient-norm penalty",
        equation="f + weight |grad f|^2",
        gradients="about 3",
        buffers="the graph of the gradient",
        strength="weight",
        suggested="0.01",
        source="Drucker and Le Cun, 1992; for weights Barrett and Dherin, 2021, arXiv 2009.11162",
        slot="objective",
    )
)
class GradientNorm(_Penalized):
    r"""$f + w \lVert \nabla f \rVert^2$ of the batch, in training mode.

    Gradient descent with step $\eta$ does so implicitly with $w = \eta/4$ (Barrett and Dherin,
    Implicit Gradient Regularization, 2021, arXiv 2009.11162). Cost: a backward pass through a
    backward pass, about 3 gradients. Gradients of frozen parameters do not count. Attention is
    computed by torch's plain kernel, for the fused ones have no second derivative.

    With several processes, or micro-batches, each takes the norm of its own samples' gradient, and
    the gradient of the step is the mean of theirs. That norm is larger on the mean than that of
    the whole batch, so w counts for more there.

    Args:
        weight: w, 0 or above.

    Raises:
        InputError: a weight below 0.
    """

    def __init__(self, weight: float) -> None:
        super().__init__(weight)

    def penalty(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """The squared norm of the gradient."""
        return torch.stack([g.square().sum() for _, g in pairs]).sum()


@register(
    Card(
        name="trace-penalty",
        title="Hessian-trace penalty",
        equation="f + weight z'Hz, z = +-1",
        gradients="about 5",
        buffers="the graphs of gradient and product",
        strength="weight",
        suggested="sigma^2/2, for what NSO does at sigma",
        source="Hutchinson, 1990",
        slot="objective",
    )
)
class TracePenalty(_Penalized):
    r"""$f + w\, z^\top H z$ of the batch with one Rademacher z, in training mode.

    On the mean over z it is $f + w \mathrm{Tr} H$: with $w = \sigma^2/2$ what NSO minimizes to
    second order, by third derivatives instead of two gradients, to compare with. z is drawn from
    torch's global generators, which the passes of a step share. Cost: about 5 gradients. Where a
    network has kinks, these derivatives miss the curvature there, which noise feels. Attention is
    computed by torch's plain kernel. It is a mean over samples, so two processes do what one does.

    Args:
        weight: w, 0 or above.

    Raises:
        InputError: a weight below 0.
    """

    def __init__(self, weight: float) -> None:
        super().__init__(weight)

    def penalty(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """z'Hz."""
        signs = [torch.randint_like(p, 2).mul_(2).sub_(1) for p, _ in pairs]
        along = torch.stack([(g * z).sum() for (_, g), z in zip(pairs, signs, strict=True)]).sum()
        products = torch.autograd.grad(
            along, [p for p, _ in pairs], create_graph=True, allow_unused=True
        )
        parts = [(h * z).sum() for h, z in zip(products, signs, strict=True) if h is not None]
        return torch.stack(parts).sum() if parts else along.new_zeros(())
