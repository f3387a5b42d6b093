"""Weights that stay near those that training began with: by a penalty, or by projection."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from flatminima.arguments import above, between, truth
from flatminima.cards import Card
from flatminima.errors import InputError, unknown
from flatminima.objectives import Batch, Objective
from flatminima.reparam.registry import register
from flatminima.reparam.slot import Reparam

NORMS = ("frobenius", "rows")
SOURCE = "Gouk, Hospedales, Pontil, 2021, arXiv 2002.08253; Zhang, Li, Ju, 2024, arXiv 2306.08553"


def matrices(model: nn.Module) -> dict[str, nn.Parameter]:
    """The free parameters that distances are about: those of two dimensions and more."""
    return {n: p for n, p in model.named_parameters() if p.requires_grad and p.dim() > 1}


class _Near(Reparam):
    """Remembers where training began; one copy of the weights of two dimensions and more."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._free = matrices(model)
        if not self._free:
            raise InputError("the model has no free weight of two dimensions to keep near")
        self._start = {name: p.detach().clone() for name, p in self._free.items()}

    @torch.no_grad()
    def distances(self) -> dict[str, float]:
        """The Frobenius distance of each weight from where it began."""
        return {n: torch.linalg.norm(p - self._at(n)).item() for n, p in self._free.items()}

    def _at(self, name: str) -> Tensor:
        """W0, where the weights are now."""
        parameter = self._free[name]
        if self._start[name].device != parameter.device:
            self._start[name] = self._start[name].to(parameter.device)
        return self._start[name]


@register(
    Card(
        name="distance-penalty",
        title="Distance penalty",
        equation="f + weight sum_l ||W_l - W_l^0||_F^2",
        gradients="0",
        buffers="1",
        strength="weight",
        suggested="0.01",
        source=SOURCE,
        slot="reparam",
    )
)
class DistancePenalty(_Near):
    r"""$f(W) + w \sum_l \lVert W_l - W_l^0 \rVert_F^2$, $W^0$ the weights that training began with.

    The sum is over free weights of two dimensions and more; biases and norms are free. It is part
    of the loss in each pass, so a method that moves the weights feels it where they are, as in the
    code released with the NSO paper. In training mode.

    Source: Gouk, Hospedales, Pontil, Distance-Based Regularisation of Deep Networks for
    Fine-Tuning, 2021, arXiv 2002.08253, who compare it with the constraint.

    Args:
        model: Its weights as training begins; they are copied.
        weight: w, 0 or above.

    Raises:
        InputError: a weight below 0; a model without weights of two dimensions.
    """

    def __init__(self, model: nn.Module, weight: float) -> None:
        super().__init__(model)
        self.weight = between("weight", weight, 0)

    def objective(self, objective: Objective) -> Objective:
        """The objective and the penalty."""

        def penalized(model: nn.Module, batch: Batch) -> Tensor:
            loss = objective(model, batch)
            return loss + self.weight * self.penalty() if model.training else loss

        return penalized

    def penalty(self) -> Tensor:
        """The sum of squared distances, a scalar tensor."""
        parts = [(p - self._at(name)).square().sum() for name, p in self._free.items()]
        return torch.stack(parts).sum()


@register(
    Card(
        name="distance-constraint",
        title="Distance constraint",
        equation="||W_l - W_l^0|| <= radius, by projection after each step",
        gradients="0",
        buffers="1",
        strength="radius",
        suggested="half the distance that plain training goes",
        source=SOURCE,
        slot="reparam",
    )
)
class DistanceConstraint(_Near):
    r"""$\lVert W_l - W_l^0 \rVert \le R_l$ for each weight, by projection after each step.

    $\Delta \leftarrow \Delta \min(1, R / \lVert \Delta \rVert)$ with $\Delta = W_l - W_l^0$, for
    free weights of two dimensions and more. With `norm="rows"` the norm is the largest $\ell_1$
    norm of a row (output unit), and each row is scaled by itself. Not here: the factors that the
    released code of the NSO paper has for single layers, and its clipping of BatchNorm.

    Source: Gouk, Hospedales, Pontil, Distance-Based Regularisation of Deep Networks for
    Fine-Tuning, 2021, arXiv 2002.08253.

    Args:
        model: Its weights as training begins; they are copied.
        radius: R, above 0.
        relative: Whether R is in parts of the norm of $W_l^0$.
        norm: "frobenius" or "rows".

    Raises:
        InputError: a radius not above 0; an unknown norm; a model without weights of two
            dimensions.
    """

    def __init__(
        self,
        model: nn.Module,
        radius: float,
        relative: bool = False,
        norm: Literal["frobenius", "rows"] = "frobenius",
    ) -> None:
        super().__init__(model)
        if norm not in NORMS:
            raise unknown("norm", norm, NORMS)
        self.radius = above("radius", radius)
        self.relative, self.norm = truth("relative", relative), norm

    @torch.no_grad()
    def after_step(self) -> None:
        """Project the weights."""
        for name, parameter in self._free.items():
            start = self._at(name)
            moved = (parameter - start).flatten(1)
            whole, base = self._size(moved), self._size(start.flatten(1))
            most = self.radius * base if self.relative else torch.full_like(base, self.radius)
            # Not a bit is moved of what is inside.
            factor = torch.where(whole > most, most / whole, 1.0)
            if (factor < 1).any():
                parameter.copy_(start + (moved * factor).view_as(parameter))

    def _size(self, rows: Tensor) -> Tensor:
        if self.norm == "rows":
            return rows.abs().sum(1, keepdim=True)
        whole: Tensor = torch.linalg.norm(rows)
        return whole.reshape(1, 1)
