import math
from unittest.mock import patch

import pytest
import torch
from torch import nn

from flatminima.perturb import DISTRIBUTIONS, NSO, drawing
from flatminima.perturb.drawing import Draw, add_all, in_pieces
from flatminima.perturb.noise import LARGE, SMALL

from .cases import assert_same_bits, state_of

PIECEWISE = [noise for noise in DISTRIBUTIONS.values() if noise.piece]
LENGTHS = [0, 1, 15, SMALL - 1, SMALL, SMALL + 15, SMALL + 16, 3 * SMALL + 17, LARGE + 16]


@pytest.mark.parametrize("noise", PIECEWISE, ids=lambda noise: noise.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_added_in_pieces_is_noise_drawn_at_once(noise, dtype):
    for length in LENGTHS:
        pieces = torch.randn(length, dtype=dtype)
        whole = pieces.clone()
        z = noise.sample(torch.empty_like(whole), torch.Generator().manual_seed(7))
        whole.add_(z.mul_(-0.1))
        add_all([pieces], [Draw(noise, 7, -0.1)])
        assert torch.equal(pieces, whole), length


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(600, 500), nn.Linear(500, 300), nn.Linear(300, 3))


def moved(model, **options):
    """The weights in the first pass of a step."""
    optimizer = NSO(torch.optim.SGD(model.parameters()), sigma=0.1, seed=5, **options)
    next(passes := optimizer.passes())
    found = state_of(model)
    passes.close()
    return found


@pytest.fixture
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2, 3], indirect=True)
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_any_number_of_threads_moves_the_weights_alike(name, threads):
    model = network()
    with patch.object(drawing, "WORTH_THREADS", 1):
        ours = moved(model, noise=name)
    with patch("flatminima.perturb.nso.in_pieces", return_value=False):
        assert_same_bits(ours, moved(model, noise=name))


@pytest.mark.parametrize("threads", [2], indirect=True)
def test_what_goes_wrong_in_a_thread_reaches_the_caller_and_weights_come_home(threads):
    def fail(*_):
        raise RuntimeError("no numbers today")

    model = network()
    before = state_of(model)
    with (
        patch.object(drawing, "WORTH_THREADS", 1),
        patch.object(Draw, "add_to", fail),
        pytest.raises(RuntimeError, match="no numbers today"),
    ):
        moved(model)
    assert_same_bits(state_of(model), before)


def test_tensors_of_one_dimension_stay_where_vectors_are_left_out():
    model = network()
    home, found = state_of(model), moved(model, vectors=False)
    for name, tensor in found.items():
        assert torch.equal(tensor, home[name]) == (tensor.dim() == 1)


def test_the_noise_of_a_step_needs_the_memory_of_a_piece():
    tensor = torch.zeros(8 * LARGE)
    for noise in PIECEWISE:
        with torch.profiler.profile(profile_memory=True) as profile:
            add_all([tensor], [Draw(noise, 0, 1.0)])
        taken = [
            event.nbytes()
            for event in profile.profiler.kineto_results.events()
            if event.name() == "[memory]" and event.nbytes() > 0
        ]
        assert max(taken) <= 4 * (LARGE + 16), noise.name


@pytest.mark.parametrize(
    ("tensor", "name"),
    [
        (torch.zeros(4, dtype=torch.bfloat16), "normal"),
        (torch.zeros(4, dtype=torch.complex64), "normal"),
        (torch.zeros(4, 3).T, "normal"),
        (torch.zeros(4), "laplace"),
        (torch.zeros(4, device="meta"), "normal"),
    ],
)
def test_what_cannot_be_cut_into_pieces_is_not(tensor, name):
    assert not in_pieces(tensor, DISTRIBUTIONS[name])
    assert in_pieces(torch.zeros(4), DISTRIBUTIONS["normal"])


def test_weights_that_are_no_plain_float_tensors_move_by_the_same_noise():
    w = nn.Parameter(torch.zeros(40, 30).T)
    found = []
    for tensor in (w, nn.Parameter(w.detach().contiguous())):
        passes = NSO(torch.optim.SGD([tensor]), sigma=1.0, seed=1).passes()
        next(passes)
        found.append(tensor.detach().clone())
        passes.close()
    assert torch.equal(*found)
    assert found[0].std().item() == pytest.approx(1, abs=5 / math.sqrt(2 * 1200))


@pytest.mark.parametrize("limit", [1, 1000, 1 << 20])
def test_tensors_that_are_moved_together_move_as_alone(limit):
    model = network()
    with (
        patch("flatminima.perturb.nso.in_pieces", return_value=False),
        patch("flatminima.perturb.weights.TOGETHER", limit),
    ):
        together = moved(model, vectors=False)
    assert_same_bits(together, moved(model, vectors=False))
