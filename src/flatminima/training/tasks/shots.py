"""How often a label occurs in training: many, medium or few shots, as work on imbalance has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

GROUPS = ("many", "medium", "few")

ROUNDING = 1e-3
"""Of a bin: a label on its edge stays in it after rounding."""

BINS = 100
"""Bins in the range of the training labels, as a year is of ages, where no width is given."""


@dataclass(frozen=True)
class Shots:
    """Training labels in bins.

    The bin of a label y is floor(y / width). A label is of the group "few" where its bin has fewer
    than `few` training labels, "many" where it has more than `many`, else "medium".

    Attributes:
        width: In the unit of the label.
        few: The literature has 20.
        many: The literature has 100.
        counts: Training labels of each bin that has some.

    Source: Yang et al., Delving into Deep Imbalanced Regression, 2021, arXiv 2102.09554.
    """

    width: float
    few: int
    many: int
    counts: Mapping[int, int]

    @classmethod
    def of(cls, labels: NDArray[Any], width: float | None, few: int, many: int) -> Shots:
        """Count the training labels.

        Args:
            labels: In their own unit, shape (n,).
            width: None for a hundredth of their range.
            few: See the class.
            many: See the class.
        """
        width = width or float(np.ptp(labels)) / BINS or 1.0
        found, counts = np.unique(_bins(labels, width), return_counts=True)
        return cls(width, few, many, dict(zip(found.tolist(), counts.tolist(), strict=True)))

    @property
    def present(self) -> tuple[str, ...]:
        """The groups that the training labels are of; none where all are of one."""
        kinds = {self._group(count) for count in self.counts.values()}
        return tuple(name for name in GROUPS if name in kinds) if len(kinds) > 1 else ()

    def group(self, labels: NDArray[Any]) -> NDArray[np.str_]:
        """The group of each label, shape (n,)."""
        counts = (self.counts.get(int(place), 0) for place in _bins(labels, self.width))
        return np.array([self._group(count) for count in counts], dtype=np.str_)

    def _group(self, count: int) -> str:
        return "many" if count > self.many else "few" if count < self.few else "medium"


def _bins(labels: NDArray[Any], width: float) -> NDArray[np.int64]:
    return np.floor(labels.astype(np.float64) / width + ROUNDING).astype(np.int64)
