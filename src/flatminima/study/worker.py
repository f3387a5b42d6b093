"""The worker's side of a study: a process that runs one job after the other.

Started as `python -m flatminima.study.worker package.module:function threads` by `process.py`. Each
line of its standard input is a job (JSON: payload, directory, log), each line of its standard
output the answer (JSON: error, null when the job went well). What the job prints goes to the log.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import io
import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from flatminima.files import write_text


def main(target: str, threads: int) -> None:
    """Run the jobs that arrive on standard input until it closes.

    Args:
        target: The function to call, "package.module:function".
        threads: The number of threads torch may use.
    """
    # The parent decides what an interrupt means, and ends this process itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests, replies = _take_over_pipes()
    faulthandler.enable()
    busy = threading.Event()
    jobs: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(requests, jobs, busy), daemon=True).start()
    while (job := jobs.get()) is not None:
        _redirect(job["log"])
        error = _run(target, threads, job["payload"], Path(job["directory"]))
        sys.stdout.flush()
        sys.stderr.flush()
        # Cleared before the answer: once it is read, the parent may close the pipe.
        busy.clear()
        replies.write(json.dumps({"error": error}) + "\n")
        replies.flush()
        gc.collect()


def _take_over_pipes() -> tuple[TextIO, TextIO]:
    """Keep the pipes for the protocol, so that a job that prints or reads cannot break it."""
    requests = os.fdopen(os.dup(0), "r", encoding="utf-8")
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)
    return requests, replies


def _read(
    requests: TextIO, jobs: queue.SimpleQueue[dict[str, Any] | None], busy: threading.Event
) -> None:
    for line in requests:
        busy.set()
        jobs.put(json.loads(line))
    if busy.is_set():
        # The parent is gone in the middle of a job: nobody is left to stop this one.
        if sys.platform != "win32" and os.getpgrp() == os.getpid():
            os.killpg(os.getpid(), signal.SIGKILL)
        os._exit(1)
    jobs.put(None)


def _redirect(log: str) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _run(target: str, threads: int, payload: dict[str, Any], directory: Path) -> str | None:
    try:
        function = _resolve(target)
        if "torch" in sys.modules:
            # Before every job: the one before may have changed it.
            sys.modules["torch"].set_num_threads(threads)
        function(payload, directory)
    except BaseException as error:
        write_text(directory / "error.txt", traceback.format_exc())
        message = " ".join(str(error).split())
        return f"{type(error).__name__}: {message}" if message else type(error).__name__
    return None


def _resolve(target: str) -> Callable[[dict[str, Any], Path], object]:
    module, _, name = target.partition(":")
    function: Callable[[dict[str, Any], Path], object] = getattr(
        importlib.import_module(module), name
    )
    return function


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
