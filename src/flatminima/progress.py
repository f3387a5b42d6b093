"""How something slow says where it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[str, int, int], None]
"""`(stage, done, total) -> None`, called as the items of a stage are finished."""


def silent(stage: str, done: int, total: int) -> None:
    """Say nothing: the `Progress` of callers that gave none."""
