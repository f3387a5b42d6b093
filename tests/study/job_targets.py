"""What the worker processes of test_jobs.py run; standard library only, so that they start fast."""

import json
import os
import subprocess
import sys
import time


def _finish(directory, **results):
    (directory / "results.json").write_text(json.dumps({"pid": os.getpid(), **results}))


def square(payload, directory):
    print("squaring", payload["x"])
    print("a warning", file=sys.stderr)
    with (directory / "calls").open("a") as calls:
        calls.write("x")
    _finish(directory, square=payload["x"] ** 2)


def misbehave(payload, directory):
    how = payload.get("how")
    if how == "raise":
        raise RuntimeError("the loss\nis NaN")
    if how == "raise late":
        _finish(directory)
        raise RuntimeError("after the results")
    if how == "sys.exit":
        sys.exit(7)
    if how == "os._exit":
        os._exit(3)
    if how == "kill":
        os.kill(os.getpid(), 9)
    if how == "die with a child":
        # A forked child keeps the pipe to the parent open after its own parent is gone.
        if os.fork() == 0:
            time.sleep(60)
        os._exit(4)
    if how == "no results":
        return
    if how == "read":
        assert sys.stdin.read() == ""
    _finish(directory)


def once(payload, directory):
    """Fails the first time."""
    flag = directory / "tried"
    if not flag.exists():
        flag.touch()
        raise ValueError("first time")
    _finish(directory)


def cores(payload, directory):
    _finish(directory, threads=os.environ["OMP_NUM_THREADS"])


def torch_threads(payload, directory):
    import torch

    _finish(directory, threads=torch.get_num_threads())
    torch.set_num_threads(3)


def sleep(payload, directory):
    child = subprocess.Popen(["sleep", "60"])
    (directory / "pids").write_text(f"{os.getpid()} {child.pid}")
    time.sleep(60)
    _finish(directory)


def order(payload, directory):
    _finish(directory, started=time.time())
