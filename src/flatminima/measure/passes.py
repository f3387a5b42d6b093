"""Going through the same batches again and again, and noticing when they are not the same."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from flatminima.errors import InputError
from flatminima.measure.batches import Batches, Contents, weighted
from flatminima.measure.seen import STAY_THE_SAME
from flatminima.measure.untouched import RandomState
from flatminima.objectives import Batch


class Passes:
    """Passes over batches, of the same samples each: what differs is another place of the weights.

    Each starts from the random state of the first, so that a loader that shuffles, augments or
    drops by torch's global state does so in the same way, and each is compared with the first. To
    be used inside `untouched`, which puts the random state back.

    Args:
        batches: Batches that can be gone through again and again.
        device: Where to have them.
    """

    def __init__(self, batches: Batches, device: torch.device) -> None:
        self._batches, self._device = batches, device
        self._start: RandomState | None = None
        self._first: Contents | None = None
        self.samples = 0

    def __iter__(self) -> Iterator[tuple[Batch, int]]:
        """Each batch, moved to the device, with its number of samples.

        Raises:
            InputError: at the end, when the samples were not those of the first pass; as
                `weighted`.
        """
        if self._start is None:
            self._start = RandomState(self._device)
        self._start.restore()
        contents, samples = Contents(), 0
        for batch, count in weighted(self._batches, self._device):
            contents.add(batch)
            samples += count
            yield batch, count
        if self._first is None:
            self._first, self.samples = contents, samples
        elif samples != self.samples or contents.differ(self._first):
            raise InputError(
                f"a pass over the batches had {self.samples} samples and a later one {samples}: "
                f"{STAY_THE_SAME}"
            )
