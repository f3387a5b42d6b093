"""Independent jobs over worker processes, each in its own directory, resumable."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flatminima.errors import InputError
from flatminima.files import read_json, write_json, write_text
from flatminima.study.on_ray import run_on_ray, unpack
from flatminima.study.process import WorkerProcess

_POLL_SECONDS = 0.2
_GRACE_SECONDS = 2.0


@dataclass(frozen=True)
class Job:
    """One run: what to do, and where its results go.

    Attributes:
        name: What it is called in messages.
        directory: Where it writes; of this job alone.
        payload: What the target function is called with; has a form in JSON.
    """

    name: str
    directory: Path
    payload: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        name: The job's name.
        directory: The job's directory.
        status: "finished" in this call, "skipped" because an earlier one finished it, or "failed".
        error: The exception or the end of the process in one line, None when it did not fail.
        seconds: Wall time of the job in this call, with the start of its worker if it needed one.
    """

    name: str
    directory: Path
    status: Literal["finished", "skipped", "failed"]
    error: str | None = None
    seconds: float = 0.0

    def results(self) -> dict[str, Any]:
        """The job's `results.json`.

        Raises:
            InputError: the job failed, or its file is gone.
        """
        results: dict[str, Any] = read_json(self.directory / "results.json")
        return results

    def to_dict(self) -> dict[str, Any]:
        """The outcome as plain numbers and strings."""
        return {
            "name": self.name,
            "directory": str(self.directory),
            "status": self.status,
            "error": self.error,
            "seconds": self.seconds,
        }


def run_jobs(
    jobs: Sequence[Job],
    target: str,
    *,
    workers: int | None = None,
    threads_per_worker: int | None = None,
    ray: str | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    on_outcome: Callable[[Outcome], None] | None = None,
    retry_failed: bool = True,
) -> list[Outcome]:
    """Run each job as `target(payload, directory)` in one of a few worker processes.

    The target writes `directory/results.json` when it is done, and that file is what makes a study
    resumable: a job that has one is not run again. Beside it lie `job.json` (the payload, written
    before the job starts), `log.txt` (all the job printed) and, after a failure, `error.txt` (the
    traceback). Jobs start in the order given. A job that raises, or whose process dies, fails
    alone.

    On an interrupt (Ctrl-C) the workers and all they started are killed and `KeyboardInterrupt` is
    raised again; the same call then continues with the jobs that are not finished. Should the
    calling process itself be killed, its workers end by themselves.

    Args:
        jobs: What to run, in this order.
        target: The function, as "package.module:function"; imported in the worker only.
        workers: How many jobs run at the same time. Default: the cores this process may use divided
            by `threads_per_worker`.
        threads_per_worker: Threads each may compute with. Default: 1.
        ray: The address of a Ray cluster to run on, which then decides how many run at the same
            time; "local" for a Ray of this machine. See `run_on_ray`.
        progress: Called as `progress("runs", done, total)`, at the start and after each job.
        on_outcome: Called with each job's outcome as soon as it is known.
        retry_failed: Whether a job that failed in an earlier call runs again.

    Returns:
        The outcomes, in the order of the jobs.

    Raises:
        InputError: both `workers` and `ray` are given, two jobs share a directory, a directory
            holds another job's payload, a payload has no form in JSON, a directory cannot be
            written, or an argument makes no sense.
        KeyboardInterrupt: the study was interrupted.
    """
    if ray is not None and workers is not None:
        raise InputError("--workers is for this machine: leave it out with --ray")
    threads = _at_least_one("threads_per_worker", threads_per_worker, default=1)
    workers = _at_least_one("workers", workers, default=max(1, available_cores() // threads))
    if not all(target.partition(":")):
        raise InputError(
            f'the target {target!r} is not "package.module:function": name it like that'
        )
    _refuse_shared_directories(jobs)
    outcomes: dict[int, Outcome] = {}
    for index, job in enumerate(jobs):
        if earlier := _earlier_outcome(job, retry_failed):
            outcomes[index] = earlier

    def report(index: int, outcome: Outcome) -> None:
        outcomes[index] = outcome
        if on_outcome:
            on_outcome(outcome)
        if progress:
            progress("runs", len(outcomes), len(jobs))

    if progress:
        progress("runs", len(outcomes), len(jobs))
    if on_outcome:
        for outcome in list(outcomes.values()):
            on_outcome(outcome)
    pending = deque((index, job) for index, job in enumerate(jobs) if index not in outcomes)
    if ray is None:
        _run_pending(pending, target, min(workers, len(pending)), threads, report)
    elif pending:
        _run_elsewhere(dict(pending), target, ray, threads, report)
    return [outcomes[index] for index in range(len(jobs))]


def available_cores() -> int:
    """The number of cores this process may use, which in a container or a batch job is not all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _run_pending(
    pending: deque[tuple[int, Job]],
    target: str,
    workers: int,
    threads: int,
    report: Callable[[int, Outcome], None],
) -> None:
    answers: queue.SimpleQueue[tuple[WorkerProcess, dict[str, Any]]] = queue.SimpleQueue()
    alive: list[WorkerProcess] = []
    busy: dict[WorkerProcess, tuple[int, Job, float]] = {}
    grace = 0.0

    def start_next() -> None:
        index, job = pending.popleft()
        _prepare(job)
        directory = job.directory.absolute()
        worker = next((worker for worker in alive if worker not in busy), None)
        if worker is None:
            worker = WorkerProcess(target, threads, directory / "log.txt", answers)
            alive.append(worker)
        busy[worker] = (index, job, time.monotonic())
        worker.send(job.payload, directory, directory / "log.txt")

    def end(worker: WorkerProcess, error: str | None) -> None:
        index, job, start = busy.pop(worker)
        report(index, _outcome(job, error, time.monotonic() - start))

    try:
        while pending or busy:
            while pending and len(busy) < workers:
                start_next()
            try:
                worker, answer = answers.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                for worker in list(busy):
                    death = worker.death()
                    # What it answered just before it died counts, and comes next.
                    if death is None or not answers.empty():
                        continue
                    worker.stop(grace=0)
                    alive.remove(worker)
                    with contextlib.suppress(InputError):
                        write_text(busy[worker][1].directory / "error.txt", death + "\n")
                    end(worker, death)
            else:
                end(worker, answer["error"])
        grace = _GRACE_SECONDS
    finally:
        for worker in alive:
            worker.hang_up()
        for worker in alive:
            worker.stop(grace)


def _run_elsewhere(
    pending: dict[int, Job],
    target: str,
    address: str,
    threads: int,
    report: Callable[[int, Outcome], None],
) -> None:
    def done(index: int, error: str | None, files: Mapping[str, bytes], seconds: float) -> None:
        job = pending[index]
        unpack(files, job.directory)
        if error is not None and "error.txt" not in files:
            write_text(job.directory / "error.txt", error + "\n")
        report(index, _outcome(job, error, seconds))

    for job in pending.values():
        _prepare(job)
    jobs = [(index, job.name, job.payload) for index, job in pending.items()]
    run_on_ray(jobs, target, address, threads, done)


def _prepare(job: Job) -> None:
    write_json(job.directory / "job.json", {"name": job.name, "payload": job.payload})
    # Half-written results of another program, or the error of the last attempt.
    for name in ("results.json", "error.txt"):
        (job.directory / name).unlink(missing_ok=True)


def _outcome(job: Job, error: str | None, seconds: float) -> Outcome:
    if error is None and not _finished(job):
        error = "the target returned without writing results.json"
    if error is not None:
        return Outcome(job.name, job.directory, "failed", error, seconds)
    return Outcome(job.name, job.directory, "finished", None, seconds)


def _earlier_outcome(job: Job, retry_failed: bool) -> Outcome | None:
    """What an earlier call made of this job, None if it is to be run."""
    finished = _finished(job)
    record = job.directory / "job.json"
    if not record.exists() and not finished:
        _json_text(job)
        return None
    recorded = read_json(record) if record.exists() else None
    payload = json.loads(_json_text(job))
    if not isinstance(recorded, dict) or recorded.get("payload") != payload:
        raise InputError(
            f"{job.directory} holds another run than {job.name!r} with these settings: "
            "choose another --out, or delete that folder"
        )
    if finished:
        return Outcome(job.name, job.directory, "skipped")
    error = job.directory / "error.txt"
    if not retry_failed and error.exists():
        lines = error.read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "failed")
        return Outcome(job.name, job.directory, "failed", last)
    return None


def _finished(job: Job) -> bool:
    # Results beside an error were written before something went wrong.
    if (job.directory / "error.txt").exists():
        return False
    try:
        return isinstance(read_json(job.directory / "results.json"), dict)
    except InputError:
        return False


def _json_text(job: Job) -> str:
    try:
        return json.dumps(job.payload, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"the payload of job {job.name!r} has no form in JSON ({error}): "
            "give numbers, strings, lists and dicts"
        ) from error


def _refuse_shared_directories(jobs: Sequence[Job]) -> None:
    owners: dict[Path, str] = {}
    for job in jobs:
        directory = job.directory.resolve()
        if directory in owners:
            raise InputError(
                f"the jobs {owners[directory]!r} and {job.name!r} share the directory "
                f"{job.directory}: give each its own"
            )
        owners[directory] = job.name


def _at_least_one(name: str, value: int | None, default: int) -> int:
    if value is None:
        return default
    if value < 1:
        raise InputError(f"{name}={value}: give at least 1")
    return value
