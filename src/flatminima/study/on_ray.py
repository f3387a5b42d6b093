"""The jobs of a study on a Ray cluster, for those who outgrow one machine."""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flatminima.errors import InputError, require

RESULTS = "results.json"


def run_on_ray(
    jobs: Sequence[tuple[int, str, dict[str, Any]]],
    target: str,
    address: str,
    threads: int,
    done: Callable[[int, str | None, Mapping[str, bytes], float], None],
) -> None:
    """Run jobs as Ray tasks, each in a process and a scratch folder of its own on its node.

    The nodes need flatminima installed and the data at the same path (or by a hub id), and no
    shared file system: what a job left in its folder comes back through Ray's object store. So for
    large models let the jobs keep no checkpoints. A task whose node is lost fails alone.

    Args:
        jobs: Number, name and payload of each.
        target: The function a job calls, "package.module:function".
        address: As `ray.init` takes it: "ray://head:10001", "auto", or "local" for a Ray of this
            machine alone.
        threads: The cores a job takes.
        done: Called with a job's number, its error (None if it went well), its files by relative
            path and its seconds, as soon as it ends.

    Raises:
        InputError: Ray is not installed, or there is no cluster at the address.
    """
    ray = require("ray", "ray")
    on_sigterm = signal.getsignal(signal.SIGTERM)
    _connect(ray, address, threads)
    remote = ray.remote(num_cpus=threads, max_retries=0)(one_job)
    started = time.monotonic()
    waiting = {
        remote.remote(name, payload, target, threads): (i, name) for i, name, payload in jobs
    }
    try:
        while waiting:
            ready, _ = ray.wait(list(waiting), num_returns=1)
            index, name = waiting.pop(ready[0])
            try:
                error, files, seconds = ray.get(ready[0])
            except ray.exceptions.RayError as lost:
                line = str(lost).strip().split("\n")[0]
                error, files = f"{name} was lost: {type(lost).__name__}: {line}", {}
                seconds = time.monotonic() - started
            done(index, error, files, seconds)
    finally:
        for task in waiting:
            ray.cancel(task, force=True)
        ray.shutdown()
        # Ray puts its own in, and leaves it.
        signal.signal(signal.SIGTERM, on_sigterm)


def one_job(
    name: str, payload: dict[str, Any], target: str, threads: int
) -> tuple[str | None, dict[str, bytes], float]:
    """Run one job in a process of its own; its error, its files and its seconds.

    Args:
        name: The job's name.
        payload: What the target is called with.
        target: "package.module:function".
        threads: The threads it may compute with.
    """
    # Here, since this runs on another machine: jobs knows this module too.
    from flatminima.study.jobs import Job, run_jobs

    with tempfile.TemporaryDirectory(prefix="flatminima-") as scratch:
        directory = Path(scratch) / "job"
        job = Job(name, directory, payload)
        [outcome] = run_jobs([job], target, workers=1, threads_per_worker=threads)
        files = {
            str(path.relative_to(directory)): path.read_bytes()
            for path in directory.rglob("*")
            if path.is_file()
        }
    return outcome.error, files, outcome.seconds


def unpack(files: Mapping[str, bytes], directory: Path) -> None:
    """Write a job's files, its results last, since they mark it as finished."""
    for name in sorted(files, key=lambda name: name == RESULTS):
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(files[name])


def _connect(ray: Any, address: str, threads: int) -> None:
    _refuse_silent(address)
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == "local":
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        settings |= {"include_dashboard": False, "runtime_env": {"env_vars": {"PYTHONPATH": path}}}
    try:
        ray.init(address=address, **settings)
    except (ConnectionError, RuntimeError, ValueError) as error:
        line = str(error).strip().split("\n")[0]
        raise InputError(f"no Ray cluster at {address!r} ({line}): check --ray") from error
    cores = ray.cluster_resources().get("CPU", 0)
    if cores < threads:
        ray.shutdown()
        raise InputError(f"the Ray cluster has {cores:g} cores, and a run takes {threads}")


def _refuse_silent(address: str) -> None:
    """Refuse a host and port where nobody listens: Ray would try for five minutes."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator:
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError) as error:
        raise InputError(f"no Ray cluster at {address!r} ({error}): check --ray") from error
