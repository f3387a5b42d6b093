"""memory="replay": no copy of W, and W within rounding."""

from unittest.mock import patch

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from flatminima.errors import InputError
from flatminima.measure.live import LiveTrace
from flatminima.perturb import NSO

from .cases import assert_same_bits, batch, sgd, smooth, state_of, stateful, train

U = 2.0**-24
PLANS = [
    {},
    {"noise": "table"},
    {"num_perturbations": 3},
    {"clean_weight": 0.3},
    {"signs": "split"},
    {"signs": "alternate"},
    {"two_point": False},
]


def still(model, **options):
    """NSO whose base optimizer takes no step."""
    return NSO(torch.optim.SGD(model.parameters(), lr=0.0), sigma=0.1, memory="replay", **options)


def offsets(model, **options):
    """U of the first step."""
    passes = NSO(torch.optim.SGD(model.parameters(), lr=0.0), sigma=0.1, **options).passes()
    home = state_of(model)
    next(passes)
    found = {name: (tensor - home[name]).abs() for name, tensor in state_of(model).items()}
    passes.close()
    return found


def test_after_a_pair_the_weights_are_within_the_bound_that_is_stated():
    model = nn.Linear(300, 400)
    home, moved = state_of(model), offsets(model, seed=1)
    for _ in still(model, seed=1).passes():
        pass
    drifted = 0
    for name, tensor in state_of(model).items():
        error = (tensor - home[name]).abs()
        # The second term: U as rounding left it is not U as drawn.
        assert (error <= 3 * U * (home[name].abs() + 2 * moved[name]) * (1 + 4 * U)).all()
        drifted += (error > 0).sum().item()
    assert drifted, "nothing was rounded, so nothing was tested"


def test_the_drift_of_many_steps_is_a_random_walk():
    model = nn.Linear(200, 200, bias=False)
    home = model.weight.detach().double()
    optimizer, drift = still(model), {}
    for step in range(1, 401):
        for _ in optimizer.passes():
            (0 * model.weight.sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
        error = model.weight.detach().double() - home
        drift[step] = error.square().mean().sqrt().item()
        bias = error.mean().item() / (drift[step] / error.numel() ** 0.5)
    assert drift[400] < 20 * U * (home.abs().max().item() + 0.3)
    assert 0.7 < drift[400] / (2 * drift[100]) < 1.4, "four times the steps, twice the drift"
    assert abs(bias) < 5


@pytest.mark.parametrize("options", PLANS, ids=str)
@pytest.mark.filterwarnings("ignore:signs='split' gathered")
def test_it_trains_as_exact_memory_does_within_rounding(options):
    found = []
    for memory in ("exact", "replay"):
        model = smooth()
        optimizer = NSO(sgd(model.parameters()), sigma=0.1, seed=0, memory=memory, **options)
        data = [batch(seed=s, dtype=torch.float64) for s in range(10)]
        train(optimizer, model, data)
        found.append(state_of(model))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-13)
    assert any(not torch.equal(a, b) for a, b in zip(*(f.values() for f in found), strict=True))


def test_an_exception_in_a_pass_brings_the_weights_home():
    model = smooth(torch.float32)
    home = state_of(model)
    for wanted in (1, 2):
        passes = still(model).passes()
        for _ in range(wanted):
            next(passes)
        with pytest.raises(KeyError):
            passes.throw(KeyError)
        torch.testing.assert_close(state_of(model), home, rtol=1e-6, atol=1e-7)


def test_no_copy_of_the_weights_is_made():
    model = nn.Linear(1 << 10, 1 << 10, bias=False)
    size = 4 * model.weight.numel()

    def most(memory):
        optimizer = NSO(torch.optim.SGD(model.parameters()), sigma=0.1, memory=memory)
        with torch.profiler.profile(profile_memory=True) as profile:
            for _ in optimizer.passes():
                pass
        alive = peak = 0
        events = profile.profiler.kineto_results.events()
        for event in sorted(events, key=lambda event: event.start_ns()):
            alive += event.nbytes() if event.name() == "[memory]" else 0
            peak = max(peak, alive)
        return peak / size

    # And the pieces in which noise is drawn, one for each thread.
    assert 1 <= most("exact") < 1.25
    assert most("replay") < 0.25


def test_strength_0_is_the_base_optimizer_bit_for_bit():
    found = []
    for sigma, memory in ((0.0, "exact"), (0.0, "replay")):
        model = stateful()
        train(
            NSO(sgd(model.parameters()), sigma=sigma, memory=memory),
            model,
            [batch(seed=s) for s in range(3)],
        )
        found.append(state_of(model))
    assert_same_bits(*found)


def test_nothing_tells_how_far_the_weights_are():
    optimizer = still(smooth())
    with pytest.raises(InputError, match="use memory='exact'"):
        LiveTrace(optimizer)
    for _ in optimizer.passes():
        with pytest.raises(InputError, match="use memory='exact'"):
            optimizer._running.weights.positions()


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (smooth().to(torch.bfloat16), {}),
        (smooth(), {"scale": "layer"}),
        (smooth(), {"noise": "laplace"}),
    ],
    ids=["16 bits", "relative scale", "laplace"],
)
def test_what_cannot_be_drawn_again_is_refused_with_the_mend(model, options):
    before = state_of(model)
    with pytest.raises(InputError, match="use memory='exact'"):
        next(still(model, **options).passes())
    assert_same_bits(state_of(model), before)


def test_other_memories_are_named():
    with pytest.raises(InputError, match="memory"):
        NSO(sgd(smooth().parameters()), sigma=0.1, memory="none")


def test_gradients_are_those_of_exact_memory_in_the_first_pass():
    found = []
    for memory in ("exact", "replay"):
        model = smooth()
        x, y = batch(dtype=torch.float64)
        passes = NSO(sgd(model.parameters()), sigma=0.1, seed=2, memory=memory).passes()
        next(passes)
        cross_entropy(model(x), y).backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters()})
        passes.close()
    assert_same_bits(*found)


def test_threads_do_not_change_the_noise_that_is_taken_off():
    model = nn.Linear(700, 700)
    home = state_of(model)
    with patch("flatminima.perturb.drawing.WORTH_THREADS", 1), patch("torch.get_num_threads") as n:
        passes = still(model).passes()
        n.return_value = 1
        next(passes)
        n.return_value = 3
        passes.close()
    torch.testing.assert_close(state_of(model), home, rtol=1e-6, atol=1e-7)


def test_a_loss_that_changes_weights_is_refused():
    model = smooth()
    optimizer = still(model)

    def step():
        for _ in optimizer.passes():
            with torch.no_grad():
                next(model.parameters()).clamp_(max=0.1)
            sum(p.square().sum() for p in model.parameters()).backward()

    with pytest.raises(InputError, match="were changed while passes ran"):
        step()


def test_a_state_is_loaded_whatever_keeps_w():
    model = smooth()
    kept = NSO(torch.optim.SGD(model.parameters(), lr=0.1), sigma=0.1)
    still(model).load_state_dict(kept.state_dict())
