"""How something slow says where it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

Progress: TypeAlias = Callable[[str, int, int], None]
"""`(stage, done, total) -> None`, called as the items of a stage are finished."""


class TrainingProgress(Protocol):
    """A `Progress` that can be told a few words on how it goes as well."""

    def __call__(self, stage: str, done: int, total: int, beside: str = "", /) -> None:
        """Take note; `beside` is what to show beside the numbers."""


def silent(stage: str, done: int, total: int, beside: str = "") -> None:
    """Say nothing: the `Progress` of callers that gave none."""
