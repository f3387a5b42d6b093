"""What a model of masked images gives."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class PatchOutput(NamedTuple):
    """Of n images in L patches of D numbers each, in the order of the patches.

    Attributes:
        reconstruction: Shape (n, L, D).
        predicted: How badly each patch will be reconstructed, in a unit of its own, shape (n, L).
        patches: What was to be reconstructed, shape (n, L, D).
    """

    reconstruction: Tensor
    predicted: Tensor
    patches: Tensor
