"""What a pass over the batches met, held against the first one."""

from __future__ import annotations

from dataclasses import dataclass

from flatminima.errors import InputError
from flatminima.measure.batches import Contents

STAY_THE_SAME = (
    "the batches hold other samples, so give ones that stay the same (no random augmentation, no "
    "drop_last with shuffle)"
)


@dataclass(frozen=True)
class Seen:
    """What a pass over the batches met.

    Attributes:
        loss: The mean loss.
        samples: How many samples.
        contents: What they were, where this process read them all.
    """

    loss: float
    samples: int
    contents: Contents | None = None


def apart(first: Seen, now: Seen) -> bool:
    """Whether losses differ by more than rounding does."""
    return now.samples != first.samples or (
        abs(now.loss - first.loss) > 1e-4 * abs(first.loss) + 1e-6
    )


def other_samples(first: Seen, now: Seen) -> bool:
    """Whether the batches held other samples, as far as can be told."""
    return now.samples != first.samples or (
        now.contents is not None
        and first.contents is not None
        and now.contents.differ(first.contents)
    )


def changed(first: Seen, now: Seen, name: str) -> InputError:
    """An error for a pass that differs from the first: its products are of another matrix."""
    if other_samples(first, now):
        mend = STAY_THE_SAME
    else:
        mend = (
            f"the samples are the same, so make a new {name} when the weights have moved, "
            "and keep the same samples together in a batch if it matters to the loss"
        )
    return InputError(
        f"the loss was {first.loss:.6g} over {first.samples} samples and is now {now.loss:.6g} "
        f"over {now.samples}: {mend}"
    )
