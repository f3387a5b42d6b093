"""The command line: one module per subcommand, imported without torch until it runs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from flatminima import __version__
from flatminima.cli import (
    compare,
    explain,
    finetune,
    landscape,
    measure,
    methods,
    pretrain,
    report,
    run,
    tune_sigma,
)
from flatminima.errors import InputError

COMMANDS = (
    finetune,
    pretrain,
    compare,
    run,
    tune_sigma,
    measure,
    landscape,
    explain,
    report,
    methods,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code: 0; 1 if some runs of a study failed; 2 for bad input; 130 after Ctrl-C.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments) or 0)
    except InputError as error:
        print(f"flatminima: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(f"flatminima: {error}" if str(error) else "flatminima: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="flatminima",
        description="Train networks into flat minima, compare methods, and measure what they did.",
        epilog="example: flatminima compare --data digits --perturb plain,nso --seeds 5 "
        "--out runs/first",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"flatminima {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_to(commands)
    return parser
