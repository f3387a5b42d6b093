"""Two processes share the points of a slice, and return what one does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from . import slice_ranks


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    directory = tmp_path_factory.mktemp("ranks")
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", slice_ranks.__name__]
    processes = [
        subprocess.Popen([*command, str(rank), str(directory)], env=environment)
        for rank in range(2)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    return [torch.load(directory / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.slow
def test_both_have_the_slice_of_one_process(results):
    alone = torch.from_numpy(slice_ranks.whole().loss)
    assert torch.isfinite(alone).all()
    for found in results:
        assert torch.equal(found["loss"], alone)


@pytest.mark.slow
def test_a_process_that_fails_does_not_leave_the_other_waiting(results):
    assert "process 1 of 2 failed: ValueError" in results[0]["failure"]
    assert results[1]["failure"] == "ValueError: this process has no data"


@pytest.mark.slow
def test_both_stop_at_the_same_point(results):
    assert [found["stopped"] for found in results] == ["max_seconds"] * 2
    assert torch.equal(results[0]["evaluated"], results[1]["evaluated"])
    assert 0 < results[0]["evaluated"].sum() < 49
