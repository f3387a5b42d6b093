"""Whether a displacement survives being rounded to 16-bit weights."""

from __future__ import annotations

import torch
from torch import Tensor

from flatminima.errors import InputError

HALF = (torch.bfloat16, torch.float16)

LEAST = 0.5
"""Part of a displacement that must survive. Rounding is unbiased as long as a displacement is at
least half the spacing of the weights, and loses nearly all of one that is a fifth of it."""


class Resolution:
    """Compares the displacements that were asked for with those that 16-bit weights made of them.

    The part that survives is <d, U> / <U, U>, with U as asked for and d as made.

    Args:
        name: What sets their size: sigma or rho.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._products: list[tuple[Tensor, Tensor]] = []

    def look(self, home: Tensor, moved: Tensor, offset: Tensor) -> None:
        """Take in one tensor; those of 32 bits and more are not looked at."""
        if moved.dtype in HALF:
            wanted = offset.to_dense().float()
            made = moved.float() - home.float()
            self._products.append(((made * wanted).sum(), wanted.square().sum()))

    def check(self) -> None:
        """Refuse a displacement that mostly vanished.

        Raises:
            InputError: it did.
        """
        asked = sum(float(square) for _, square in self._products)
        survived = sum(float(product) for product, _ in self._products)
        if asked and not survived >= LEAST * asked:
            raise InputError(
                f"{self._name} is too small for 16-bit weights: of the displacement "
                f"{survived / asked:.0%} survives being rounded. Keep the weights in float32 and "
                f"compute under torch.autocast, or raise {self._name}"
            )
