"""`flatminima measure`: the curvature of a finished run, a checkpoint or a pretrained model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from flatminima.cli import flags, screen


def add_to(commands: Any) -> None:
    """Add the subcommand."""
    parser = flags.add_command(
        commands,
        "measure",
        "TARGET",
        "measure the curvature of a run, a checkpoint or a transformers model",
        "flatminima measure runs/a --probes 300",
    )
    parser.add_argument(
        "target",
        help="a run directory, one of its checkpoints, or (with --data) a transformers model",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="JSON file (default: measure.json in the run, measure-NAME.json for a checkpoint)",
    )
    flags.add_recipe_flags(parser, ("data", "measure"), leave_out=("measure",))
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Measure and print the report."""
    said = flags.given(arguments)
    from flatminima.files import write_json
    from flatminima.training.measuring import measure_target

    with screen.progress_bars() as progress:
        report, file = measure_target(arguments.target, said, progress=progress, say=screen.say)
    print(report)
    out = arguments.out or file
    if out is not None:
        write_json(out, report.to_dict())
        print(f"\nwritten to {out}")
