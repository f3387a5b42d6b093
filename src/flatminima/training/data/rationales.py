"""Tables of questions with a rationale and an answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from flatminima.errors import InputError
from flatminima.training.data.columns import named
from flatminima.training.data.examples import Examples, Raw
from flatminima.training.data.frames import cells
from flatminima.training.data.spec import DataSpec

if TYPE_CHECKING:
    from pandas import DataFrame

COLUMNS = ("question", "rationale", "answer")
FEWEST = 4


def of_frames(
    frames: Mapping[str, DataFrame], spec: DataSpec, *, name: str, where: Mapping[str, str]
) -> Raw:
    """Questions, rationales and answers of the rows.

    The columns are "question", "rationale" and "answer"; `text_column` may name the first two as
    `question,rationale` and `label_column` the third. A question and an answer are texts, numbers,
    or for answers truth values, which become yes and no; a rationale is a text, or a list of texts,
    which are joined by spaces. A rationale may be missing: then the answer comes at once.

    Args:
        frames: The rows of each split; has "train".
        spec: May name the columns.
        name: How to call the data set in a report.
        where: How to call each split in an error.

    Raises:
        InputError: a column or a cell is missing or of the wrong kind, or there are too few rows.
    """
    columns = _columns(spec)
    splits = {
        split: _examples(frame, columns, where[split], fewest=FEWEST if len(frames) == 1 else 1)
        for split, frame in frames.items()
    }
    return Raw(
        name=name,
        kind="text",
        classes=(),
        splits=splits,
        details={"columns": dict(zip(COLUMNS, (c for c, _ in columns), strict=True))},
        task="rationales",
    )


def examples_of(triples: list[tuple[str, str, str]]) -> Examples:
    """Triples (question, rationale, answer) as examples; their targets, all 0, say nothing."""
    return Examples(triples, np.zeros(len(triples), dtype=np.int64))


def _columns(spec: DataSpec) -> tuple[tuple[str, str], ...]:
    """Each column's name, and the flag that may name it."""
    texts = COLUMNS[:2]
    if spec.text_column:
        parts = tuple(part.strip() for part in spec.text_column.split(","))
        if len(parts) != 2:
            raise InputError(
                f"--text-column is {spec.text_column!r}: for --task rationales name two columns, "
                "as question,rationale"
            )
        texts = parts
    flags = ("--text-column", "--text-column", "--label-column")
    return tuple(zip((*texts, spec.label_column or COLUMNS[2]), flags, strict=True))


def _examples(
    frame: DataFrame, columns: tuple[tuple[str, str], ...], where: str, fewest: int
) -> Examples:
    if len(frame) < fewest:
        raise InputError(f"{where} has {len(frame)} rows: give at least {fewest}")
    question, rationale, answer = (
        cells(frame, named(list(frame.columns), column, flag, where)) for column, flag in columns
    )
    triples = []
    for row, cell in enumerate(zip(question, rationale, answer, strict=True), start=1):
        place = f"row {row} of {where}"
        triples.append((_text(cell[0], place), _steps(cell[1], place), _answer(cell[2], place)))
    return examples_of(triples)


def _text(cell: object, where: str) -> str:
    if isinstance(cell, bool) or not isinstance(cell, str | int | float):
        raise InputError(f"{where} has no question: give a text, or remove the row")
    return _not_empty(str(cell), where, "question")


def _steps(cell: object, where: str) -> str:
    parts: list[Any] = list(cell) if isinstance(cell, list | tuple | np.ndarray) else [cell or ""]
    if not all(isinstance(part, str) for part in parts):
        raise InputError(
            f"the rationale in {where} is a {type(cell).__name__}: give a text or a list of texts"
        )
    return " ".join(" ".join(parts).split())


def _answer(cell: object, where: str) -> str:
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if not isinstance(cell, str | int | float):
        raise InputError(
            f"{where} has no answer: give a text, a number, or true or false; or remove the row"
        )
    return _not_empty(str(cell), where, "answer")


def _not_empty(text: str, where: str, what: str) -> str:
    if not text.strip():
        raise InputError(f"the {what} in {where} is empty: fill it in or remove the row")
    return text.strip()
