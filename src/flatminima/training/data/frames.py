"""From data frames, one per split, to checked examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flatminima.errors import InputError
from flatminima.progress import Progress
from flatminima.training.data.columns import Columns
from flatminima.training.data.examples import Examples, Inputs, Raw
from flatminima.training.data.images import sound
from flatminima.training.data.labels import check_left, encode_labels
from flatminima.training.data.numbers import read_numbers
from flatminima.training.data.spec import OnBadFile, Task

if TYPE_CHECKING:
    from pandas import DataFrame


def assemble(
    frames: Mapping[str, DataFrame],
    columns: Columns,
    *,
    name: str,
    where: Mapping[str, str],
    folder: Path,
    on_bad_file: OnBadFile,
    progress: Progress,
    label_names: Sequence[str] | None = None,
    task: Task | None = None,
) -> Raw:
    """Check the cells of the chosen columns and make examples of the rows.

    Args:
        frames: The rows of each split; has "train".
        columns: Which columns to use.
        name: How to call the data set in a report.
        where: How to call each split in an error.
        folder: Where relative paths of images start.
        on_bad_file: "stop" at images that cannot be read, or "skip" them.
        progress: Called after each image checked.
        label_names: Names of the classes 0 to K-1, where the source declares them.
        task: What the labels are; classes where it is None.

    Raises:
        InputError: a split has no rows or lacks a column, a cell is missing or of the wrong kind,
            or an image cannot be read.
    """
    for split, frame in frames.items():
        check_shape(frame, (*columns.inputs, columns.label), where[split])
    labels = {split: cells(frame, columns.label) for split, frame in frames.items()}
    classes: tuple[str, ...] = ()
    targets: Mapping[str, NDArray[Any]]
    if task == "regression":
        targets = read_numbers(labels, where, label_names)
    else:
        classes, targets = encode_labels(labels, where, label_names)
    splits, skipped = {}, []
    for split, frame in frames.items():
        if columns.kind == "vector":
            splits[split] = Examples(_features(frame, columns, where[split]), targets[split])
        elif columns.kind == "text":
            splits[split] = Examples(_texts(frame, columns, where[split]), targets[split])
        else:
            images, names = image_cells(frame, columns.inputs[0], folder, where[split])
            good, bad = sound(images, names, on_bad_file, progress)
            skipped += bad
            splits[split] = Examples(images, targets[split]).take(good)
            if split == "train" and classes:
                check_left(classes, targets[split], targets[split][good])
    details: dict[str, Any] = {
        "columns": {"inputs": list(columns.inputs), "label": columns.label},
        "skipped": skipped,
    }
    return Raw(
        name=name,
        kind=columns.kind,
        classes=classes,
        splits=splits,
        details=details,
        task=task or "classification",
    )


def cells(frame: DataFrame, column: str) -> list[object]:
    """The cells of a column as Python values, a missing one as None."""
    missing = frame[column].isna().tolist()
    return [
        None if absent else value.item() if isinstance(value, np.generic) else value
        for value, absent in zip(frame[column].tolist(), missing, strict=True)
    ]


def check_shape(frame: DataFrame, wanted: Sequence[str], where: str) -> None:
    """Refuse a table that has no rows or lacks a column.

    Raises:
        InputError: so it is.
    """
    if len(frame) == 0:
        raise InputError(f"{where} has no rows: add some, or remove it")
    present = list(frame.columns)
    for name in wanted:
        if name not in present:
            raise InputError(
                f"{where} has no column {name!r}, which the training table has: "
                f"add or rename it; the columns are {', '.join(map(str, present))}"
            )


def _texts(frame: DataFrame, columns: Columns, where: str) -> Inputs:
    read = [_text_column(frame, column, where) for column in columns.inputs]
    return read[0] if len(read) == 1 else list(zip(read[0], read[1], strict=True))


def _text_column(frame: DataFrame, column: str, where: str) -> list[str]:
    values = cells(frame, column)
    empty = [
        row
        for row, value in enumerate(values, start=1)
        if value is None or (isinstance(value, str) and not value.strip())
    ]
    if empty:
        more = f" (and {len(empty) - 1} more)" if len(empty) > 1 else ""
        raise InputError(
            f"the text in row {empty[0]}{more} of {where}, column {column!r}, is empty: "
            "fill it in or remove the row"
        )
    for row, value in enumerate(values, start=1):
        if not isinstance(value, str | int | float):
            raise InputError(
                f"the text in row {row} of {where}, column {column!r}, is a "
                f"{type(value).__name__}: choose another column (--text-column)"
            )
    return [str(value) for value in values]


def _features(frame: DataFrame, columns: Columns, where: str) -> Inputs:
    chosen = frame[list(columns.inputs)]
    try:
        features = chosen.to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{where} has a feature that is not a number ({error}): correct it, or name the input "
            "by --text-column or --image-column"
        ) from error
    bad = np.argwhere(~np.isfinite(features) | (np.abs(features) > np.finfo(np.float32).max))
    if len(bad):
        row, column = bad[0]
        raise InputError(
            f"row {row + 1} of {where} has no finite number in column "
            f"{columns.inputs[column]!r}: fill it in or remove the row"
        )
    single: Inputs = features.astype(np.float32)
    return single


def image_cells(
    frame: DataFrame, column: str, folder: Path, where: str
) -> tuple[list[Path | bytes], list[str]]:
    """The image of each row, a file or its bytes, and how to call it.

    Raises:
        InputError: a cell has none.
    """
    images: list[Path | bytes] = []
    names = []
    for row, cell in enumerate(cells(frame, column), start=1):
        # Hugging Face tables hold an image as {"bytes": ..., "path": ...}, one of them None.
        content = cell.get("bytes") if isinstance(cell, dict) else cell
        path = cell.get("path") if isinstance(cell, dict) else cell
        if isinstance(content, bytes):
            images.append(content)
            names.append(path if isinstance(path, str) else f"row {row} of {where}")
        elif isinstance(path, str) and path.strip():
            images.append(folder / path.strip())
            names.append(path.strip())
        else:
            raise InputError(
                f"row {row} of {where} has no image in column {column!r}: "
                "give the path of a file, or remove the row"
            )
    return images, names
