"""Whether a displacement survives being rounded to 16-bit weights."""

from __future__ import annotations

import warnings

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
        each: Whether it must survive in each tensor, as noise must; else in all together.
        final: Whether this step is at full strength; before that a loss is only warned of.
    """

    def __init__(self, name: str, *, each: bool, final: bool) -> None:
        self.final = final
        self._name = name
        self._each = each
        self._products: list[tuple[Tensor, Tensor]] = []

    def look(self, home: Tensor, moved: Tensor, offset: Tensor) -> None:
        """Take in one tensor; those of 32 bits and more are not looked at."""
        if moved.dtype in HALF:
            wanted = offset.to_dense().float()
            made = moved.float() - home.float()
            self._products.append(((made * wanted).sum(), wanted.square().sum()))

    def check(self) -> None:
        """Refuse a displacement that mostly vanished, and begin the next.

        Raises:
            InputError: it did.
        """
        products = [(float(made), float(wanted)) for made, wanted in self._products]
        self._products = []
        if not self._each:
            products = [(sum(made for made, _ in products), sum(asked for _, asked in products))]
        least = min((made / asked for made, asked in products if asked), default=1.0)
        if not least >= LEAST:
            where = " in one of the tensors" if self._each else ""
            text = (
                f"{self._name} is too small for 16-bit weights: of the displacement {least:.0%} "
                f"survives being rounded{where}. Keep the weights in float32 and compute under "
                f"torch.autocast, or raise {self._name}"
                + (", or leave out norms' weights with vectors=False" if self._each else "")
            )
            if self.final:
                raise InputError(text)
            warnings.warn(text, stacklevel=2)
