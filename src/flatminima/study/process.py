"""The parent's side of a worker process: start it, hand it jobs, hear from it, end it."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any

_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


class WorkerProcess:
    """One worker process, in its own process group, with its own share of the cores.

    A fresh interpreter rather than a `multiprocessing` process: its environment is set before it
    imports anything, and it does not run the caller's script a second time.

    Args:
        target: The function a job calls, "package.module:function".
        threads: The number of threads it may use.
        log: Where it writes what it says before its first job.
        answers: The queue its answers are put on, as `(worker, answer)`.
    """

    def __init__(
        self,
        target: str,
        threads: int,
        log: Path,
        answers: queue.SimpleQueue[tuple[WorkerProcess, dict[str, Any]]],
    ) -> None:
        # An empty entry means the current folder, but an empty PYTHONPATH entry is dropped.
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        environment = dict(os.environ, PYTHONPATH=path)
        environment.update(dict.fromkeys(_THREAD_VARIABLES, str(threads)))
        # -P: this folder's files must not shadow modules; the parent's own path is passed instead.
        command = [sys.executable, "-P", "-m", "flatminima.study.worker", target, str(threads)]
        with log.open("a", encoding="utf-8") as stderr:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environment,
                encoding="utf-8",
                # Ctrl-C in a terminal reaches the parent only, one kill reaches all descendants.
                start_new_session=True,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests = self._process.stdin
        self._reader = threading.Thread(
            target=self._read, args=(self._process.stdout, answers), daemon=True
        )
        self._reader.start()

    def _read(
        self,
        replies: IO[str],
        answers: queue.SimpleQueue[tuple[WorkerProcess, dict[str, Any]]],
    ) -> None:
        with replies:
            for line in replies:
                # A worker killed while it answers leaves half a line, which is no answer.
                with contextlib.suppress(json.JSONDecodeError):
                    answers.put((self, json.loads(line)))

    def send(self, payload: dict[str, Any], directory: Path, log: Path) -> None:
        """Hand the worker a job. A worker that is dead by now is noticed by `death`.

        Args:
            payload: What the function is called with.
            directory: Where it writes its results.
            log: Where its output goes.
        """
        job = {"payload": payload, "directory": str(directory), "log": str(log)}
        with contextlib.suppress(OSError):
            self._requests.write(json.dumps(job) + "\n")
            self._requests.flush()

    def death(self) -> str | None:
        """How the process ended, or None while it lives. No answer follows once it is told."""
        code = self._process.poll()
        if code is None:
            return None
        # Processes it forked hold the pipe open, and the reader would wait for them.
        self._kill()
        self._reader.join(timeout=5)
        if code >= 0:
            return f"the worker process exited with code {code}"
        name = signal.strsignal(-code) or f"signal {-code}"
        hint = "; often out of memory: use fewer workers" if name == "Killed" else ""
        return f"the worker process died: {name}{hint}"

    def hang_up(self) -> None:
        """Say that no more jobs come: an idle worker ends by itself, a busy one ends at once."""
        with contextlib.suppress(OSError):
            self._requests.close()

    def stop(self, grace: float) -> None:
        """End the process and all it started.

        Args:
            grace: Seconds it has to end by itself after `hang_up`; 0 kills it where it stands.
        """
        self.hang_up()
        if grace > 0:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=grace)
        self._kill()
        self._process.wait()
        self._reader.join(timeout=5)

    def _kill(self) -> None:
        if sys.platform == "win32":
            self._process.kill()
            return
        # PermissionError: macOS says that of a group in which only zombies are left.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
