"""Cross-entropy, on the labels as they are or smoothed."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from flatminima.arguments import between
from flatminima.cards import Card
from flatminima.objectives.registry import register
from flatminima.objectives.supervised import Batch, Supervised, class_loss

NONE = "none beyond the pass's"


@register(
    Card(
        name="cross-entropy",
        title="Cross-entropy",
        equation="-log p_y",
        gradients="1",
        buffers=NONE,
        strength="",
        suggested="",
        source="the usual objective of classification",
        slot="objective",
        aliases=("ce",),
    )
)
class CrossEntropy(Supervised):
    r"""$-\log p_y$, the mean over the batch."""

    def __init__(self) -> None:
        super().__init__()


@register(
    Card(
        name="label-smoothing",
        title="Label smoothing",
        equation="(1 - alpha) (-log p_y) + alpha mean_c (-log p_c)",
        gradients="1",
        buffers=NONE,
        strength="alpha",
        suggested="0.2",
        source="Szegedy et al., 2016, arXiv 1512.00567",
        slot="objective",
    )
)
class LabelSmoothing(Supervised):
    r"""$(1 - \alpha)(-\log p_y) + \frac{\alpha}{K} \sum_c (-\log p_c)$, the mean over the batch.

    In training mode only: what is measured of a model in evaluation mode is its cross-entropy.

    Source: Szegedy et al., Rethinking the Inception Architecture, 2016, arXiv 1512.00567. The NSO
    paper's comparisons run it with alpha 0.2 and 0.4.

    Args:
        alpha: The part of the target that is spread over all classes, from 0 to 1.

    Raises:
        InputError: alpha out of its range.
    """

    def __init__(self, alpha: float = 0.2) -> None:
        super().__init__()
        self.alpha = between("alpha", alpha, 0, 1)
        self._smoothed = Supervised(partial(class_loss, label_smoothing=self.alpha))

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss of `model` on `batch`, a scalar tensor."""
        return self._smoothed(model, batch) if model.training else super().__call__(model, batch)
