"""The batches of an encoded data set."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from flatminima.training.data import collate


def loader(
    part: Any, batch_size: int = 1, batch_sampler: Sampler[list[int]] | None = None
) -> DataLoader[Any]:
    """The batches of an encoded data set, in order or as a sampler says.

    A DataLoader draws a seed for its workers, by default from torch's global generator: then a run
    resumed within an epoch, which makes one loader more, would go on with other random numbers.
    """
    own = torch.Generator()
    if batch_sampler is not None:
        return DataLoader(part, batch_sampler=batch_sampler, collate_fn=collate, generator=own)
    return DataLoader(part, batch_size=batch_size, collate_fn=collate, generator=own)
