"""Gradients that are dropped at random where they conflict with those of another loss."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from flatminima.arguments import between


def keep_probability(gradient: Tensor, reference: Tensor) -> Tensor:
    r"""1 where a and b do not differ in sign, else $|a| / (|a| + |b|)$; elementwise.

    The closed form of $(1 + \mathrm{sign}(a) (a + b) / (|a| + |b|)) / 2$. The released code guards
    the division with 1e-8, which this form does not need, so that gradients of any scale count.

    Args:
        gradient: a.
        reference: b, like a.
    """
    size = gradient.abs()
    against = gradient.sign() * reference.sign() < 0
    odds = size / (size + reference.abs())
    # Where b is not finite nothing can be said, and a loss that is scaled may be lowered.
    return torch.where(against | ~reference.isfinite(), odds, torch.ones_like(odds))


def dropped(gradient: Tensor, reference: Tensor, strength: float, uniform: Tensor) -> Tensor:
    r"""$(1 - l + l \, 1[P > U]) \, a$ with P as in `keep_probability`.

    Args:
        gradient: a, the only one that is followed.
        reference: b, which decides.
        strength: l, from 0 (a is left as it is) to 1.
        uniform: U, numbers in [0, 1), like a.
    """
    kept = keep_probability(gradient, reference)
    factor = (1 - strength) + strength * (kept > uniform).to(gradient.dtype)
    return torch.where(kept.isnan(), kept, factor) * gradient


def gradient_dropout(
    params: Iterable[Tensor],
    task_loss: Tensor,
    ref_loss: Tensor,
    strength: float = 1.0,
    generator: torch.Generator | None = None,
) -> None:
    r"""Write into `.grad` the gradient of a task, dropped where it conflicts with a reference.

    With $a = \nabla L_{task}$ and $b = \nabla L_{ref}$, elementwise,
    $g = (1 - l + l \, 1[P > U]) \, a$, $P = |a| / (|a| + |b|)$ where a and b differ in sign and 1
    elsewhere, U uniform in [0, 1). What is in `.grad` is replaced. Two backward passes; the graphs
    are freed.

    Source: Zheng et al., Regularized Mask Tuning, ICCV 2023, arXiv 2307.15049.

    Args:
        params: What a gradient is written for; one that the task does not use gets None.
        task_loss: A scalar.
        ref_loss: A scalar; it may share the graph of `task_loss`.
        strength: l, from 0 to 1.
        generator: Draws U, on the parameters' device; default torch's.

    Raises:
        InputError: a strength that is no number from 0 to 1.
    """
    strength = between("strength", strength, 0, 1)
    own = list(params)
    reference = torch.autograd.grad(ref_loss, own, retain_graph=True, allow_unused=True)
    task = torch.autograd.grad(task_loss, own, allow_unused=True)
    for parameter, a, b in zip(own, task, reference, strict=True):
        parameter.grad = a
        if a is not None and b is not None:
            uniform = torch.rand(a.shape, generator=generator, device=a.device, dtype=a.dtype)
            parameter.grad = dropped(a, b, strength, uniform)
