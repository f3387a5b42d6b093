"""`flatminima report`: results files as one HTML page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from flatminima.cli import flags, screen
from flatminima.errors import InputError

NAME = "report.html"


def add_to(commands: Any) -> None:
    """Add the subcommand."""
    parser = flags.add_command(
        commands,
        "report",
        "STUDY | RUN [RUN ...]",
        "make one HTML page of a study or of runs",
        "flatminima report runs/demo",
    )
    parser.add_argument(
        "targets",
        nargs="+",
        type=Path,
        metavar="TARGET",
        help="the directory of a study, or its results.json alone, or run directories",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help=f"the page (default: {NAME} in the directory; {NAME} here for several)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Read, write, and say what is missing."""
    targets: list[Path] = arguments.targets
    one = targets[0] if len(targets) == 1 and targets[0].is_dir() else Path()
    out: Path = arguments.out or one / NAME
    if out.is_dir():
        raise InputError(f"--out is {out}, a directory: give the name of the page, such as {NAME}")
    from flatminima.report import write_report

    study = write_report(targets, out)
    for note in study.notes:
        screen.say(note)
    print(f"report: {out}")
    return 0


def of_study(folder: Path) -> None:
    """Make the page of a study; what it lacks must not fail a study that is done."""
    from flatminima.report import write_report

    try:
        write_report([folder], folder / NAME)
    except InputError as error:
        screen.say(f"no report: {error}")
    else:
        print(f"report: {folder / NAME}")
