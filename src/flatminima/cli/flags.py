"""Flags made from the fields of a recipe, and a recipe made from flags and a file."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

from flatminima.errors import InputError, require
from flatminima.training.recipe import Recipe, flag, literals, option_types, read
from flatminima.training.specs import SECTIONS

PICTURES = (".png", ".svg", ".pdf")

TITLES = {
    "data": "data",
    "model": "model",
    "reparam": "which weights are free",
    "objective": "what is minimized",
    "perturb": "where the gradient is taken",
    "optimizer": "optimizer",
    "loop": "training",
    "tune": "tuning by validation",
    "measure": "measuring",
}


def add_command(
    commands: Any, name: str, usage: str, summary: str, example: str
) -> argparse.ArgumentParser:
    """A subcommand whose help ends with an example."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"example:\n  {example}",
        usage=f"flatminima {name} {usage} [options]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    return parser


def add_recipe_flags(
    parser: argparse.ArgumentParser, sections: Iterable[str], leave_out: Iterable[str] = ()
) -> None:
    """A flag for each field of the sections, its default in the help; `--recipe` reads a file."""
    parser.add_argument(
        "--recipe", type=Path, metavar="FILE", help="YAML file with any of these; flags override it"
    )
    types = option_types()
    for section in sections:
        group = parser.add_argument_group(TITLES[section])
        for f in fields(SECTIONS[section]):
            if f.name not in leave_out:
                _add_flag(group, f.name, types[f.name][1], f.default, f.metadata["help"])


def given(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the recipe file and the flags say together, flags last; only what was said."""
    content = read(arguments.recipe) if arguments.recipe is not None else {}
    names = set(option_types())
    return content | {k: v for k, v in vars(arguments).items() if k in names}


def recipe_from(arguments: argparse.Namespace) -> Recipe:
    """The recipe of the file and the flags."""
    return Recipe.from_flat(given(arguments))


def words(values: Mapping[str, Any]) -> list[str]:
    """The flags that say these fields of a recipe; those that are None are left out."""
    plain = Recipe.from_flat(values).flat()
    said: list[str] = []
    for name in values:
        value = plain[name]
        if isinstance(value, bool):
            said.append(flag(name) if value else flag(f"no_{name}"))
        elif value is not None:
            said += [flag(name), f"{value:g}" if isinstance(value, float) else str(value)]
    return said


def whole(name: str, value: Any) -> int:
    """A whole number from a flag or a file.

    Raises:
        InputError: it is none.
    """
    try:
        return int(str(value))
    except ValueError:
        raise InputError(f"--{name} is {value!r}: give a whole number") from None


def check_picture(path: Path) -> None:
    """Refuse a picture that could not be drawn, before the work that it shows is done.

    Raises:
        InputError: its name is of no picture, or matplotlib is not installed.
    """
    require("matplotlib", "plot")
    if path.suffix not in PICTURES:
        raise InputError(f"--plot is {path}: give a name in {', '.join(PICTURES)}")


def _add_flag(group: Any, name: str, kind: Any, default: Any, text: str) -> None:
    # A flag that is not given leaves no trace, so that a file's value stands.
    common: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS}
    if kind is bool:
        shown = "on" if default else "off"
        common["action"] = argparse.BooleanOptionalAction
    else:
        shown = default
        common["metavar"] = _metavar(kind)
    if default is not None:
        text = f"{text} (default: {shown})"
    group.add_argument(flag(name), help=text.replace("%", "%%"), **common)


def _metavar(kind: Any) -> str:
    """What a value looks like: its choices, N for a whole number, X for a number, else TEXT."""
    choices = literals(kind)
    if choices:
        return "{" + ",".join(map(str, choices)) + "}"
    parts = get_args(kind) or (kind,)
    return "N" if int in parts else "X" if float in parts else "TEXT"
