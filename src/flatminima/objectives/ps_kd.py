"""Progressive self-distillation: targets mixed with what the model said an epoch ago."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from flatminima.arguments import below, between, whole
from flatminima.cards import Card
from flatminima.errors import InputError
from flatminima.objectives.memory import Memory, check_storage
from flatminima.objectives.registry import register
from flatminima.objectives.remembering import Setting
from flatminima.objectives.remembering_loss import RememberingLoss, RemembersSamples

NO_EPOCH = """all samples of this batch were seen before, and set_epoch was never called: in \
epoch 0 the loss is the cross-entropy. Call loss.set_epoch(epoch) as each epoch begins"""


class PSKDLoss(RememberingLoss):
    r"""Cross-entropy to labels mixed with the model's own prediction of the epoch before.

    With M a row for each training sample, its last prediction, and t = 0 ... E - 1 the epoch:

    $$\alpha_t = \alpha_T \frac{t + 1}{E}, \qquad s_i = (1 - \alpha_t) y_i + \alpha_t M_i, \qquad
    -\frac1n \sum_i \sum_c s_{ic} \log p_{ic}, \qquad M_i \leftarrow \mathrm{softmax}(z_i / \tau)$$

    M is changed after the loss is computed, with the logits of training: those of the augmented
    input. In epoch 0, and for a sample not met before, s is the label; a loop that never says which
    epoch it is gets a warning. Within `one_step` all passes use the M of before the step, and M
    becomes the mean of what they saw.

        loss = PSKDLoss(len(train), classes, total_epochs=epochs)
        for epoch in range(epochs):
            loss.set_epoch(epoch)
            for x, y, index in loader:
                loss(model(x), y, index).backward()

    Cost: `num_examples * num_classes` numbers in each process, `loss.memory.bytes` bytes. In
    evaluation mode it is the cross-entropy.

    Source: Kim, Ji, Yoon, Hwang, Self-Knowledge Distillation with Progressive Refinement of
    Targets, 2021, arXiv 2006.12000. The temperature is ours.

    Args:
        num_examples: Samples of the training set.
        num_classes: Their classes.
        alpha_T: The part of the past prediction in the last epoch, from 0 to below 1.
        total_epochs: E, of the whole training, also where it is resumed.
        temperature: tau, from 0.01 to 100; above 1 softens what is remembered.
        dtype: Of M: "float16", "float32" or "float64".
        place: Of M: "memory", on the device of the module, or "disk".
        folder: Of M's file on the disk; default: the system's for temporary files.

    Raises:
        InputError: an argument out of its range, or no room for M; at a call, shapes that do not
            fit or samples that there are not.
    """

    def __init__(
        self,
        num_examples: int,
        num_classes: int,
        alpha_T: float = 0.8,
        total_epochs: int = 300,
        *,
        temperature: float = 1.0,
        dtype: str = "float32",
        place: str = "memory",
        folder: str | None = None,
    ) -> None:
        super().__init__(Memory(num_examples, num_classes, dtype, place, folder))
        self.alpha_T = below("alpha_T", alpha_T, 0, 1)
        self.temperature = between("temperature", temperature, 0.01, 100)
        self.total_epochs = whole("total_epochs", total_epochs)
        self.epoch = 0
        self._told = False

    @property
    def alpha(self) -> float:
        """The part of the past prediction in this epoch; epoch 0 has none to use it on."""
        return self.alpha_T * ((self.epoch + 1) / self.total_epochs)

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch begins, from 0.

        Raises:
            InputError: it is none of the total.
        """
        if not whole("epoch", epoch, 0, "epochs") < self.total_epochs:
            raise InputError(
                f"epoch {epoch} is none of the {self.total_epochs} that alpha grows over, counted "
                "from 0: set total_epochs to those of the whole training"
            )
        self.epoch, self._told = epoch, True

    def soft_targets(self, labels: Tensor, index: Tensor) -> Tensor:
        """What the loss compares with, s: shape (samples, classes), rows that sum to 1."""
        past = self.memory.read(index)
        hard = one_hot(labels, past.shape[1]).to(past)
        if self.epoch == 0:
            return hard
        total = past.sum(1, keepdim=True)
        if self.memory.rows.dtype == torch.float16:
            past = past / torch.where(total > 0, total, 1)
        return torch.where(total > 0, (1 - self.alpha) * hard + self.alpha * past, hard)

    def loss(self, logits: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        """The equation; notes the prediction."""
        targets = self.soft_targets(labels, index).to(logits.dtype)
        if not self._told and bool(self.memory.read(index).any(1).all()):
            warnings.warn(NO_EPOCH, stacklevel=2)
            self._told = True
        self.memory.note(index, (logits.detach() / self.temperature).softmax(1))
        return cross_entropy(logits, targets)

    def row(self, index: Tensor, seen: Tensor) -> Tensor:
        """The prediction itself."""
        return seen

    def get_extra_state(self) -> dict[str, int]:
        """The epoch."""
        return {"epoch": self.epoch}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Take up at an epoch."""
        self.epoch, self._told = state["epoch"], True


@register(
    Card(
        name="ps-kd",
        title="Progressive self-distillation",
        equation="cross-entropy to (1 - a) y + a M, M the sample's last prediction, a growing",
        gradients="1",
        buffers="none; a number for each sample and class",
        strength="alpha_T",
        suggested="0.8",
        source="Kim et al., 2021, arXiv 2006.12000",
        slot="objective",
    )
)
class PSKD(RemembersSamples):
    r"""`PSKDLoss` in a run: targets progressively mixed with the predictions of an epoch ago.

    $-\sum_c s_c \log p_c$, $s = (1 - \alpha_t) y + \alpha_t M_i$, $\alpha_t = \alpha_T (t + 1)/E$,
    with E the epochs of the run and M the prediction of the epoch before. Batches are mappings that
    say with "index" which samples they hold.

    Source: Kim et al., 2021, arXiv 2006.12000. The temperature is ours.

    Args:
        alpha_T: The part of the past prediction in the last epoch, from 0 to below 1.
        temperature: From 0.01 to 100; above 1 softens what is remembered.
        dtype: Of M: "float16", "float32" or "float64".
        place: Of M: "memory", on the device, or "disk", a file for each process.
        folder: Of M's file on the disk; default: the system's for temporary files.

    Raises:
        InputError: an argument out of its range, or no room for M; at a call, batches without
            "index".
    """

    def __init__(
        self,
        alpha_T: float = 0.8,
        temperature: float = 1.0,
        dtype: str = "float32",
        place: str = "memory",
        folder: str | None = None,
    ) -> None:
        super().__init__()
        self.alpha_T = below("alpha_T", alpha_T, 0, 1)
        self.temperature = between("temperature", temperature, 0.01, 100)
        check_storage(dtype, place, folder)
        self._storage: dict[str, Any] = {"dtype": dtype, "place": place, "folder": folder}
        self._steps, self._per_epoch = 0, 1

    def make(self, setting: Setting) -> PSKDLoss:
        """The loss for a run."""
        self._steps, self._per_epoch = 0, setting.steps_per_epoch
        return PSKDLoss(
            setting.samples,
            setting.outputs,
            self.alpha_T,
            setting.epochs,
            temperature=self.temperature,
            **self._storage,
        )

    def after_step(self, taken: bool = True) -> None:
        """Remember what the passes of the step saw, unless it was skipped; count it."""
        super().after_step(taken)
        self._count(self._steps + 1)

    def _count(self, steps: int) -> None:
        loss = self.begun()
        assert isinstance(loss, PSKDLoss)
        self._steps = steps
        # After the last step of a run there is no epoch to come.
        loss.set_epoch(min(steps // self._per_epoch, loss.total_epochs - 1))

    def get_extra_state(self) -> dict[str, int]:
        """How many steps were taken or skipped."""
        return {"steps": self._steps}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Take up after a number of steps."""
        self._count(state["steps"])
