"""`flatminima finetune`: one run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from flatminima.cli import flags, screen
from flatminima.errors import InputError
from flatminima.training.recipe import flag


def add_to(commands: Any) -> None:
    """Add the subcommand."""
    parser = flags.add_command(
        commands,
        "finetune",
        "fine-tune a model, measure its curvature, and leave a run directory",
        "flatminima finetune --data digits --perturb nso --sigma 0.1 --out runs/a",
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", type=Path, metavar="DIR", help="new directory for the run")
    where.add_argument(
        "--resume", type=Path, metavar="DIR", help="continue the run in this directory"
    )
    flags.add_recipe_flags(parser, flags.TITLES)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Train and print what came out."""
    recipe = flags.recipe_from(arguments)
    if arguments.resume is not None and flags.given(arguments):
        raise InputError(
            f"--resume {arguments.resume} goes on with that run's own recipe: leave out "
            + ", ".join(sorted(flag(name) for name in flags.given(arguments)))
        )
    from flatminima.training.run import finetune, is_main_process, resume

    with screen.progress_bars() as progress:
        if arguments.resume is not None:
            results = resume(arguments.resume, progress=progress, say=screen.say)
        else:
            results = finetune(recipe, arguments.out, progress=progress)
    if not is_main_process():
        return
    for name, value in results["metrics"].items():
        print(f"{name:<20} {value:.6g}")
    print(f"\nrun directory: {arguments.resume or arguments.out}")
