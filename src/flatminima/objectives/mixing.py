"""Objectives on mixed samples: mixup and cutmix."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributions import Beta

from flatminima.arguments import between
from flatminima.cards import Card
from flatminima.errors import InputError
from flatminima.objectives.cross_entropy import NONE
from flatminima.objectives.registry import register
from flatminima.objectives.supervised import Batch, class_loss, inputs_and_targets, logits

NO_NUMBERS = """{name} mixes the numbers of two inputs, and these are {what}: use it on images or \
vectors, or take label-smoothing for other inputs"""


class _Mixed:
    """The loss of a batch mixed with itself in another order, in training mode.

    Random numbers are torch's global ones on the CPU, which the passes of a step share: so W + U
    and W - U see the same mixture.
    """

    name: str

    def __init__(self, alpha: float) -> None:
        self.alpha = between("alpha", alpha, 0)
        self._criterion: Callable[..., Tensor] = class_loss

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss of `model` on `batch`, a scalar tensor."""
        inputs, targets = inputs_and_targets(batch)
        if not model.training or self.alpha == 0:
            return self._criterion(logits(model, inputs), targets)
        if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
            what = "token ids or the like" if not isinstance(inputs, Tensor) else "whole numbers"
            raise InputError(NO_NUMBERS.format(name=self.name, what=what))
        share = Beta(self.alpha, self.alpha).sample().item()
        order = torch.randperm(len(inputs)).to(inputs.device)
        mixed, share = self.mix(inputs, inputs[order], share)
        outputs = logits(model, mixed)
        own, other = self._criterion(outputs, targets), self._criterion(outputs, targets[order])
        return share * own + (1 - share) * other

    def mix(self, inputs: Tensor, others: Tensor, share: float) -> tuple[Tensor, float]:
        """The mixture, and how much of it is of `inputs`."""
        raise NotImplementedError


@register(
    Card(
        name="mixup",
        title="Mixup",
        equation="l l(x', y) + (1 - l) l(x', y'), x' = l x + (1 - l) x', l ~ Beta(alpha, alpha)",
        gradients="1",
        buffers=NONE,
        strength="alpha",
        suggested="0.2",
        source="Zhang et al., 2018, arXiv 1710.09412",
        slot="objective",
    )
)
class Mixup(_Mixed):
    r"""The loss at $\tilde x = \lambda x_i + (1 - \lambda) x_j$, its targets mixed likewise.

    $\lambda \ell(\tilde x, y_i) + (1 - \lambda) \ell(\tilde x, y_j)$ with one
    $\lambda \sim \mathrm{Beta}(\alpha, \alpha)$ for the batch and j a permutation of it, in
    training mode; in evaluation mode the plain cross-entropy.

    Source: Zhang et al., mixup: Beyond Empirical Risk Minimization, 2018, arXiv 1710.09412.

    Args:
        alpha: Of the Beta distribution, 0 (no mixing) or above.

    Raises:
        InputError: alpha below 0; at a call, inputs that cannot be mixed.
    """

    name = "mixup"

    def __init__(self, alpha: float = 0.2) -> None:
        super().__init__(alpha)

    def mix(self, inputs: Tensor, others: Tensor, share: float) -> tuple[Tensor, float]:
        """The convex combination."""
        return share * inputs + (1 - share) * others, share


@register(
    Card(
        name="cutmix",
        title="CutMix",
        equation="as mixup, x' = x with a rectangle of 1 - l of its area from another image",
        gradients="1",
        buffers=NONE,
        strength="alpha",
        suggested="1",
        source="Yun et al., 2019, arXiv 1905.04899",
        slot="objective",
    )
)
class CutMix(_Mixed):
    r"""The loss of images with a rectangle from another, the targets weighted by area.

    The rectangle has $1 - \lambda$ of the area, $\lambda \sim \mathrm{Beta}(\alpha, \alpha)$, and
    its centre is anywhere; what sticks out of the image is cut off, and the weight of the targets
    is that of the area that was replaced. In training mode; in evaluation mode the plain
    cross-entropy. For models that are given images, so not for `mlp`, which is given vectors.

    Source: Yun et al., CutMix: Regularization Strategy to Train Strong Classifiers, 2019, arXiv
    1905.04899.

    Args:
        alpha: Of the Beta distribution, 0 (no mixing) or above.

    Raises:
        InputError: alpha below 0; at a call, inputs that are no images of shape (n, c, h, w).
    """

    name = "cutmix"

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__(alpha)

    def mix(self, inputs: Tensor, others: Tensor, share: float) -> tuple[Tensor, float]:
        """The images with a rectangle of the others."""
        if inputs.dim() != 4:
            shape = tuple(inputs.shape)
            raise InputError(
                f"cutmix cuts rectangles out of images (n, c, h, w), and these have the shape "
                f"{shape}: use mixup"
            )
        rows, columns = _interval(inputs.shape[2], share), _interval(inputs.shape[3], share)
        mixed = inputs.clone()
        mixed[:, :, rows, columns] = others[:, :, rows, columns]
        area = (rows.stop - rows.start) * (columns.stop - columns.start)
        return mixed, 1 - area / (inputs.shape[2] * inputs.shape[3])


def _interval(length: int, share: float) -> slice:
    """A side of the rectangle, sqrt(1 - share) of the length about a random centre."""
    half = int(length * (1 - share) ** 0.5) // 2
    centre = int(torch.randint(length, ()).item())
    return slice(max(0, centre - half), min(length, centre + half))
