"""Cross-entropy corrected for label noise of a known rate."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flatminima.arguments import between
from flatminima.cards import Card
from flatminima.errors import InputError
from flatminima.objectives.cross_entropy import NONE
from flatminima.objectives.memory import in_full
from flatminima.objectives.registry import register
from flatminima.objectives.supervised import (
    Batch,
    Supervised,
    check_classes,
    inputs_and_targets,
    logits,
)


@register(
    Card(
        name="backward-correction",
        title="Backward-corrected loss",
        equation="-sum_z (T^-1)_yz log p_z, T the matrix of the label noise",
        gradients="1",
        buffers=NONE,
        strength="noise",
        suggested="the part of wrong labels",
        source="Patrini et al., 2017, arXiv 1609.03683",
        slot="objective",
    )
)
class BackwardCorrection(Supervised):
    r"""$-\sum_z (T^{-1})_{yz} \log p_z$: on the mean over the noise, the loss of the true labels.

    $T_{zy} = P(\text{label } y \mid \text{class } z)$, symmetric: $1 - q$ on the diagonal and
    $q/(K - 1)$ beside it. Since it has negative weights it is not bounded below; it is for training
    that ends early, or with regularization. In training mode; in evaluation mode the plain
    cross-entropy.

    Source: Patrini et al., Making Deep Neural Networks Robust to Label Noise, 2017, arXiv
    1609.03683.

    Args:
        noise: q, the part of the labels that is wrong, from 0 to below (K - 1)/K: a label drawn
            anew among all K classes is wrong with that probability, and says nothing. Of labels
            drawn anew with probability r, q is r (K - 1)/K.

    Raises:
        InputError: q is no number from 0 to 1; at a call, q is (K - 1)/K or more.
    """

    def __init__(self, noise: float) -> None:
        super().__init__()
        self.noise = between("noise", noise, 0, 1)

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss of `model` on `batch`, a scalar tensor."""
        if not model.training:
            return super().__call__(model, batch)
        inputs, targets = inputs_and_targets(batch)
        outputs = in_full(logits(model, inputs))
        check_classes(targets)
        inverse = self.inverse(outputs.shape[1]).to(outputs)
        return -(inverse[targets] * outputs.log_softmax(1)).sum(1).mean()

    def inverse(self, classes: int) -> Tensor:
        """$T^{-1}$ for so many classes, float64.

        Raises:
            InputError: labels of that noise say nothing of the true ones, or are against them.
        """
        q, most = self.noise, (classes - 1) / classes
        if q > most - 1e-6:
            raise InputError(
                f"noise is {q:g}, and at {most:g} a label among {classes} classes says nothing of "
                "the true one: give the part of labels that is wrong, which is less (of labels "
                f"drawn anew with probability r it is {most:g} r)"
            )
        matrix = torch.full((classes, classes), q / (classes - 1), dtype=torch.float64)
        inverse: Tensor = torch.linalg.inv(matrix.fill_diagonal_(1 - q))
        return inverse
