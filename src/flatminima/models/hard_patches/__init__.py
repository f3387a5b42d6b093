"""Masked image modelling on a ViT of transformers, for Hard Patches Mining."""

from flatminima.models.hard_patches.model import (
    DECODER_KEYS,
    MaskedViT,
    begin_with_positions,
)
from flatminima.models.hard_patches.patches import patchify, sin_cos_positions, unpatchify
from flatminima.models.hard_patches.picture import mask_plot

__all__ = [
    "DECODER_KEYS",
    "MaskedViT",
    "begin_with_positions",
    "mask_plot",
    "patchify",
    "sin_cos_positions",
    "unpatchify",
]
