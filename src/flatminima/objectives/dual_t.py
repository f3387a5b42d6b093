"""Cross-entropy corrected for label noise whose matrix is estimated from the run itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from flatminima.arguments import whole
from flatminima.cards import Card
from flatminima.errors import InputError, unknown
from flatminima.objectives.memory import Memory, in_full
from flatminima.objectives.registry import register
from flatminima.objectives.remembering import (
    Remembering,
    Setting,
    sample_index,
    without_index,
)
from flatminima.objectives.supervised import Batch, check_classes, inputs_and_targets, logits

CORRECTIONS = ("backward", "forward")
ANCHOR = 0.97
"""Quantile of a class's probabilities; what is above is too sure of itself to be its anchor."""
NONE_SEEN = """dual-t has seen no sample in the {start} epochs before it estimates the noise: all \
of their steps were skipped; lower --lr, or give a larger start"""


@register(
    Card(
        name="dual-t",
        title="Backward-corrected loss, Dual-T",
        equation="-sum_z (T^+)_yz log p_z, T estimated after `start` epochs",
        gradients="1",
        buffers="none; a number for each sample and class",
        strength="start",
        suggested="a third of the epochs",
        source="Yao et al., 2020, arXiv 2006.07805; Patrini et al., 2017, arXiv 1609.03683",
        slot="objective",
    )
)
class DualT(Remembering):
    r"""The backward-corrected loss with a matrix of label noise that the run estimates.

    For `start` epochs the cross-entropy; then $-\sum_z (T^+)_{yz} \log p_z$, with
    $T_{zy} = P(\text{label } y \mid \text{class } z)$ estimated once, from what the model last
    said of each training sample, by `dual_t`. As with `BackwardCorrection` that loss has negative
    weights and is not bounded below, and an estimate that is nearly singular makes a run diverge;
    `correction="forward"`, $-\log \sum_z p_z T_{zy}$, does not. In evaluation mode the plain
    cross-entropy. Batches are mappings that say with "index" which samples they hold. A run leaves
    T in `transition.json`.

    Source: Yao, Liu, Han, Gong, Deng, Niu, Sugiyama, Dual T: Reducing Estimation Error for
    Transition Matrix in Label-noise Learning, 2020, arXiv 2006.07805; the correction is that of
    Patrini et al., 2017, arXiv 1609.03683. The anchors' quantile is that of the code released with
    the NSO paper.

    Args:
        start: Epochs before T is estimated, 1 or above and less than the run has.
        correction: "backward" or "forward".

    Raises:
        InputError: `start` is out of its range; an unknown correction; at a call, batches without
            "index".
    """

    transition: Tensor

    def __init__(self, start: int, correction: str = "backward") -> None:
        super().__init__()
        if correction not in CORRECTIONS:
            raise unknown("correction", correction, CORRECTIONS)
        self.correction = correction
        self.start = whole("start", start, 1, "epochs")
        self._memory: Memory | None = None
        self._steps = self._at = 0

    def begin(self, setting: Setting) -> None:
        """Make room for a run.

        Raises:
            InputError: the run ends before T would be estimated.
        """
        if self.start >= setting.epochs:
            raise InputError(
                f"dual-t estimates the noise after {self.start} epochs, and the run has "
                f"{setting.epochs}: give a smaller start"
            )
        self._memory = Memory(setting.samples, setting.outputs + 1)
        self._steps, self._at = 0, self.start * setting.steps_per_epoch
        nothing = torch.full((setting.outputs, setting.outputs), torch.nan)
        self.register_buffer("transition", nothing)

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss of `model` on `batch`, a scalar tensor."""
        inputs, targets = inputs_and_targets(without_index(batch))
        check_classes(targets)
        outputs = in_full(logits(model, inputs))
        if not model.training:
            return cross_entropy(outputs, targets)
        memory = self._begun()
        if self._steps < self._at:
            seen = torch.cat([outputs.detach().softmax(1), targets[:, None].to(outputs)], dim=1)
            memory.note(sample_index(batch), seen)
            return cross_entropy(outputs, targets)
        if self.correction == "forward":
            ways = outputs.log_softmax(1) + self.transition.to(outputs).T[targets].log()
            return -torch.logsumexp(ways, dim=1).mean()
        inverse = torch.linalg.pinv(self.transition.double()).to(outputs)
        corrected: Tensor = -(inverse[targets] * outputs.log_softmax(1)).sum(1).mean()
        return corrected

    @torch.no_grad()
    def after_step(self, taken: bool = True) -> None:
        """Remember what the step's passes predicted; estimate T when it is time."""
        memory = self._begun()
        if self._steps < self._at:
            index, seen = memory.noted()
            if taken:
                memory.write(index, seen)
        self._steps += 1
        if self._steps == self._at:
            rows = in_full(memory.rows)
            seen_at_all = rows[:, :-1].sum(1) > 0
            if not seen_at_all.any():
                raise InputError(NONE_SEEN.format(start=self.start))
            found = dual_t(rows[seen_at_all, :-1], rows[seen_at_all, -1].round().long())
            self.transition.copy_(found)

    def findings(self, targets: Tensor) -> dict[str, Any]:
        """The matrix, row by row: what labels each class gets."""
        if self._memory is None or not torch.isfinite(self.transition).all():
            return {}
        return {"transition": {"transition": self.transition.double().tolist()}}

    def get_extra_state(self) -> dict[str, int]:
        """How many steps were taken or skipped."""
        return {"steps": self._steps}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Take up after so many steps."""
        self._steps = state["steps"]

    def _begun(self) -> Memory:
        if self._memory is None:
            raise InputError("call begin(Setting(...)) before the first step")
        return self._memory


def dual_t(probabilities: Tensor, labels: Tensor) -> Tensor:
    r"""$T = T^\clubsuit T^\spadesuit$, the matrix of label noise as two that are easier to know.

    Row i of $T^\clubsuit$ is what the model says of the anchor of class i, the sample most
    probably of it (of those below the 97th percentile); row i of $T^\spadesuit$ is the part of
    each label among the samples predicted to be of class i, and of none the unit vector.

    Args:
        probabilities: Of each training sample, shape (n, classes).
        labels: As given, int64, shape (n,).

    Returns:
        Shape (classes, classes), rows that sum to 1.
    """
    classes = probabilities.shape[1]
    limits = torch.quantile(probabilities, ANCHOR, dim=0)
    kept = torch.where(probabilities > limits, 0.0, probabilities)
    first = probabilities[kept.argmax(dim=0)]
    predicted = one_hot(probabilities.argmax(dim=1), classes).to(probabilities)
    counts = predicted.T @ one_hot(labels, classes).to(probabilities)
    totals = counts.sum(dim=1, keepdim=True)
    unit = torch.eye(classes, dtype=counts.dtype, device=counts.device)
    second = torch.where(totals > 0, counts / totals.clamp_min(1), unit)
    return (first / first.sum(dim=1, keepdim=True)) @ second
