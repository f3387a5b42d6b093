"""Two data-parallel Trainers."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from . import ranks

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What ranks 0 and 1 found: method -> (all-reduces, weights)."""
    directory = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, ranks.__file__, str(directory)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    return [torch.load(directory / f"{rank}.pt") for rank in range(2)]


def test_weights_stay_bit_identical_across_ranks(both):
    for method, (_, weights) in both[0].items():
        for name, tensor in weights.items():
            assert torch.equal(tensor, both[1][method][1][name]), (method, name)


def test_a_step_of_two_micro_batches_needs_the_all_reduces_of_its_method(both):
    once = dict.fromkeys(ranks.METHODS, ranks.STEPS)
    # Friendly SAM's first gradient of each micro-batch; all of GSAM's, and LookSAM's, which has
    # two at every other step.
    more = {"friendly-sam": 3 * ranks.STEPS, "gsam": 4 * ranks.STEPS, "looksam": 3 * ranks.STEPS}
    for rank in range(2):
        assert {name: reduced for name, (reduced, _) in both[rank].items()} == {**once, **more}


@pytest.mark.parametrize("name", ["plain", "nso-shared"])
def test_two_ranks_equal_one_process_on_the_whole_batch(both, name, tmp_path):
    _, alone = ranks.train(name, Path(tmp_path))
    for key, tensor in alone.items():
        torch.testing.assert_close(both[0][name][1][key], tensor, rtol=1e-5, atol=1e-6)
