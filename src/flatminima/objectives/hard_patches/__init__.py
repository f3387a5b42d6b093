"""Masked image modelling that masks what is hard, after arXiv 2304.05919."""

from flatminima.objectives.hard_patches.losses import (
    absolute_loss,
    patch_losses,
    ranking_agreement,
    relative_loss,
)
from flatminima.objectives.hard_patches.masks import (
    HardPatchMasker,
    complementary_masks,
    fold_scores,
)
from flatminima.objectives.hard_patches.objective import HardPatchesMining
from flatminima.objectives.hard_patches.outputs import PatchOutput

__all__ = [
    "HardPatchMasker",
    "HardPatchesMining",
    "PatchOutput",
    "absolute_loss",
    "complementary_masks",
    "fold_scores",
    "patch_losses",
    "ranking_agreement",
    "relative_loss",
]
