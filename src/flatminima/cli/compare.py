"""`flatminima compare`: methods times seeds, and the table that compares them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from flatminima.cli import flags, report, screen
from flatminima.training.recipe import Recipe

METHODS, SEEDS = "plain,nso-one-pass,nso,sam", 5


def add_to(commands: Any) -> None:
    """Add the subcommand."""
    parser = flags.add_command(
        commands,
        "compare",
        "--out DIR",
        "compare methods over seeds, pair by pair, and print the table",
        "flatminima compare --data digits --perturb plain,nso,sam --seeds 5 --out runs/b",
    )
    parser.add_argument(
        "--perturb",
        default=argparse.SUPPRESS,
        metavar="METHODS",
        help="methods, separated by commas, the first the reference; options of one method follow "
        f"it as in nso:sigma=0.2:num_perturbations=2 (default: {METHODS})",
    )
    parser.add_argument(
        "--seeds",
        default=argparse.SUPPRESS,
        metavar="N",
        help=f"runs of each method (default: {SEEDS})",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="directory of the study; the same command again continues it",
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes (default: one for each core)"
    )
    parser.add_argument(
        "--ray", metavar="ADDRESS", help="run on this Ray cluster ('auto', 'ray://head:10001')"
    )
    flags.add_recipe_flags(parser, flags.TITLES, leave_out=("perturb",))
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the study and print its table; 1 if some runs failed."""
    said = flags.given(arguments)
    methods = said.pop("perturb", METHODS)
    if isinstance(methods, str):
        methods = [method.strip() for method in methods.split(",") if method.strip()]
    seeds = flags.whole("seeds", getattr(arguments, "seeds", said.pop("seeds", SEEDS)))
    said.pop("seeds", None)
    recipe = Recipe.from_flat(said)
    from flatminima.study.compare import compare
    from flatminima.study.table import rich_table
    from flatminima.training.methods import check_strengths

    check_strengths(said, methods)

    try:
        with screen.progress_bars() as progress:
            summary = compare(
                recipe,
                methods,
                seeds,
                arguments.out,
                workers=arguments.workers,
                ray=arguments.ray,
                progress=progress,
                on_outcome=screen.report_failure,
            )
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped; the same command again continues the study") from None
    screen.show(rich_table(summary), rich_table(summary, narrow=True))
    print(f"study directory: {arguments.out}")
    report.of_study(arguments.out)
    return 1 if summary["failed"] else 0
