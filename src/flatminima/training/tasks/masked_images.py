"""Images of which most is hidden, to learn from images alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flatminima.objectives import Batch, HardPatchMasker, PatchOutput
from flatminima.objectives.hard_patches import fold_scores, patch_losses, ranking_agreement
from flatminima.objectives.hard_patches.objective import images_of
from flatminima.training.data.device import to_device
from flatminima.training.tasks.task import Saw, Task, evaluating

MASKER = HardPatchMasker(ratio=0.75, alpha=0.5)
"""Of the scores, whatever was trained with."""


class MaskedReconstruction:
    """Mean squared error of 75 % of the patches, hidden by masks that are always the same.

    The mask is that of a sample's place in its batch, so that the loss is a function of the weights
    and curvature can be measured. The model gives a `PatchOutput`, as `MaskedViT` does.
    """

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss of `model` on the images of a batch, a scalar tensor."""
        images = images_of(batch)
        generator = torch.Generator().manual_seed(0)
        losses, _ = _masked(model, images, _random_masks(model, images, generator))
        return losses.mean()


class MaskedImages(Task):
    r"""Scored by how well hidden patches are reconstructed, and how well that is predicted.

    `loss` is the mean squared error of the pixels, as the model sees them, of 75 % of the patches
    hidden at random. `ranking_agreement` is the part of the pairs of hidden patches of an image
    that predicted losses order as the losses do; 0.5 is chance. `mask_hardness` is the loss where
    half of the hidden patches are those of the largest predicted losses, over `loss`; above 1 the
    model knows where it fails. Predictions are of hidden patches, see `fold_scores`.
    """

    name = "masked-images"
    objective = "hard-patches-mining"
    metrics = ("loss", "ranking_agreement", "mask_hardness")
    goal = "loss"
    higher_is_better = False
    loss = MaskedReconstruction()

    def score(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        device: torch.device,
        saw: Saw | None = None,
    ) -> Mapping[str, float]:
        """See `Task.score`; the masks are the same each time."""
        generator = torch.Generator().manual_seed(0)
        loss = hard_loss = agreed = pairs = samples = 0.0
        with evaluating(model):
            for batch in batches:
                images = images_of(to_device(batch, device))
                hidden = _random_masks(model, images, generator)
                losses, predicted = _masked(model, images, hidden)
                hardness = fold_scores(model, images, MASKER.ratio, generator)
                hard, _ = _masked(model, images, MASKER(hardness, 1.0, generator))
                right, compared = ranking_agreement(predicted, losses)
                agreed, pairs = agreed + right.item(), pairs + compared.item()
                loss += losses.mean().item() * len(images)
                hard_loss += hard.mean().item() * len(images)
                samples += len(images)
        nan = float("nan")
        return {
            "loss": loss / samples,
            "ranking_agreement": agreed / pairs if pairs else nan,
            "mask_hardness": hard_loss / loss if loss else nan,
        }


def _random_masks(model: nn.Module, images: Tensor, generator: torch.Generator) -> Tensor:
    patches: Any = model.patch_count
    return MASKER(images.new_zeros(len(images), int(patches)), 0.0, generator)


def _masked(model: nn.Module, images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The losses and predicted losses of the masked patches, shape (n, M) each."""
    found: PatchOutput = model(images, mask)
    losses = patch_losses(found.reconstruction.float(), found.patches.float())
    return losses[mask].view(len(images), -1), found.predicted[mask].view(len(images), -1)
