"""`flatminima measure`: the curvature of a finished run, a checkpoint or a pretrained model."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flatminima.cli import flags, screen
from flatminima.errors import InputError
from flatminima.training.recipe import flag


def numbers(text: str) -> tuple[float, ...]:
    """Numbers between commas."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no list of numbers: give them as 0.01,0.1"
        ) from None


SETTINGS: tuple[tuple[str, Callable[[str], Any], str], ...] = (
    ("rel_error", float, "stop the trace at this relative standard error, such as 0.02"),
    ("max_seconds", float, "about how long it may take; what there is then is reported"),
    ("max_gradients", int, "about how many gradients over all samples it may cost"),
    ("eigenvalues", int, "how many of the largest eigenvalues (default: 1)"),
    ("sigmas", numbers, "sigmas of the noise (default: that of --measure-sigma)"),
    ("params", str, "only parameters whose names match, such as 'encoder.*'"),
)
"""Flags beside the recipe's; all but `sigmas` are arguments of `curvature`."""

PARTIAL = ("interrupted", "budget", "error")
"""Why a report may hold less than was asked for."""

METAVARS = {float: "X", int: "N", str: "GLOB", numbers: "X,X,..."}


def add_to(commands: Any) -> None:
    """Add the subcommand."""
    parser = flags.add_command(
        commands,
        "measure",
        "TARGET",
        "measure the curvature of a run, a checkpoint or a transformers model",
        "flatminima measure runs/a --rel-error 0.02 --max-seconds 60",
    )
    parser.add_argument(
        "target",
        help="a run directory, one of its checkpoints, or (with --data) a transformers model",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="JSON file (default: measure.json in the run, measure-NAME.json for a checkpoint, "
        "measure-params.json with --params)",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw it too: a .png, .svg, .pdf")
    group = parser.add_argument_group("what, and how exactly")
    for name, kind, text in SETTINGS:
        group.add_argument(flag(name), type=kind, metavar=METAVARS[kind], help=text)
    group.add_argument(
        "--lowest", action="store_true", help="the smallest eigenvalue too, the most negative"
    )
    group.add_argument("--density", action="store_true", help="the density of all eigenvalues too")
    group.add_argument(
        "--bound",
        action="store_true",
        help="a PAC-Bayes bound on a run's test loss too, in bound.json (of all parameters, and "
        "beside the budget)",
    )
    flags.add_recipe_flags(parser, ("data", "measure"), leave_out=("measure",))
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure and print the report; what there is after Ctrl-C."""
    said = flags.given(arguments)
    from flatminima.files import write_json
    from flatminima.training.measuring import measure_target

    asked = {name: getattr(arguments, name) for name, *_ in SETTINGS}
    settings = {name: value for name, value in asked.items() if value is not None}
    if "rel_error" in settings and "probes" not in said:
        settings["probes"] = None  # as many as it takes, whatever the recipe says
    if "sigmas" in settings:
        settings["sigma"] = settings.pop("sigmas")
    settings |= {name: True for name in ("density", "lowest") if getattr(arguments, name)}
    if arguments.bound and arguments.params is not None:
        raise InputError("a bound is about all parameters: leave --params or --bound out")
    if arguments.plot is not None:
        flags.check_picture(arguments.plot)
    with screen.progress_bars() as progress:
        report, file = measure_target(
            arguments.target, said, settings=settings, progress=progress, say=screen.say
        )
    print(report)
    cut = report.stopped == "interrupted"
    if file is not None and report.selection:
        file = file.with_name(f"{file.stem}-params{file.suffix}")
    out = arguments.out or file
    if out is not None:
        if report.stopped in PARTIAL and (cut or out.exists()):
            # A whole report is not overwritten by a part of one.
            out = out.with_name(f"{out.stem}-partial{out.suffix}")
        write_json(out, report.to_dict())
        print(f"\nwritten to {out}")
    if arguments.plot is not None:
        report.plot().savefig(arguments.plot)
        print(f"drawn in {arguments.plot}")
    if arguments.bound and not cut:
        _bound(arguments.target, said)
    return 130 if cut else 1 if report.stopped == "error" else 0


def _bound(target: str, said: dict[str, Any]) -> None:
    """Compute, print and write the bound."""
    from flatminima.files import write_json
    from flatminima.training.measuring import bound_target

    with screen.progress_bars() as progress:
        found, file = bound_target(target, said, progress=progress, say=screen.say)
    print(f"\n{found}")
    if file is not None:
        write_json(file, found.to_dict())
        print(f"\nwritten to {file}")
