"""Points of a slice shared out among the processes that `torchrun` started."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, distributed

from flatminima.errors import InputError
from flatminima.landscape.frame import Point

Scores = list[list[float]]


class Scorer(Protocol):
    """Evaluates points; see `Evaluator`."""

    def scores(self, points: Sequence[Point]) -> Tensor:
        """Loss and accuracy at each point."""


class Alone:
    """One process that evaluates all points."""

    size = 1

    def scores(self, scorer: Scorer, points: Sequence[Point]) -> Scores:
        """Loss and accuracy at each point."""
        found: Scores = scorer.scores(points).tolist()
        return found

    def agreed(self, decided: tuple[float, bool]) -> tuple[float, bool]:
        """What the first process decided."""
        return decided


class Shared(Alone):
    """One of several processes, each of which evaluates every so many-th point.

    All must have the same model, frame and samples. What time it is, is said by the first.
    """

    def __init__(self) -> None:
        self._rank, self.size = distributed.get_rank(), distributed.get_world_size()

    def scores(self, scorer: Scorer, points: Sequence[Point]) -> Scores:
        """Loss and accuracy at each point, of all processes.

        Raises:
            InputError: another process failed.
        """
        own = points[self._rank :: self.size]
        failure: Exception | None = None
        rows: Scores | str = []
        try:
            rows = scorer.scores(own).tolist() if own else []
        except Exception as error:  # the others wait for an answer
            failure, rows = error, f"{type(error).__name__}: {error}"
        gathered: list[Scores | str] = [[] for _ in range(self.size)]
        distributed.all_gather_object(gathered, rows)
        if failure is not None:
            raise failure
        found: Scores = [[] for _ in points]
        for rank, part in enumerate(gathered):
            if isinstance(part, str):
                raise InputError(f"process {rank} of {self.size} failed: {part}")
            found[rank :: self.size] = part
        return found

    def agreed(self, decided: tuple[float, bool]) -> tuple[float, bool]:
        """What the first process decided, to all."""
        box = [decided]
        distributed.broadcast_object_list(box, src=0)
        return box[0]


def sharing() -> Alone:
    """How this process shares the work: with its process group, if there is one of several."""
    several = distributed.is_available() and distributed.is_initialized()
    return Shared() if several and distributed.get_world_size() > 1 else Alone()
