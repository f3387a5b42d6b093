"""`flatminima finetune`: one run."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from flatminima.cli import flags, screen
from flatminima.errors import InputError
from flatminima.training.recipe import Recipe, flag


def add_to(commands: Any) -> None:
    """Add the subcommand."""
    parser = flags.add_command(
        commands,
        "finetune",
        "--out DIR",
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
    carry_out(arguments, flags.given(arguments))


def carry_out(
    arguments: argparse.Namespace, said: dict[str, Any], command: str = "finetune"
) -> None:
    """Train as was said, or go on, and print what came out.

    Args:
        arguments: With `out` or `resume`.
        said: What the recipe file and the flags say.
        command: The subcommand, as the user is told to call it again.
    """
    recipe = Recipe.from_flat(said)
    out = arguments.resume or arguments.out
    from flatminima.training.knobs import check_tuner_is_used
    from flatminima.training.methods import check_strengths
    from flatminima.training.run import (
        CHANGEABLE,
        finetune,
        is_main_process,
        resume,
    )

    if arguments.resume is None:
        check_strengths(said, [recipe.perturb.perturb])
        check_tuner_is_used(recipe)
    fixed = sorted(flag(name) for name in said if name not in CHANGEABLE)
    if arguments.resume is not None and fixed:
        raise InputError(
            f"--resume {out} goes on with that run's own recipe: leave out {', '.join(fixed)} "
            f"(only {', '.join(map(flag, CHANGEABLE))} may change)"
        )
    try:
        with screen.progress_bars() as progress:
            if arguments.resume is not None:
                results = resume(out, changes=said, progress=progress, say=screen.say)
            else:
                results = finetune(recipe, out, progress=progress, say=screen.say)
    except KeyboardInterrupt as stop:
        if str(stop) or not (out / "recipe.yaml").is_file():
            raise
        raise KeyboardInterrupt(
            f"stopped; continue with: flatminima {command} --resume {out}"
        ) from None
    if not is_main_process():
        sys.stderr.flush()
        os._exit(0)  # threads of gloo may abort an interpreter that winds down
    for name, value in _shown(results).items():
        print(f"{name:<20} {value}")
    print(f"\nrun directory: {out}")


def _shown(results: dict[str, Any]) -> dict[str, str]:
    """The metrics as a person reads them, those that are estimates with their errors."""
    from flatminima.measure import CurvatureReport

    metrics = results["metrics"]
    shown = {k: "not finite" if v is None else f"{v:.6g}" for k, v in metrics.items()}
    if results["curvature"] is not None:
        report = CurvatureReport.from_dict(results["curvature"])
        shown["hessian_trace"] = str(report.trace)
        shown["top_eigenvalue"] = str(report.top_eigenvalue)
        if report.perturbation_gap is not None:
            shown["perturbation_gap"] = f"{report.perturbation_gap} at sigma {report.sigma:g}"
    for name, value in results.get("tuned", {}).get("values", {}).items():
        shown[f"tuned {name}"] = f"{value:.4g}"
    peak = shown.pop("peak_bytes")
    return {**shown, "peak_memory": f"{float(peak) / 2**20:.0f} MiB"}
