"""Labels as class indices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flatminima.errors import InputError
from flatminima.training.data.examples import Targets

Label = int | str


def encode_labels(
    columns: Mapping[str, Sequence[object]],
    where: Mapping[str, str],
    names: Sequence[str] | None = None,
) -> tuple[tuple[str, ...], dict[str, Targets]]:
    """Number the classes that the training labels name.

    Integers are ordered by value and texts by letter, unless `names` says which class each integer
    is. The labels -1 and 1 are two classes; any other negative label is taken for a missing one.

    Args:
        columns: The label of every row, by split; has "train".
        where: How to call each split in an error.
        names: Names of the classes 0 to K-1, where the source declares them.

    Returns:
        The class names, and the class indices of each split.

    Raises:
        InputError: a label is missing, not a class, out of range, or unknown in training; or there
            is only one class.
    """
    labels = {
        split: [_label(value, row, where[split]) for row, value in enumerate(values, start=1)]
        for split, values in columns.items()
    }
    if names is None:
        order = _order(set(labels["train"]))
        _check_sign(order, where["train"])
        classes = tuple(str(label) for label in order)
    else:
        order = list(range(len(names)))
        classes = tuple(names)
    index = {label: position for position, label in enumerate(order)}
    check_several(classes, where["train"])
    encoded = {}
    for split, values in labels.items():
        for row, label in enumerate(values, start=1):
            if label not in index:
                raise _stranger(label, row, where[split], where["train"], names)
        encoded[split] = np.array([index[label] for label in values], dtype=np.int64)
    if names is not None and len(np.unique(encoded["train"])) < 2:
        check_several(tuple(classes[i] for i in np.unique(encoded["train"])), where["train"])
    return classes, encoded


def check_several(classes: Sequence[str], where: str) -> None:
    """Refuse a task with fewer than two classes.

    Raises:
        InputError: there is one class, or none.
    """
    if len(classes) < 2:
        found = f"only one class, {classes[0]!r}" if classes else "no class"
        raise InputError(f"{where} has {found}: a classification task needs at least two")


def check_left(classes: Sequence[str], before: NDArray[Any], after: NDArray[Any]) -> None:
    """Refuse to go on without a class whose every training image was skipped.

    Raises:
        InputError: a class that had training examples has none any more.
    """
    lost = np.setdiff1d(before, after)
    if len(lost):
        raise InputError(
            f"no training image of class {classes[lost[0]]!r} can be read: replace them, or remove "
            "the class"
        )


def _label(value: object, row: int, where: str) -> Label:
    place = f"row {row} of {where}"
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise InputError(f"the label in {place} is missing: fill it in or remove the row")
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        if value.is_integer():
            return int(value)
        raise InputError(
            f"the label in {place} is {value}, which is not a class: to predict numbers say "
            "--task regression; or give whole numbers or names, or choose another column "
            "(--label-column)"
        )
    if isinstance(value, str):
        if not value.strip():
            raise InputError(f"the label in {place} is empty: fill it in or remove the row")
        return value.strip()
    raise InputError(
        f"the label in {place} is a {type(value).__name__}: give one whole number or name per row, "
        "or choose another column (--label-column)"
    )


def _order(labels: set[Label]) -> list[Label]:
    def by_value(label: Label) -> tuple[int, int, str]:
        number = isinstance(label, int) or (label.isascii() and label.isdigit())
        return (0, int(label), str(label)) if number else (1, 0, str(label))

    return sorted(labels, key=by_value)


def _check_sign(order: Sequence[Label], where: str) -> None:
    numbers = [label for label in order if isinstance(label, int)]
    if numbers and numbers[0] < 0 and numbers != [-1, 1]:
        raise InputError(
            f"{where} has the label {numbers[0]}, which is out of range: number the classes from "
            "0, and remove the rows where it stands for a missing label"
        )


def _stranger(
    label: Label, row: int, where: str, train: str, names: Sequence[str] | None
) -> InputError:
    if names is not None:
        return InputError(
            f"the label in row {row} of {where} is {label!r}, out of range for {len(names)} "
            f"classes: give whole numbers from 0 to {len(names) - 1}, or remove the row"
        )
    return InputError(
        f"the label in row {row} of {where} is {label!r}, which {train} never has: "
        "correct it, remove the row, or add training examples of that class"
    )
