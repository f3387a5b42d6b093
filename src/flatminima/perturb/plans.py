"""A step as a plan: passes, and what they may depend on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from flatminima.perturb.shares import WHOLE, Share
from flatminima.perturb.weights import Weights

Move = Callable[[Weights], None]


@dataclass(frozen=True)
class Pass:
    """One forward and backward of a step.

    Attributes:
        weight: How much its gradient counts. The weights of a step add up to 1 per sample; 0: the
            gradient is only looked at by the next pass's move (SAM's first pass).
        move: Moves the weights from where the pass before left them. None: the pass runs at W, and
            only the first passes of a plan may; a later one goes home by `Weights.restore`.
        share: The part of the batch that the pass works on.
        backward: False where the forward pass alone is wanted (it sets BatchNorm's statistics); a
            backward does no harm, its gradient is dropped.
        after: Looks at the pass's own gradient in `.grad`, and may change it before it counts.
        sync: Whether processes must agree on the gradient although the pass is not the last:
            where it ends up in what counts, and does not only point the way.
    """

    weight: float = 1.0
    move: Move | None = None
    share: Share = WHOLE
    backward: bool = True
    after: Move | None = None
    sync: bool = False

    @property
    def at_home(self) -> bool:
        """Whether the pass runs at W."""
        return self.move is None or self.move is Weights.restore


@dataclass(frozen=True)
class Turn:
    """What a plan may depend on.

    Attributes:
        step: Steps so far at which weights moved: all, unless `interval` is above 1.
        micro_batch: Calls of `passes()` since the last step.
        rank: This process's rank; 0 without torch.distributed, and where processes share one set of
            weights (FSDP2).
        samples: Samples in the batch, where `passes(batch)` was given it to cut; else None.
    """

    step: int
    micro_batch: int
    rank: int
    samples: int | None


class Watcher(Protocol):
    """Looks on while passes run, and changes nothing."""

    def begin(self, micro_batch: int) -> bool:
        """The passes of a micro-batch begin, the first of a step if that is 0.

        Returns:
            Whether to tell of them.
        """

    def start(self, current: Pass, weights: Weights, weight: float) -> None:
        """A pass that counts `weight` is about to run; `.grad` holds what was gathered before."""

    def emptied(self) -> None:
        """What `.grad` held at the start of the pass was dropped."""

    def returned(self, loss: Any) -> None:
        """The closure that ran in the pass returned its loss."""

    def end(self, weights: Weights, weight: float) -> None:
        """The pass has run: its gradient was added to `.grad`."""

    def stepped(self) -> None:
        """The step was taken."""
