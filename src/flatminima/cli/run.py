"""`flatminima run`: an experiment as its recipe file says, in full or small."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flatminima.cli import flags, report, screen
from flatminima.errors import InputError, unknown
from flatminima.training.recipe import Recipe, option_types, read

SHOWN = ("test_recall", "test_accuracy", "test_mae", "test_error", "test_loss", "hessian_trace")
"""The metrics of the picture, where the recipe's `about` has no list of them under `shows`."""

Point = tuple[dict[str, Any], dict[str, Any], Path]
"""Where on the grid, the summary of the study there, and its directory."""

BESIDE = ("perturb", "seeds", "vary", "small", "about")
"""The keys of an experiment that are no fields of a recipe."""


def add_to(commands: Any) -> None:
    """Add the subcommand."""
    parser = flags.add_command(
        commands,
        "run",
        "RECIPE",
        "run an experiment: methods times seeds, and along a setting where the recipe says so",
        "flatminima run recipes/paper/few-shot.yaml --small",
    )
    parser.add_argument("recipe", type=Path, metavar="RECIPE", help="YAML file of the experiment")
    parser.add_argument(
        "--small", action="store_true", help="with what the recipe says under `small`"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="directory (default: runs/NAME of the recipe)"
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes (default: one for each core)"
    )
    parser.add_argument("--ray", metavar="ADDRESS", help="run on this Ray cluster")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Read, check, run; 1 if some runs failed."""
    content = experiment(arguments.recipe, small=arguments.small)
    methods = content.pop("perturb", "plain")
    if isinstance(methods, str):
        methods = [method.strip() for method in methods.split(",") if method.strip()]
    seeds = flags.whole("seeds", content.pop("seeds", 1))
    grid, about = content.pop("vary", None), content.pop("about", None) or {}
    recipe = Recipe.from_flat(content)
    name = arguments.recipe.stem + ("-small" if arguments.small else "")
    out: Path = arguments.out or Path("runs") / name
    common: dict[str, Any] = {
        "workers": arguments.workers,
        "ray": arguments.ray,
        "on_outcome": screen.report_failure,
    }
    from flatminima.study.compare import compare
    from flatminima.study.table import rich_table
    from flatminima.study.vary import name_of, vary
    from flatminima.training.methods import check_strengths

    check_strengths(content, methods)
    try:
        with screen.progress_bars() as progress:
            if grid is None:
                summary = compare(recipe, methods, seeds, out, progress=progress, **common)
                points: list[Point] = [({}, summary, out)]
            else:
                found = vary(recipe, methods, seeds, grid, out, progress=progress, **common)
                points = [(p["at"], p["summary"], out / p["folder"]) for p in found["points"]]
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped; the same command again goes on") from None
    for at, summary, folder in points:
        if at:
            print(name_of(at))
        screen.show(rich_table(summary), rich_table(summary, narrow=True))
        report.of_study(folder)
    if grid is not None and len(grid) == 1:
        _draw(found, out / "figure.svg", about.get("shows", SHOWN))
    print(f"experiment directory: {out}")
    return 1 if any(summary["failed"] for _, summary, _ in points) else 0


def experiment(file: Path, *, small: bool) -> dict[str, Any]:
    """What a recipe file asks for: its keys, those under `small` over them if it is to be small.

    Raises:
        InputError: a key that is none of an experiment, with its line; `small` or `vary` is no
            mapping, or there is no `small`.
    """
    whole = read(file)
    _check_keys(file, whole)
    smaller = whole.pop("small", None)
    if smaller is not None and not isinstance(smaller, Mapping):
        raise InputError("the recipe key 'small' must hold a mapping of names to values")
    if small and smaller is None:
        raise InputError("the recipe has no 'small' version: leave --small out")
    _check_keys(file, smaller or {})
    asked = {**whole, **smaller} if small and smaller is not None else whole
    if not isinstance(asked.get("vary", {}), Mapping):
        raise InputError("the recipe key 'vary' must hold a mapping: a field and its values")
    if not isinstance(asked.get("about", {}), Mapping):
        raise InputError("the recipe key 'about' must hold a mapping: title, purpose, ...")
    return asked


def _check_keys(file: Path, asked: Mapping[str, Any]) -> None:
    known = [*option_types(), *BESIDE]
    for key in asked:
        if key not in known:
            lines = file.read_text(encoding="utf-8").splitlines()
            places = [n for n, line in enumerate(lines, 1) if line.strip().startswith(f"{key}:")]
            where = f"{file}, line {places[0]}" if places else str(file)
            raise InputError(f"{where}: {unknown('recipe key', str(key), known)}")


def _draw(found: dict[str, Any], file: Path, metrics: Sequence[str]) -> None:
    from flatminima.study.vary_plot import draw

    try:
        draw(found, file, metrics)
        print(f"picture: {file}")
    except InputError as error:
        screen.say(f"no picture: {error}")
