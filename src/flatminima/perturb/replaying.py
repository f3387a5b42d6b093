"""Weights that come home without a copy of W: the noise is drawn again and taken off."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from flatminima.errors import InputError
from flatminima.perturb.drawing import Draw, add_all
from flatminima.perturb.weights import Slot, Weights

NOT_IN_PIECES = """memory='replay' takes noise off weights by drawing it again, which is open to \
whole, contiguous float32 or float64 weights on a CPU, with noise other than 'laplace' and \
scale='absolute': use memory='exact'"""

NO_COPY = """memory='replay' keeps no copy of W, so nothing tells how far the weights are from \
it: use memory='exact'"""


CHANGED = """weights were changed while passes ran, by the model or the loss: memory='replay' \
cannot bring them back to W: use memory='exact'"""


class Replayed(Weights):
    """Weights that drawn noise moves, and the same draw moves back: no weight-sized buffer.

    Floating-point addition is not undone by subtraction, so W comes back with an error. A pair adds
    U, then -2 U, then U, and each addition rounds once: with u half the spacing of numbers near 1
    (2^-24 in float32) the error of one pair is at most

        |W' - W| <= 3 u (|W| + 2 |U|)    elementwise, to first order in u,

    and that of a displacement taken and undone at most 2 u (|W| + |U|). Errors of steps add up as a
    random walk: their mean is 0 to first order, and after T steps they are of size
    sqrt(T) u (|W| + |U|) at most, where exact keeping has none, also of weights that are never
    trained. There is no correcting them, since nothing remembers W.

    What nothing remembers cannot be undone: a move that is broken off halfway, by an interrupt
    within it; sums that overflow; weights that the loss itself changes in place (an embedding with
    max_norm), which is noticed and refused. Whatever is raised while passes run is undone as ever.

    Cost: three draws for a pair instead of one; two for a displacement.

    Args:
        slots: The parameters, with their strengths.
    """

    def __init__(self, slots: list[Slot]) -> None:
        super().__init__(slots)
        self._draws: Sequence[Draw | None] | None = None
        self._sign = 1.0
        self._versions: list[int] = []

    def displace(self, offsets: Iterable[Tensor | None]) -> None:
        """Not open: offsets that are not drawn cannot be drawn again.

        Raises:
            InputError: always.
        """
        raise InputError(NOT_IN_PIECES)

    def shake(self, draws: Sequence[Draw | None]) -> None:
        """Go home, and from there to W + noise."""
        self.restore()
        self._draws, self._sign = draws, 1.0
        self._add(draws, 1.0)

    def _mirror(self) -> None:
        if self._draws is not None:
            self._add(self._draws, -2 * self._sign)
            self._sign = -self._sign

    def restore(self) -> None:
        """Take the noise off again."""
        if self._draws is not None:
            draws, self._draws = self._draws, None
            self._add(draws, -self._sign)

    def positions(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Not open: nothing remembers W.

        Raises:
            InputError: always.
        """
        raise InputError(NO_COPY)

    @property
    def away(self) -> bool:
        """Whether the weights have left W."""
        return self._draws is not None

    def _add(self, draws: Sequence[Draw | None], times: float) -> None:
        moved = bool(self._versions) and self._versions != [t._version for t in self._tensors]
        # By powers of two only, so that each time the very same U is added.
        scaled = [d and replace(d, factor=times * d.factor) for d in draws]
        add_all(self._tensors, scaled)
        torch.clear_autocast_cache()
        self._versions = [tensor._version for tensor in self._tensors] if self.away else []
        if moved:
            raise InputError(CHANGED)
