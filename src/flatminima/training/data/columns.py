"""Which columns of a table are the input and the label."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from flatminima.errors import InputError
from flatminima.training.data.examples import Kind
from flatminima.training.data.spec import DataSpec

LABELS = ("label", "labels", "target", "class")
TEXTS = ("text", "sentence", "content")
CAPTIONS = ("caption", "captions", *TEXTS, "sentences", "title")
IMAGES = ("image", "img", "image_path", "path", "file", "file_name", "filename")


@dataclass(frozen=True)
class Columns:
    """The columns a task is made of.

    Attributes:
        kind: What the inputs are.
        inputs: One column; two for pairs of texts; all the features for vectors.
        label: The column with the label; "" for images with texts, which have none.
    """

    kind: Kind
    inputs: tuple[str, ...]
    label: str


def choose(names: Sequence[str], spec: DataSpec, numeric: Sequence[str], where: str) -> Columns:
    """Find the columns the user named, or those whose usual names leave no doubt.

    Without a text or image column, a table whose other columns are all numbers is one of features.

    Args:
        names: All columns.
        spec: Says which columns the user named.
        numeric: The columns that hold numbers only.
        where: How to call the table in an error.

    Raises:
        InputError: a column is missing, or it is not clear which one is meant.
    """
    if spec.text_column and spec.image_column:
        raise InputError(
            f"both --text-column {spec.text_column} and --image-column {spec.image_column} are "
            "given: an input is one or the other, leave one out; or say --task contrastive, for "
            "images with texts that fit them"
        )
    label = _label(names, spec, where)
    if spec.text_column:
        columns = Columns("text", _texts(names, spec.text_column, where), label)
    elif spec.image_column:
        chosen = named(names, spec.image_column, "--image-column", where)
        columns = Columns("image", (chosen,), label)
    else:
        columns = _inputs(names, label, numeric, where)
    if label in columns.inputs:
        raise InputError(
            f"the column {label!r} of {where} is taken for both input and label: "
            "name the label by --label-column"
        )
    return columns


def choose_captioned(names: Sequence[str], spec: DataSpec, where: str) -> Columns:
    """The columns of the image and of the text that fits it, for the task "contrastive".

    Args:
        names: All columns.
        spec: Says which columns the user named.
        where: How to call the table in an error.

    Raises:
        InputError: a column is missing, or it is not clear which one is meant.
    """
    image = _one_of(names, spec.image_column, IMAGES, "--image-column", where)
    text = _one_of(names, spec.text_column, CAPTIONS, "--text-column", where)
    if image == text:
        raise InputError(f"the column {image!r} of {where} cannot be both image and text")
    return Columns("captioned", (image, text), "")


def _one_of(
    names: Sequence[str], asked: str | None, usual: Sequence[str], flag: str, where: str
) -> str:
    if asked:
        return named(names, asked, flag, where)
    found = [name for name in names if name.lower() in usual]
    if len(found) == 1:
        return found[0]
    what = f"several columns of {where} may be it ({', '.join(found)})" if found else ""
    raise InputError(
        f"{what or f'no column of {where} is called {usual[0]} or the like'}: name it by {flag}; "
        f"{_listed(names)}"
    )


def _label(names: Sequence[str], spec: DataSpec, where: str) -> str:
    if spec.label_column:
        return named(names, spec.label_column, "--label-column", where)
    # A column the user called the input is no candidate for the label.
    taken = {spec.text_column, spec.image_column}
    found = [name for name in names if name.lower() in LABELS and name not in taken]
    if len(found) == 1:
        return found[0]
    problem = (
        f"several columns of {where} may be the label ({', '.join(found)})"
        if found
        else f"no column of {where} is called {', '.join(LABELS[:-1])} or {LABELS[-1]}"
    )
    raise InputError(f"{problem}: name it by --label-column; {_listed(names)}")


def _texts(names: Sequence[str], asked: str, where: str) -> tuple[str, ...]:
    parts = [part.strip() for part in asked.split(",")]
    if asked in names or len(parts) == 1:
        return (named(names, asked, "--text-column", where),)
    if len(parts) > 2 or parts[0] == parts[1]:
        raise InputError(
            f"--text-column {asked!r} names {len(parts)} columns: give one, or two different ones"
        )
    return tuple(named(names, part, "--text-column", where) for part in parts)


def _inputs(names: Sequence[str], label: str, numeric: Sequence[str], where: str) -> Columns:
    others = [name for name in names if name != label]
    texts = [name for name in others if name.lower() in TEXTS]
    images = [name for name in others if name.lower() in IMAGES]
    if len(texts) + len(images) == 1:
        return Columns("text" if texts else "image", tuple(texts or images), label)
    if texts or images:
        raise InputError(
            f"several columns of {where} may be the input ({', '.join(texts + images)}): "
            f"name it by --text-column or --image-column; {_listed(names)}"
        )
    if others and set(others) <= set(numeric):
        return Columns("vector", tuple(others), label)
    raise InputError(
        f"it is not clear which column of {where} is the input: name it by --text-column or "
        f"--image-column (or keep only numbers beside the label); {_listed(names)}"
    )


def named(names: Sequence[str], asked: str, flag: str, where: str) -> str:
    """A column that a flag names, if it is there.

    Raises:
        InputError: it is not.
    """
    if asked in names:
        return asked
    nearest = difflib.get_close_matches(asked, names, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    raise InputError(f"{where} has no column {asked!r} ({flag}): {hint}{_listed(names)}")


def _listed(names: Sequence[str]) -> str:
    return f"the columns are {', '.join(names)}"


def check_unique(names: Sequence[str], where: str) -> None:
    """Refuse a table in which a name could mean two columns.

    Raises:
        InputError: two columns have the same name.
    """
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(
            f"{where} has more than one column called {', '.join(map(repr, twice))}: "
            "rename or remove all but one"
        )
