"""Ctrl-C that waits for the end of a step."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """The user stopped a run; the message says how to resume it."""


class Request:
    """Whether a stop was asked for."""

    def __init__(self) -> None:
        self.made = False


@contextmanager
def deferred() -> Iterator[Request]:
    """Turn the first SIGINT or SIGTERM into a request; a second SIGINT acts as ever.

    Under torchrun none does: it forwards the signals that its children got from the terminal too,
    and kills children that linger. Outside the main thread signals cannot be caught, and the
    request is never made.
    """
    request = Request()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def ask(number: int, frame: FrameType | None) -> None:
        request.made = True
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            signal.signal(signal.SIGINT, before[signal.SIGINT])

    for number in before:
        signal.signal(number, ask)
    try:
        yield request
    finally:
        restore()
