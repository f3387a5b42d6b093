"""Hard Patches Mining: the objective, and the teacher that says what is hard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from flatminima.arguments import below, between, chosen
from flatminima.cards import Card
from flatminima.errors import InputError
from flatminima.objectives.hard_patches.losses import absolute_loss, patch_losses, relative_loss
from flatminima.objectives.hard_patches.masks import HardPatchMasker, fold_scores
from flatminima.objectives.hard_patches.outputs import PatchOutput
from flatminima.objectives.registry import register
from flatminima.objectives.remembering import Remembering, Setting
from flatminima.objectives.supervised import Batch

RANKINGS = {"relative": relative_loss, "absolute": absolute_loss}
SCORES = ("full", "folds")

DECAY_EPOCHS = 100
"""Epochs over which the teacher's decay goes from its first value to its last."""

LARGEST = 20.0
"""Pixels in [0, 1], standardized or not, are far below; those of 0 to 255 are not."""


@register(
    Card(
        name="hard-patches-mining",
        title="Hard Patches Mining, masked image modelling",
        equation="mean_M |p^ - p|^2 + softplus(l^_i - l^_j) over l_j > l_i; M hard by a teacher",
        gradients="1",
        buffers="a copy of the model, the teacher, with a forward pass of its own",
        strength="alpha",
        suggested="0.5",
        source="Wang et al., 2023, arXiv 2304.05919",
        slot="objective",
        aliases=("hpm",),
        tasks=("masked-images",),
    )
)
class HardPatchesMining(Remembering):
    r"""Reconstruct masked patches, predict which come out badly, and mask more of those.

    A teacher, the moving average of the model, predicts the loss of each patch; a growing part of
    the M masked patches are those it finds hardest, see `HardPatchMasker`. With $l_i$ the mean
    squared error of a masked patch and $\hat l_i$ the loss predicted for it,

    $$\frac{1}{M} \sum_{i \in M} l_i + w \, \mathrm{relative}(\hat l, l)$$

    (`relative_loss`). No gradient flows through l; that of $\hat l$ reaches the encoder. In epoch
    e of E the part chosen by hardness is $\alpha (e + 1) / E$, and the teacher's decay goes from
    `decay` to `last_decay` over 100 epochs; ours: never above (1 + t) / (10 + t) after t steps, so
    that short trainings have a teacher that learned something.

    A batch is a mapping with "inputs", images of floats, or a pair whose first is that; targets are
    not looked at. The model is called as `model(images, mask)` and gives a `PatchOutput`; a teacher
    as `model.predict(images, mask)`, which gives the predicted losses alone; and `patch_count` says
    how many patches an image has. All passes of a step use the same teacher; with
    torch's generators replayed, as the methods of `perturb` do, also the same masks.

    Costs, beside the model's passes, a forward pass of the teacher over all patches, and its
    weights. Alpha 0 needs no teacher pass: with weight 0 that is a plain masked autoencoder.

    Source: Wang et al., Hard Patches Mining for Masked Image Modeling, 2023, arXiv 2304.05919.

    Args:
        ratio: The part of the patches that is masked, in (0, 1).
        alpha: The part of the masked ones that is chosen by hardness in the end, from 0 to 1.
        weight: w, of the loss prediction, 0 or above.
        ranking: "relative", or "absolute" for `absolute_loss`.
        score: What the teacher sees: "full", the whole image; or "folds", ours, better for small
            models: complementary masks, see `fold_scores`.
        decay: Of the teacher, in the first epoch, from 0 to below 1.
        last_decay: From its 100th epoch.

    Raises:
        InputError: an argument out of its range; `begin` without a model; at the first call, images
            that are no floats, not finite or of 0 to 255.
    """

    def __init__(
        self,
        ratio: float = 0.75,
        alpha: float = 0.5,
        weight: float = 1.0,
        ranking: str = "relative",
        score: str = "full",
        decay: float = 0.999,
        last_decay: float = 0.9999,
    ) -> None:
        super().__init__()
        self.masker = HardPatchMasker(ratio, alpha)
        self.weight = between("weight", weight, 0)
        self.ranking = RANKINGS[chosen("ranking", ranking, RANKINGS)]
        self.score = chosen("score", score, SCORES)
        self.decays = below("decay", decay, 0, 1), below("last_decay", last_decay, 0, 1)
        self.teacher: AveragedModel | None = None
        self.steps: Tensor
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self._steps, self._looked = 0, False

    def begin(self, setting: Setting) -> None:
        """Make the teacher, a copy of the model.

        Raises:
            InputError: the setting says no model.
        """
        if setting.model is None:
            raise InputError("hard-patches-mining begins with a model: Setting(..., model=model)")
        self.setting = setting
        rule: Any = self._average
        self.teacher = AveragedModel(setting.model, multi_avg_fn=rule)
        self.teacher.requires_grad_(False).eval()
        self.steps.zero_()
        self._steps, self._looked = 0, False

    @property
    def progress(self) -> float:
        """The part of the training that the current epoch ends."""
        setting = self.setting
        return min(1.0, (self._epoch + 1) / setting.epochs)

    @property
    def decay(self) -> float:
        """Of the teacher, at the next step."""
        first, last = self.decays
        scheduled = first + min(1.0, self._epoch / DECAY_EPOCHS) * (last - first)
        return min(scheduled, (1 + self._steps) / (10 + self._steps))

    @property
    def _epoch(self) -> int:
        return self._steps // self.setting.steps_per_epoch

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss of `model` on the images of a batch, a scalar tensor."""
        images = images_of(batch)
        if not self._looked:
            check_images(images)
            self._looked = True
        mask = self.masks(images)
        found: PatchOutput = model(images, mask)
        masked = self.masker.counts(mask.shape[1])[0]
        losses = patch_losses(found.reconstruction, found.patches)
        losses = losses[mask].view(-1, masked)
        predicted = found.predicted[mask].view(-1, masked)
        return losses.mean() + self.weight * self.ranking(predicted, losses.detach())

    @torch.no_grad()
    def masks(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The masks of some images at this point of the training, bool, shape (n, L)."""
        if self.teacher is None:
            raise InputError("call begin(Setting(..., model=model)) before the first step")
        count: Any = self.teacher.module.patch_count
        hardness = images.new_zeros(len(images), int(count))
        if self.masker.counts(int(count), self.progress)[1]:
            hardness = self.hardness(self.teacher.module, images, generator)
        return self.masker(hardness, self.progress, generator)

    @torch.no_grad()
    def hardness(
        self, model: nn.Module, images: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """The losses that a model predicts for each patch, seen as `score` says, shape (n, L)."""
        if self.score == "full":
            predict: Any = model.predict
            predicted: Tensor = predict(images, None)
            return predicted
        return fold_scores(model, images, self.masker.ratio, generator)

    def after_step(self, taken: bool = True) -> None:
        """Move the teacher towards the model, once for all passes of a step."""
        if taken and self.teacher is not None and self.setting.model is not None:
            self.teacher.update_parameters(self.setting.model)
        self._steps += 1
        self.steps.fill_(self._steps)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Go on from a state, the teacher's weights included."""
        found = super().load_state_dict(state_dict, *args, **kwargs)
        self._steps = int(self.steps)
        return found

    def _average(self, averaged: Sequence[Tensor], current: Sequence[Tensor], count: Any) -> None:
        torch._foreach_lerp_(list(averaged), list(current), 1 - self.decay)


def images_of(batch: Batch) -> Tensor:
    """The images of a batch, whatever else it holds.

    Raises:
        InputError: it holds none.
    """
    images = batch
    if isinstance(batch, Mapping):
        images = batch.get("inputs", batch.get("pixel_values"))
    elif isinstance(batch, (tuple, list)) and batch:
        images = batch[0]
    if not isinstance(images, Tensor):
        raise InputError(
            'masked images are learned from tensors: give batches {"inputs": images} or (images, _)'
        )
    return images


def check_images(images: Tensor) -> None:
    """Refuse pixels that nothing could be learned from.

    Raises:
        InputError: they are no floats, not finite, or of 0 to 255.
    """
    if not images.is_floating_point():
        raise InputError(f"the images are {images.dtype}: give floats in [0, 1], or standardized")
    if not len(images):
        raise InputError("there are no images: give one at least")
    largest = images.detach().abs().amax().item()
    if not largest <= LARGEST:
        raise InputError(
            f"the images reach {largest:g}: give pixels in [0, 1], or standardized, and finite"
        )
