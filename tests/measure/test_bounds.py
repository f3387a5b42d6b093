import copy
import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from flatminima.errors import InputError
from flatminima.measure import Estimate, PacBayesBound, pac_bayes_bound

from .cases import DOUBLE, Quadratic, cross_entropy, dense_hessian, mlp, quadratic_loss, split


def by_numbers(**changed):
    numbers = {
        "loss": 0.1,
        "max_loss": 2.0,
        "max_loss_given": True,
        "trace": Estimate(50.0, 2.0, 20, method="m"),
        "distance": 3.0,
        "from_initialization": True,
        "samples": 10_000,
        "delta": 0.05,
        "sigma": 0.1,
        "beta": 0.8,
        "candidates": 1,
        "over": "batches",
        "method": "m",
    }
    return PacBayesBound(**{**numbers, **changed})


def test_the_terms_are_those_computed_by_hand():
    found = by_numbers(candidates=40)
    assert found.loss_term == pytest.approx(0.1 / 0.8)
    assert found.noise_term == pytest.approx(0.2 / 1.6 * 50 * 0.01)
    assert found.distance_term == pytest.approx(2 * 9 / (4 * 0.8 * 0.2 * 10_000 * 0.01))
    assert found.confidence_term == pytest.approx(2 * math.log(800) / (2 * 0.8 * 0.2 * 10_000))
    assert found.value == pytest.approx(0.125 + 0.0625 + 0.28125 + 0.0041778851795429)
    assert found.stderr == pytest.approx(0.2 / 1.6 * 2 * 0.01)


@pytest.mark.parametrize("beta", [0.5, 0.8, 0.95])
def test_on_a_fine_grid_the_middle_terms_reach_their_closed_form(beta):
    fine = [0.01 * 1.01**i for i in range(600)]
    found = by_numbers().optimized(fine, [beta])
    closed = math.sqrt(2 * 50 * 9 / (2 * 10_000)) / beta
    assert found.noise_term + found.distance_term == pytest.approx(closed, rel=1e-4)
    assert found.noise_term == pytest.approx(found.distance_term, rel=0.03)
    best = 3 / (1 - beta) * math.sqrt(2 / (2 * 50 * 10_000))
    assert found.sigma**2 == pytest.approx(best, rel=0.02)


def test_the_default_grid_misses_the_best_sigma_by_at_most_four_percent():
    for distance in (0.03, 0.1, 0.7, 3.0, 20.0):
        found = by_numbers(distance=distance).optimized()
        closed = math.sqrt(2 * 50 * distance**2 / (2 * 10_000)) / found.beta
        assert closed <= found.noise_term + found.distance_term <= 1.05 * closed


def test_the_choice_on_the_grid_is_paid_for():
    alone = by_numbers(beta=0.8, sigma=0.1)
    found = by_numbers().optimized([0.1], [0.8])
    assert found.value == pytest.approx(alone.value)
    many = by_numbers().optimized([0.1, 1e3, 2e3, 3e3], [0.8])
    assert (many.sigma, many.candidates) == (0.1, 4)
    rate = 2 / (2 * 0.8 * 0.2 * 10_000)
    assert many.value - alone.value == pytest.approx(rate * math.log(4))
    assert by_numbers().optimized().candidates == 57 * 8


def test_it_says_when_the_best_choice_is_at_the_end_of_the_grid():
    inside = by_numbers().optimized([0.1, 0.3, 1.0], [0.5, 0.9, 0.99])
    assert inside.edges == ()
    assert "at the end of its grid" not in str(inside)
    short = by_numbers().optimized([1e-3, 1e-2], [0.5, 0.9, 0.99])
    assert "sigma" in short.edges
    assert "the best sigma, 0.01, is at the end of its grid: a grid of sigmas" in str(short)
    assert PacBayesBound.from_dict(json.loads(json.dumps(short.to_dict()))) == short
    assert by_numbers(samples=10**16).optimized().edges == ("beta",)
    # One value was not chosen among several.
    assert by_numbers().optimized([0.1], [0.8]).edges == ()


def test_the_default_grid_reaches_the_best_sigma_of_a_flat_minimum_of_a_small_network():
    flat = by_numbers(trace=Estimate(0.5, 0.01, 20, method="m"), samples=1500, distance=15.0)
    found = flat.optimized()
    assert found.sigma > 1
    assert "sigma" not in found.edges


@pytest.mark.parametrize(
    ("changed", "sign"),
    [
        ({"loss": 0.2}, 1),
        ({"max_loss": 3.0}, 1),
        ({"trace": Estimate(80.0, 2.0, 20, method="m")}, 1),
        ({"distance": 5.0}, 1),
        ({"delta": 0.01}, 1),
        ({"samples": 20_000}, -1),
    ],
)
def test_each_number_moves_the_bound_the_right_way(changed, sign):
    assert sign * (by_numbers(**changed).optimized().value - by_numbers().optimized().value) > 0


def test_with_endless_samples_only_the_loss_is_left():
    found = by_numbers(samples=10**16).optimized()
    assert found.beta == 0.99
    assert found.value == pytest.approx(0.1 / 0.99, rel=1e-3)


def test_it_says_when_it_is_vacuous():
    good, bad = by_numbers().optimized(), by_numbers(samples=20).optimized()
    assert not good.vacuous
    assert "not vacuous: the expected test loss is at most" in str(good)
    assert bad.vacuous
    assert "\nvacuous: a loss of at most C = 2 is known without it" in str(bad)


def test_it_says_which_terms_are_estimates():
    given, seen = by_numbers(), by_numbers(max_loss_given=False)
    assert not any("C: " in line for line in given.estimates)
    assert any("C: the largest loss of the samples seen" in line for line in seen.estimates)
    assert "not certified: C: " in str(seen)
    assert "alpha: the largest trace over the batches, at W alone" in str(given)


def test_measured_terms_are_those_of_the_dense_hessians():
    model, batch = mlp()
    batches = split(batch, 10, 14)
    found = pac_bayes_bound(model, cross_entropy, batches, probes=400)
    traces = [dense_hessian(model, part).trace().item() for part in batches]
    losses = [cross_entropy(model, part).item() for part in batches]
    norm = math.sqrt(sum(p.detach().square().sum().item() for p in model.parameters()))
    assert abs(found.trace.value - max(traces)) < 4 * found.trace.stderr + 1e-12
    assert found.trace.stderr < 0.1 * max(traces)
    assert found.loss == pytest.approx((10 * losses[0] + 14 * losses[1]) / 24, rel=1e-12)
    singles = [cross_entropy(model, s).item() for s in split(batch, *[1] * 24)]
    assert found.max_loss == pytest.approx(max(singles))
    assert found.distance == pytest.approx(norm)
    assert (found.samples, found.from_initialization, found.max_loss_given) == (24, False, False)
    # No more parameters than probes: each batch's trace is exact, by the unit vectors.
    assert found.hvps == 2 * sum(p.numel() for p in model.parameters())
    best = replace(found, candidates=1).optimized()
    assert (best.sigma, best.beta, best.value) == (found.sigma, found.beta, found.value)


def test_over_samples_the_maxima_are_those_of_single_samples():
    model, batch = mlp()
    found = pac_bayes_bound(model, cross_entropy, split(batch, 10, 14), over="samples", probes=200)
    singles = split(batch, *[1] * 24)
    largest = max(dense_hessian(model, single).trace().item() for single in singles)
    # The largest of noisy values is drawn a little above the largest value.
    assert abs(found.trace.value - largest) < 5 * found.trace.stderr + 1e-12
    assert found.samples == 24


def test_parameters_can_be_chosen_by_one_pattern_by_several_and_by_tensor():
    model, batch = mlp()
    tensors = pac_bayes_bound(model, cross_entropy, [batch], params=list(model[0].parameters()))
    for chosen in ("0.*", ["0.weight", "0.bias"], model[0].parameters()):
        found = pac_bayes_bound(model, cross_entropy, [batch], params=chosen)
        assert (found.value, found.distance) == (tensors.value, tensors.distance)


def test_from_the_initialization_only_the_way_since_then_counts():
    model, batch = mlp()
    start = copy.deepcopy(model)
    with torch.no_grad():
        model[0].weight[0, :3] += torch.tensor([1.0, 2.0, 2.0])
    for reference in (start, start.state_dict()):
        found = pac_bayes_bound(model, cross_entropy, [batch], reference=reference)
        assert found.distance == pytest.approx(3.0)
        assert found.from_initialization
    whole = pac_bayes_bound(model, cross_entropy, [batch])
    assert found.value < whole.value
    head = pac_bayes_bound(model, cross_entropy, [batch], reference=start, params=[model[2].weight])
    assert (head.distance, head.distance_term) == (0.0, 0.0)


def test_traces_of_some_batches_and_the_losses_of_all():
    model, batch = mlp()
    calls = []
    found = pac_bayes_bound(
        model,
        cross_entropy,
        split(batch, 10, 10, 4),
        traces=2,
        probes=10,
        max_loss=5.0,
        progress=lambda *call: calls.append(call),
    )
    assert (found.samples, found.hvps, found.max_loss) == (24, 20, 5.0)
    assert found.loss == pytest.approx(cross_entropy(model, batch).item())
    assert calls == [("bound", 1, 2), ("bound", 2, 2)]
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert PacBayesBound.from_dict(data) == found
    assert data["terms"]["value"] == found.value


def test_it_holds_for_a_bounded_loss_of_a_linear_model():
    torch.manual_seed(0)
    slope = torch.randn(5, 1, dtype=DOUBLE)

    def draw(n):
        x = torch.randn(n, 5, dtype=DOUBLE) / 3
        return x, x @ slope + 0.3 * torch.randn(n, 1, dtype=DOUBLE)

    def loss(model, batch):
        return ((model(batch[0]) - batch[1]).square()).tanh().mean()

    model = nn.Linear(5, 1, bias=False).to(DOUBLE)
    train = draw(2000)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=100)

    def closure():
        optimizer.zero_grad()
        value = loss(model, train)
        value.backward()
        return value

    optimizer.step(closure)
    found = pac_bayes_bound(model, loss, split(train, *[100] * 20), max_loss=1.0)
    # The expected loss, from so many fresh samples that its error is below 0.002.
    test = loss(model, draw(100_000)).item()
    assert not found.vacuous
    assert test < found.value < 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"delta": 0.0}, "delta is 0.0"),
        ({"delta": 1.0}, "delta is 1.0"),
        ({"over": "epochs"}, "unknown over 'epochs'"),
        ({"traces": 0}, "traces is 0"),
        ({"betas": [1.0]}, "betas has 1.0"),
        ({"sigmas": [0.0]}, "sigmas has 0.0"),
        ({"sigmas": []}, "is empty"),
        ({"max_loss": 0.01}, "max_loss is 0.01 and the training loss"),
        ({"reference": {}}, "reference has no '0.weight'"),
        ({"reference": {"0.weight": torch.zeros(2)}}, r"'0.weight' of shape \(2,\), the model of"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    model, batch = mlp()
    with pytest.raises(InputError, match=message):
        pac_bayes_bound(model, cross_entropy, [batch], probes=2, **arguments)


def test_a_negative_loss_is_refused():
    model = Quadratic(-torch.eye(3, dtype=DOUBLE))
    model.weight.data.fill_(1.0)
    with pytest.raises(InputError, match=r"the training loss is -1\.5"):
        pac_bayes_bound(model, quadratic_loss, [torch.zeros(1)], max_loss=1.0)
