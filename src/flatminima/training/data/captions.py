"""Images with texts that fit them, from tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flatminima.errors import InputError
from flatminima.progress import Progress
from flatminima.training.data.columns import Columns
from flatminima.training.data.examples import Captioned, Examples, Raw
from flatminima.training.data.frames import cells, check_shape, image_cells
from flatminima.training.data.images import sound
from flatminima.training.data.spec import DataSpec
from flatminima.training.data.streams import stream

if TYPE_CHECKING:
    from pandas import DataFrame

VALIDATION = 0.1
"""Part of the images to validate on, where neither the source nor the user says."""


def assemble(
    frames: Mapping[str, DataFrame],
    columns: Columns,
    spec: DataSpec,
    seed: int,
    *,
    name: str,
    where: Mapping[str, str],
    folder: Path,
    progress: Progress,
) -> Raw:
    """Check the rows and make pairs of an image and a text of them.

    A cell with a list of texts is as many pairs. Splits that the source lacks are cut off by image,
    so that no image is trained on with one text and tested with another.

    Args:
        frames: The rows of each split; has "train".
        columns: Their inputs are the column of the image and that of the text.
        spec: Says how much is cut off, and what to do about images that cannot be read.
        seed: Decides which.
        name: How to call the data set in a report.
        where: How to call each split in an error.
        folder: Where relative paths of images start.
        progress: Called after each image checked.

    Raises:
        InputError: a split has no rows or lacks a column, a text is missing, or an image cannot be
            read; or there are too few images to be divided.
    """
    splits, skipped = {}, []
    for split, frame in frames.items():
        check_shape(frame, columns.inputs, where[split])
        pictures, names = image_cells(frame, columns.inputs[0], folder, where[split])
        texts = _texts(frame, columns.inputs[1], where[split])
        good, bad = sound(pictures, names, spec.on_bad_file, progress)
        skipped += bad
        pairs = [(pictures[row], text) for row in good for text in texts[row]]
        captioned = Captioned([image for image, _ in pairs], [text for _, text in pairs])
        splits[split] = Examples(captioned, np.zeros(len(pairs), dtype=np.int64))
    fractions = {
        "test": spec.test_fraction,
        "validation": VALIDATION if spec.validation_fraction is None else spec.validation_fraction,
    }
    cut = [split for split in fractions if split not in splits]
    for split in cut:
        splits["train"], splits[split] = _by_image(splits["train"], fractions[split], seed, split)
    return Raw(
        name=name,
        kind="captioned",
        classes=(),
        splits=splits,
        details={
            "columns": {"image": columns.inputs[0], "text": columns.inputs[1]},
            "cut_off_by_image": cut,
            "images": {split: _images(part) for split, part in splits.items()},
            "skipped": skipped,
        },
        task="contrastive",
    )


def _by_image(
    examples: Examples, fraction: float, seed: int, split: str
) -> tuple[Examples, Examples]:
    assert isinstance(examples.inputs, Captioned)
    image = examples.inputs.pairs()[:, 0]
    images = int(image.max()) + 1 if len(image) else 0
    size = round(fraction * images)
    if fraction and not 0 < size < images:
        raise InputError(
            f"{images} images are too few to cut off {fraction:g} of them for {split}: add images, "
            "or bring the split yourself"
        )
    chosen = stream(seed, split).permutation(images)[:size]
    part = np.isin(image, chosen)
    return examples.take(np.flatnonzero(~part)), examples.take(np.flatnonzero(part))


def _images(examples: Examples) -> int:
    assert isinstance(examples.inputs, Captioned)
    return len(np.unique(examples.inputs.pairs()[:, 0]))


def _texts(frame: DataFrame, column: str, where: str) -> list[list[str]]:
    """The texts of each row."""
    found = []
    for row, cell in enumerate(_cells(frame, column), start=1):
        texts = cell if isinstance(cell, list) else [cell]
        for text in texts:
            if text is not None and not isinstance(text, str | int | float):
                raise InputError(
                    f"the text in row {row} of {where} is a {type(text).__name__}: choose another "
                    "column (--text-column)"
                )
        if not texts or any(text is None or not str(text).strip() for text in texts):
            raise InputError(
                f"the text in row {row} of {where}, column {column!r}, is empty: fill it in or "
                "remove the row"
            )
        found.append([str(text) for text in texts])
    return found


def _cells(frame: DataFrame, column: str) -> list[Any]:
    """As `cells`; Parquet's arrays are lists."""
    if any(isinstance(cell, list | np.ndarray) for cell in frame[column]):
        return [cell.tolist() if isinstance(cell, np.ndarray) else cell for cell in frame[column]]
    return cells(frame, column)
