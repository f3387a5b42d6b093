"""Two data-parallel processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from . import ranks
from .cases import VARIANTS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What ranks 0 and 1 found: trajectories, costs, and whether resuming is exact."""
    directory = tmp_path_factory.mktemp("ranks")
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", ranks.__name__]
    processes = [
        subprocess.Popen([*command, str(rank), str(directory)], env=environment)
        for rank in range(2)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    return [torch.load(directory / f"{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def both(results):
    """Of each rank: method -> (displacements, weights)."""
    return [found for found, *_ in results]


def test_weights_stay_bit_identical_across_ranks(both):
    for name, (_, weights) in both[0].items():
        assert all(map(torch.equal, weights, both[1][name][1])), name


def test_plain_training_equals_one_process_on_the_whole_batch(both):
    _, alone = ranks.train("plain")
    for ours, theirs in zip(both[0]["plain"][1], alone, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "name", ["nso-shared", "sam-shared", "asam-shared", "rsam-shared", "gsam", "glad"]
)
def test_where_ranks_move_alike_two_equal_one_process(both, name):
    _, alone = ranks.train(name)
    for ours, theirs in zip(both[0][name][1], alone, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_sam_climbs_along_each_ranks_own_gradient_unless_it_is_shared(both):
    own, shared = "sam-unsynchronized", "sam-shared-unsynchronized"
    assert not torch.equal(both[0][own][0], both[1][own][0])
    assert torch.equal(both[0][shared][0], both[1][shared][0])


ALL_REDUCES = {"glad": 2, "gsam": 2, "friendly-sam": 2, "bsam": 2, "looksam": (2, 1, 1, 1)}
"""Of a step; one for every other method."""


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v.name != "plain"], ids=str)
def test_a_step_costs_what_the_card_says(results, variant):
    steps, weights = results[0][1][str(variant)]
    assert all(map(torch.equal, weights, results[1][1][str(variant)][1]))
    weight = torch.nn.Parameter(torch.zeros(1))
    samples = ranks.SAMPLES // 2
    cost = variant.wrap(torch.optim.SGD([weight], lr=0.1)).gradients_per_step(samples)
    if variant.name != "looksam":  # its period is longer than the run
        clean = variant.options.get("running_statistics") == "clean"  # one forward more
        assert [forward / samples for forward, _, _ in steps] == [cost + clean] * ranks.STEPS
    wanted = ALL_REDUCES.get(variant.name, 1)
    wanted = wanted if isinstance(wanted, tuple) else (wanted,) * ranks.STEPS
    assert tuple(reduced for _, _, reduced in steps) == wanted


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v.name != "plain"], ids=str)
def test_resuming_is_bit_exact(results, variant):
    assert all(same[str(variant)] for _, _, same, _ in results)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v.name != "plain"], ids=str)
def test_accumulation_leaves_the_ranks_with_the_same_weights(results, variant):
    one, other = (weights[str(variant)] for *_, weights in results)
    assert all(map(torch.equal, one, other))


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
