"""The built-in data sets by name, and what is known of each before it is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import TypeAlias

from flatminima.errors import InputError, unknown
from flatminima.progress import Progress
from flatminima.training.brackets import parse_brackets
from flatminima.training.data import (
    arithmetic,
    cosines,
    diabetes,
    digits,
    glyphs,
    matrix_sensing,
    pydocs,
    rotated_digits,
    scenes,
    two_bits,
)
from flatminima.training.data.examples import Raw
from flatminima.training.data.spec import DataSpec

Source: TypeAlias = Callable[[DataSpec, int, Progress], Raw]


@dataclass(frozen=True)
class BuiltIn:
    """A data set that comes with the library.

    Attributes:
        load: Reads it.
        kind: What its inputs are, as `Raw` has it.
        task: What it is for, as `Raw` has it.
        validation: Part of the training examples set aside for validation where the user says
            nothing; None: it brings a validation set of its own.
        setting: Reads its options in brackets, and refuses wrong ones; None: it takes no options.
    """

    load: Source
    kind: str
    task: str = "classification"
    validation: float | None = 0.1
    setting: Callable[[str], object] | None = None


BUILTIN: dict[str, BuiltIn] = {
    "arithmetic": BuiltIn(arithmetic.load, "text", "rationales", None, arithmetic.setting_of),
    "cosines": BuiltIn(cosines.load, "measurement", "cosines", None, cosines.setting_of),
    "diabetes": BuiltIn(diabetes.load, "vector", "regression"),
    "digits": BuiltIn(digits.load, "image", validation=0.0),
    "glyphs": BuiltIn(glyphs.load, "image", validation=None),
    "matrix-sensing": BuiltIn(
        matrix_sensing.load, "measurement", "matrix-sensing", 0.0, matrix_sensing.setting_of
    ),
    "pydocs": BuiltIn(pydocs.load, "text"),
    "scene-classes": BuiltIn(
        scenes.load_classes, "image", "base-to-novel", 0.0, scenes.setting_of_classes
    ),
    "scenes": BuiltIn(scenes.load, "captioned", "contrastive", 0.0, scenes.setting_of),
    "rotated-digits": BuiltIn(rotated_digits.load, "image", validation=0.0),
    "two-bits": BuiltIn(two_bits.load, "vector", validation=None, setting=two_bits.setting_of),
}


def builtin(data: str) -> BuiltIn | None:
    """The built-in data set that `data` names, its options found right; None where it names none.

    Raises:
        InputError: an option that it does not have, or out of its range.
    """
    name = data.partition("(")[0].strip()
    found = BUILTIN.get(name)
    if found is None:
        return None
    _, given = parse_brackets(data)
    if name == "scene-classes" and not scenes.setting_of_classes(data)[1]:
        # Without novel classes they are classes as of any images.
        return replace(found, task="classification")
    if found.setting is not None:
        found.setting(data)
    elif given:
        raise InputError(f"{name} takes no options, not {', '.join(given)}: write {name} alone")
    return found


def misspelt(data: str, closeness: float) -> InputError | None:
    """An error for what is nearly the name of a built-in data set, else None.

    Args:
        data: What is no built-in name.
        closeness: How alike names must be, from 0 to 1, as `difflib` counts it.
    """
    name = data.partition("(")[0].strip()
    if "(" in data or get_close_matches(name, BUILTIN, n=1, cutoff=closeness):
        return unknown("data set", name, BUILTIN)
    return None
