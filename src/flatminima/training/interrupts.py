"""Ctrl-C that waits for the end of a step."""

from __future__ import annotations

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
    """Turn the first SIGINT or SIGTERM into a request; the second acts as ever.

    Outside the main thread signals cannot be caught, and the request is never made.
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
        restore()

    for number in before:
        signal.signal(number, ask)
    try:
        yield request
    finally:
        restore()
