"""Two data-parallel processes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from . import ranks

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What ranks 0 and 1 found: method -> (displacements, weights)."""
    directory = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, str(Path(ranks.__file__))]
    processes = [subprocess.Popen([*command, str(rank), str(directory)]) for rank in range(2)]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    return [torch.load(directory / f"{rank}.pt") for rank in range(2)]


def test_weights_stay_bit_identical_across_ranks(both):
    for name, (_, weights) in both[0].items():
        assert all(map(torch.equal, weights, both[1][name][1])), name


def test_plain_training_equals_one_process_on_the_whole_batch(both):
    _, alone = ranks.train("plain")
    for ours, theirs in zip(both[0]["plain"][1], alone, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_with_shared_noise_two_ranks_equal_one_process(both):
    _, alone = ranks.train("nso-shared")
    for ours, theirs in zip(both[0]["nso-shared"][1], alone, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_noise_differs_by_rank_unless_it_is_shared(both):
    assert not torch.equal(both[0]["nso"][0], both[1]["nso"][0])
    assert torch.equal(both[0]["nso-shared"][0], both[1]["nso-shared"][0])


def test_one_pass_by_rank_takes_opposite_signs_of_one_draw(both):
    (first,), (second,) = both[0]["one-pass-by-rank"][0], both[1]["one-pass-by-rank"][0]
    assert first.abs().sum() > 0
    torch.testing.assert_close(first, -second, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["nso", "sam", "nso-shared", "gsam", "looksam"])
def test_closures_and_passes_agree_also_where_gradients_are_views_of_buckets(both, name):
    for view in (False, True):
        for ours, theirs in zip(
            both[0][f"{name}-closure-{view}"][1], both[0][name][1], strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
