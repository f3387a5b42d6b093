"""What the terminal shows: progress while something runs, results at the end."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flatminima.errors import require
from flatminima.training.data.progress import Progress, silent


@contextmanager
def progress_bars() -> Iterator[Progress]:
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
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)
            if done >= total:
                bars.remove_task(tasks.pop(stage))

        yield report


def show(renderable: Any) -> None:
    """Print a rich renderable to standard output; wide tables keep their columns in a file."""
    require("rich", "cli")
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(renderable)


def say(text: str) -> None:
    """A line for the user, on standard error."""
    print(text, file=sys.stderr)
