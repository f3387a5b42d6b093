import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flatminima.errors import InputError
from flatminima.measure import Hessian, hessian_trace, perturbation_gap
from flatminima.perturb.noise import DISTRIBUTIONS

from .cases import DOUBLE, Quadratic, cross_entropy, mlp, quadratic_loss, split, symmetric

ONE = [torch.zeros(1)]


def gap(hessian, slope=None, **settings):
    return perturbation_gap(Quadratic(hessian, slope), quadratic_loss, ONE, **settings)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    st.lists(st.floats(-10, 10), min_size=1, max_size=6),
    st.floats(1e-3, 1.0),
    st.integers(0, 1000),
)
def test_signs_on_a_diagonal_quadratic_are_exact_on_every_draw(diagonal, sigma, seed):
    found = gap(
        torch.tensor(diagonal, dtype=DOUBLE).diag(),
        torch.ones(len(diagonal), dtype=DOUBLE),
        sigma=sigma,
        noise="rademacher",
        draws=3,
        seed=seed,
    )
    # The slope cancels between +U and -U up to rounding of a sum of size 60.
    assert found.value == pytest.approx(sigma**2 / 2 * sum(diagonal), rel=1e-12, abs=1e-13)
    assert found.stderr <= 1e-13


@pytest.mark.parametrize("noise", DISTRIBUTIONS)
def test_mean_and_variance_on_a_quadratic(noise):
    hessian, sigma, draws = symmetric(6), 0.3, 4000
    found = gap(hessian, torch.ones(6, dtype=DOUBLE), sigma=sigma, noise=noise, draws=draws)
    assert abs(found.value - sigma**2 / 2 * hessian.trace().item()) < 5 * found.stderr
    on = hessian.diagonal().square().sum().item()
    off = hessian.square().sum().item() - on
    moment = DISTRIBUTIONS[noise].fourth_moment
    variance = sigma**4 / 4 * ((moment - 1) * on + 2 * off)
    # The fourth moment of z'Hz is at most about 60 for Laplace noise: s is good to 6 %.
    assert found.stderr * math.sqrt(draws) == pytest.approx(math.sqrt(variance), rel=0.25)


def test_one_point_adds_the_slope_to_the_variance():
    hessian, slope, sigma = symmetric(6), torch.full((6,), 3.0, dtype=DOUBLE), 0.1
    found = gap(hessian, slope, sigma=sigma, two_point=False, draws=4000)
    variance = sigma**2 * 54 + sigma**4 / 2 * hessian.square().sum().item()
    assert found.stderr * math.sqrt(4000) == pytest.approx(math.sqrt(variance), rel=0.1)
    assert abs(found.value - sigma**2 / 2 * hessian.trace().item()) < 5 * found.stderr


def test_binomial_noise_is_centred():
    hessian = torch.ones(8, 8, dtype=DOUBLE) + torch.eye(8, dtype=DOUBLE)
    found = gap(hessian, sigma=0.1, noise="binomial", draws=2000)
    centred, uncentred = 0.005 * 16, 0.005 * (16 + 4 * 72)
    assert abs(found.value - centred) < 5 * found.stderr < abs(uncentred - centred) / 2


def test_a_network_agrees_with_its_trace_at_small_sigma():
    model, batch = mlp()
    batches = split(batch, 20, 4)
    sigma = 1e-3
    found = perturbation_gap(model, cross_entropy, batches, sigma=sigma, draws=400)
    trace = hessian_trace(Hessian(model, cross_entropy, batches), probes=400)
    error = math.hypot(found.stderr, sigma**2 / 2 * trace.stderr)
    assert abs(found.value - sigma**2 / 2 * trace.value) < 5 * error


def test_unequal_batches_equal_the_whole_set():
    model, batch = mlp()
    whole = perturbation_gap(model, cross_entropy, [batch], sigma=0.1, draws=4)
    parts = perturbation_gap(model, cross_entropy, split(batch, 21, 1, 2), sigma=0.1, draws=4)
    assert parts.value == pytest.approx(whole.value, rel=1e-10)
    assert parts.stderr == pytest.approx(whole.stderr, rel=1e-10)


def test_no_noise_no_gap():
    model, batch = mlp()
    found = perturbation_gap(model, cross_entropy, [batch], sigma=0.0, draws=3)
    assert (found.value, found.stderr) == (0.0, 0.0)


def test_the_seed_decides_alone_and_frozen_weights_stay():
    model, batch = mlp()
    model[0].requires_grad_(False)
    seen = []

    def watching(model, batch):
        seen.append((model[0].weight.sum().item(), model[2].weight.sum().item()))
        return cross_entropy(model, batch)

    one = perturbation_gap(model, watching, [batch], sigma=0.1, draws=3, seed=1)
    assert len({frozen for frozen, _ in seen}) == 1
    assert len({moved for _, moved in seen}) == len(seen) == 7
    again = perturbation_gap(model, cross_entropy, [batch], sigma=0.1, draws=3, seed=1)
    other = perturbation_gap(model, cross_entropy, [batch], sigma=0.1, draws=3, seed=2)
    assert again.value == one.value != other.value
    assert one.method == "two-point normal noise, sigma 0.1"


def test_a_choice_of_parameters():
    model, batch = mlp()
    some = perturbation_gap(
        model, cross_entropy, [batch], sigma=0.1, draws=3, params=model[2].parameters()
    )
    model[0].requires_grad_(False)
    assert some.value == perturbation_gap(model, cross_entropy, [batch], sigma=0.1, draws=3).value


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sigma": -0.1}, "sigma is -0.1"),
        ({"sigma": math.nan}, "sigma is nan"),
        ({"sigma": math.inf}, "sigma is inf"),
        ({"sigma": 0.1, "draws": 0}, "draws is 0"),
        ({"sigma": 0.1, "noise": "gaussian"}, "unknown noise distribution 'gaussian'"),
        ({"sigma": 0.1, "noise": "cauchy"}, "no variance"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        gap(symmetric(2), **arguments)


def test_a_loss_that_explodes_under_noise_says_so():
    def loss(model, batch):
        return model.weight.exp().sum() if model.weight.any() else model.weight.sum()

    with pytest.raises(InputError, match="take a smaller sigma"):
        perturbation_gap(Quadratic(symmetric(3)), loss, ONE, sigma=1e6, draws=5)
