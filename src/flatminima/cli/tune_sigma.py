"""`flatminima tune-sigma`: a sweep of sigma or rho, decided by validation."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from flatminima.cli import flags, screen
from flatminima.errors import InputError
from flatminima.training.recipe import Recipe

METHOD, SEEDS = "nso-one-pass", 3


def add_to(commands: Any) -> None:
    """Add the subcommand."""
    parser = flags.add_command(
        commands,
        "tune-sigma",
        "--out DIR",
        "find a sigma (or rho): a start value, and a sweep decided by validation loss",
        "flatminima tune-sigma --data digits --perturb nso --out runs/t",
    )
    parser.add_argument(
        "--perturb",
        default=argparse.SUPPRESS,
        metavar="METHOD",
        help=f"one method, its other options after it as in nso:interval=2 (default: {METHOD})",
    )
    parser.add_argument(
        "--values",
        metavar="X,X,...",
        help="values of sigma or rho (default: 1/4, 1/2, 1, 2 and 4 times the start value, "
        "for rho times the model's default)",
    )
    parser.add_argument(
        "--seeds",
        default=argparse.SUPPRESS,
        metavar="N",
        help=f"runs of each value (default: {SEEDS})",
    )
    parser.add_argument(
        "--start-only",
        action="store_true",
        help="print the start value of sigma only: one plain epoch and a few forward passes",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="directory of the sweep; the same command again continues it",
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes (default: one for each core)"
    )
    parser.add_argument(
        "--ray", metavar="ADDRESS", help="run on this Ray cluster ('auto', 'ray://head:10001')"
    )
    flags.add_recipe_flags(parser, flags.TITLES, leave_out=("perturb", "sigma", "rho"))
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Sweep and print the table and what to run next; 1 if some runs failed."""
    said = flags.given(arguments)
    method = str(said.pop("perturb", METHOD))
    seeds = flags.whole("seeds", getattr(arguments, "seeds", said.pop("seeds", SEEDS)))
    for tuned in ("seeds", "sigma", "rho"):
        said.pop(tuned, None)
    recipe = Recipe.from_flat(said)
    values = None if arguments.values is None else _numbers(arguments.values)
    from flatminima.study.sweep_table import sweep_table
    from flatminima.study.tune import tune_sigma
    from flatminima.training.methods import tuned_strength

    strength = tuned_strength(method)
    if arguments.start_only:
        _start_only(recipe, method, strength, arguments.out)
        return 0
    try:
        with screen.progress_bars() as progress:
            result = tune_sigma(
                recipe,
                method,
                values,
                seeds,
                out=arguments.out,
                workers=arguments.workers,
                ray=arguments.ray,
                progress=progress,
                on_outcome=screen.report_failure,
            )
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped; the same command again continues the sweep") from None
    screen.show(sweep_table(result), sweep_table(result, narrow=True))
    print(f"sweep directory: {arguments.out}")
    chosen = {"perturb": method, strength: result["best"]} if result["best"] else {}
    print(f"\nnext: {_next(said, chosen, arguments.out)}")
    return 1 if result["failed"] else 0


def _start_only(recipe: Recipe, method: str, strength: str, out: Path) -> None:
    """Print the start value."""
    from flatminima.measure import StartSigma
    from flatminima.study.tune import start_value
    from flatminima.training.checks import for_methods

    if strength != "sigma":
        raise InputError(f"a start value is of sigma, and {method!r} has {strength}: sweep it")
    for_methods(recipe, [method])
    found = start_value(recipe, out)
    del found["loss_before"]
    print(f"sigma {StartSigma.from_dict(found)}")


def _numbers(text: str) -> list[float]:
    try:
        return [float(word) for word in text.split(",") if word.strip()]
    except ValueError:
        raise InputError(f"--values is {text!r}: give numbers, as 0.05,0.1,0.2") from None


def _next(said: dict[str, Any], chosen: dict[str, Any], out: Path) -> str:
    """The command that trains with what was chosen, on all training samples."""
    words = ["flatminima", "finetune", *flags.words({**said, **chosen}), "--out", f"{out}-best"]
    return shlex.join(words)
