"""`flatminima run`: an experiment as its recipe file says, in full or small."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flatminima.cli import flags, report, screen
from flatminima.cli.experiment import parse, placed
from flatminima.errors import InputError

SHOWN = ("test_recall", "test_accuracy", "test_mae", "test_error", "test_loss", "hessian_trace")
"""The metrics of the picture, where the recipe's `about` has no list of them under `shows`."""

Point = tuple[dict[str, Any], dict[str, Any], Path]
"""Where on the grid, the summary of the study there, and its directory."""


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
    asked = parse(arguments.recipe, small=arguments.small)
    recipe, methods, seeds, grid = asked.recipe, asked.methods, asked.seeds, asked.grid
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

    try:
        with screen.progress_bars() as progress:
            if grid is None:
                summary = compare(recipe, methods, seeds, out, progress=progress, **common)
                points: list[Point] = [({}, summary, out)]
            else:
                found = vary(recipe, methods, seeds, grid, out, progress=progress, **common)
                points = [(p["at"], p["summary"], out / p["folder"]) for p in found["points"]]
    except InputError as error:
        raise placed(arguments.recipe, error, small=arguments.small) from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped; the same command again goes on") from None
    for at, summary, folder in points:
        if at:
            print(name_of(at))
        screen.show(rich_table(summary), rich_table(summary, narrow=True))
        report.of_study(folder)
    if grid is not None and "domains" in found:
        whole = found["domains"]
        screen.show(rich_table(whole), rich_table(whole, narrow=True))
    if grid is not None and len(grid) == 1:
        _draw(found, out / "figure.svg", asked.about.get("shows", SHOWN))
    print(f"experiment directory: {out}")
    return 1 if any(summary["failed"] for _, summary, _ in points) else 0


def _draw(found: dict[str, Any], file: Path, metrics: Sequence[str]) -> None:
    from flatminima.study.vary_plot import draw

    try:
        draw(found, file, metrics)
        print(f"picture: {file}")
    except InputError as error:
        screen.say(f"no picture: {error}")
