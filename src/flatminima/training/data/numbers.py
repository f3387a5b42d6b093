"""Labels that are numbers: read, checked, and put on a scale that networks learn on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flatminima.errors import InputError

Numbers = NDArray[np.float32]


@dataclass(frozen=True)
class Scale:
    """What was taken off labels, and what they were then divided by.

    Attributes:
        mean: In the unit of the labels.
        deviation: Likewise, above 0.
    """

    mean: float = 0.0
    deviation: float = 1.0

    @classmethod
    def of(cls, labels: NDArray[Any]) -> Scale:
        """That which gives these labels mean 0 and standard deviation 1."""
        values = labels.astype(np.float64)
        return cls(float(values.mean()), float(values.std()) or 1.0)

    def standardized(self, labels: NDArray[Any]) -> Numbers:
        """Labels on this scale, float32."""
        moved = (labels.astype(np.float64) - self.mean) / self.deviation
        return moved.astype(np.float32)


def read_numbers(
    columns: Mapping[str, Sequence[object]],
    where: Mapping[str, str],
    names: Sequence[str] | None = None,
) -> dict[str, Numbers]:
    """The labels of each split as numbers, in their own unit.

    Args:
        columns: The label of every row, by split; has "train".
        where: How to call each split in an error.
        names: Names of classes, where the source declares the labels to be some.

    Raises:
        InputError: a label is missing, no number or not finite, the source's labels are classes, or
            all labels to train on are the same.
    """
    if names is not None:
        raise InputError(
            f"the labels of {where['train']} are the classes {', '.join(names[:3])}"
            f"{', ...' if len(names) > 3 else ''}, not numbers: leave --task regression out, or "
            "choose another column (--label-column)"
        )
    read = {
        split: np.array(
            [_number(value, row, where[split]) for row, value in enumerate(values, start=1)],
            dtype=np.float32,
        )
        for split, values in columns.items()
    }
    if len(np.unique(read["train"])) < 2:
        raise InputError(
            f"all labels of {where['train']} are {read['train'][0]:g}: there is nothing to learn; "
            "choose another column (--label-column)"
        )
    return read


def _number(value: object, row: int, where: str) -> float:
    place = f"row {row} of {where}"
    if value is None or (isinstance(value, str) and not value.strip()):
        raise InputError(f"the label in {place} is missing: fill it in or remove the row")
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        number = float(value)
    except ValueError:
        raise InputError(
            f"the label in {place} is {value!r}, which is no number: give numbers, choose another "
            "column (--label-column), or leave --task regression out if labels are classes"
        ) from None
    if math.isnan(number) and not isinstance(value, str):
        raise InputError(f"the label in {place} is missing: fill it in or remove the row")
    if not abs(number) <= float(np.finfo(np.float32).max):
        raise InputError(
            f"the label in {place} is {value}, no finite number in single precision: correct it "
            "or remove the row"
        )
    return number
