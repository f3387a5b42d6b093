"""Masked image modelling on a ViT of transformers, for Hard Patches Mining."""

from flatminima.models.hard_patches.model import MaskedViT
from flatminima.models.hard_patches.patches import patchify, sin_cos_positions, unpatchify

__all__ = ["MaskedViT", "patchify", "sin_cos_positions", "unpatchify"]
