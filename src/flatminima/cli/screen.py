"""What the terminal shows: progress while something runs, results at the end."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from flatminima.errors import require
from flatminima.progress import TrainingProgress, silent

if TYPE_CHECKING:
    from flatminima.study import Outcome


@contextmanager
def progress_bars() -> Iterator[TrainingProgress]:
    """A bar for each stage, gone when done; nothing where standard error is no terminal."""
    require("rich", "cli")
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    if not console.is_terminal:
        yield silent
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    rest = (TimeRemainingColumn(), TextColumn("{task.fields[beside]}"))
    with Progress(*columns, *rest, console=console, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def report(stage: str, done: int, total: int, beside: str = "") -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total, beside=beside)
            bars.update(tasks[stage], completed=done, total=total, beside=beside)
            if done >= total:
                bars.remove_task(tasks.pop(stage))

        yield report


def show(wide: Any, narrow: Any = None) -> None:
    """Print a rich table to standard output.

    Args:
        wide: Printed where the terminal is wide enough for it, and into files.
        narrow: Printed where it is not.
    """
    require("rich", "cli")
    from rich.console import Console
    from rich.measure import Measurement

    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    # Asked of a console as wide as it likes: of this one it says at most this one's width.
    roomy = Console(width=10_000)
    needed = Measurement.get(roomy, roomy.options, wide).maximum
    console.print(wide if narrow is None or needed <= console.width else narrow)


def say(text: str) -> None:
    """A line for the user, on standard error."""
    print(text, file=sys.stderr)


def report_failure(outcome: Outcome) -> None:
    """A line for a run that failed."""
    if outcome.error:
        say(f"failed: {outcome.name}: {outcome.error}")
