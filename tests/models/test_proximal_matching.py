"""Proximal matching and the training that ends with it."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import flatminima
from flatminima import LPN, ProximalMatching, fit_lpn
from flatminima.errors import InputError
from flatminima.models.learned_proximal import Stage, proximal_schedule

SHORT = [Stage(30, 1e-2), Stage(30, 1e-3, ProximalMatching(1.0))]


def gaussian(count, generator):
    return torch.randn(count, 2, generator=generator)


def test_the_loss_is_that_of_whole_samples():
    x, f = torch.randn(5, 2, 3), torch.randn(5, 2, 3)
    r = [float((f[i] - x[i]).norm()) for i in range(5)]
    expected = sum(1 - math.exp(-(v**2) / 4) for v in r) / 5
    assert float(ProximalMatching(2.0).loss(f, x)) == pytest.approx(expected)
    assert float(ProximalMatching(2.0)(nn.Identity(), (f, x))) == pytest.approx(expected)


def test_with_a_large_gamma_it_is_the_squared_error_over_gamma_squared():
    x, f = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    square = (f - x).square().sum(1).mean()
    assert torch.allclose(ProximalMatching(1e4).loss(f, x) * 1e8, square, rtol=1e-6)


def test_a_small_gamma_leads_to_the_mode_where_squares_lead_to_the_mean():
    x = torch.cat([torch.zeros(60), torch.ones(40)])[:, None]
    places = torch.linspace(-0.5, 1.5, 401)
    mode = [ProximalMatching(0.1).loss(p.expand(100, 1), x) for p in places]
    mean = [ProximalMatching(100.0).loss(p.double().expand(100, 1), x.double()) for p in places]
    assert abs(places[torch.stack(mode).argmin()]) < 1e-6
    assert places[torch.stack(mean).argmin()].item() == pytest.approx(0.4, abs=1e-6)


def test_the_schedule_is_the_paper_s():
    stages = proximal_schedule(28 * 28)
    assert [s.steps for s in stages] == [20_000, 5000, 5000, 5000, 5000]
    gammas = [s.objective.gamma for s in stages[1:]]
    assert gammas == pytest.approx([8 * 2.24, 4 * 2.24, 2 * 2.24, 2.24])
    assert [s.lr for s in stages] == pytest.approx([1e-3] + 4 * [1e-4])
    assert sum(s.steps for s in proximal_schedule(4, 10, start=3)) == 13


def test_on_gaussian_samples_the_network_becomes_the_known_prox():
    net = LPN(2, 16, 2, beta=5)
    stages = [Stage(200, 1e-2), Stage(60, 1e-3, ProximalMatching(1.0))]
    torch.manual_seed(0)
    fit_lpn(net, gaussian, 1.0, schedule=stages, batch=128)
    y = torch.linspace(-1.5, 1.5, 7)[:, None].expand(7, 2)
    assert torch.allclose(net(y), y / 2, atol=0.15)
    x = net(y).detach()
    r = net.prior(x).value
    assert torch.allclose(r - r[3], x.double().square().sum(1) / 2, atol=0.2)


@pytest.mark.parametrize(
    "optimizer",
    [
        torch.optim.Adam,
        lambda p: flatminima.NSO(torch.optim.Adam(p), sigma=0.01),
        lambda p: flatminima.SAM(torch.optim.Adam(p), rho=0.01),
    ],
    ids=["adam", "nso", "sam"],
)
def test_any_optimizer_minimizes_it_and_the_network_stays_convex(optimizer):
    torch.manual_seed(0)
    net = LPN(2, 8, 2)
    calls = []
    fitted = fit_lpn(
        net,
        gaussian,
        0.5,
        schedule=SHORT,
        optimizer=optimizer,
        progress=lambda *told: calls.append(told),
    )
    assert min(w.min() for w in net.nonnegative()) >= 0
    assert fitted.losses[0][-1] < fitted.losses[0][0] or len(fitted.losses[0]) == 1
    assert calls[0] == ("start", 1, 30)
    assert calls[-1] == ("proximal matching, gamma 1", 30, 30)
    assert float(net.sigma) == 0.5
    assert "60 steps" in str(fitted)


def test_no_noise_in_the_weights_is_plain_training_bit_for_bit():
    ends = []
    for optimizer in (
        torch.optim.Adam,
        lambda p: flatminima.NSO(torch.optim.Adam(p), sigma=0.0),
    ):
        torch.manual_seed(0)
        net = LPN(2, 8, 2)
        fit_lpn(net, gaussian, 0.5, schedule=SHORT, optimizer=optimizer, seed=3)
        ends.append(net.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*(e.values() for e in ends), strict=True))


def test_another_denoiser_is_trained_the_same_way():
    torch.manual_seed(0)
    fitted = fit_lpn(nn.Linear(2, 2), gaussian, 0.5, schedule=[Stage(100, 1e-2)])
    assert fitted.losses[0][-1] < fitted.losses[0][0]


@pytest.mark.parametrize(
    ("samples", "options", "words"),
    [
        (torch.rand(9, 2), {"sigma": 0}, "sigma is 0"),
        (255 * torch.rand(99, 2), {"sigma": 0.1}, "divided by 255"),
        (torch.zeros(9, 2, dtype=torch.uint8), {}, "divided by 255"),
        (torch.full((9, 2), math.nan), {}, "not finite"),
        (torch.rand(0, 2), {}, "0 samples"),
        (torch.rand(9, 3), {}, "samples of 2 numbers"),
        (
            torch.rand(9, 2),
            {"schedule": [Stage(1, 1e-3, ProximalMatching(1e-4))]},
            "nothing would be learned",
        ),
    ],
)
def test_samples_of_the_wrong_size_or_range_are_refused(samples, options, words):
    with pytest.raises(InputError, match=words):
        fit_lpn(LPN(2, 4, 2), samples, **{"sigma": 0.1, **options})


def test_a_gamma_or_a_schedule_that_cannot_be_is_refused():
    with pytest.raises(InputError, match="gamma is 0"):
        ProximalMatching(0)
    with pytest.raises(InputError, match="whole samples"):
        ProximalMatching(1.0).loss(torch.zeros(2, 3), torch.zeros(2, 1))
    with pytest.raises(InputError, match="stages=5"):
        proximal_schedule(4, 3, stages=5)
    for make, words in (
        (lambda: ProximalMatching("a"), "gamma is 'a'"),
        (lambda: ProximalMatching(None), "gamma is None"),
        (lambda: proximal_schedule(4.5), "dim is 4.5"),
        (lambda: proximal_schedule(4, 2.5), "steps is 2.5"),
        (lambda: proximal_schedule(4, start="a"), "start is 'a'"),
        (lambda: proximal_schedule(4, lr="a"), "lr is 'a'"),
        (lambda: proximal_schedule(4, gamma=-1.0), "gamma is -1.0"),
        (lambda: proximal_schedule(4, stages=1.5), "stages is 1.5"),
        (lambda: Stage(2.5, 1e-3), "steps is 2.5"),
        (lambda: Stage(2, -1e-3), "lr is -0.001"),
        (lambda: Stage(2, 1e-3, "l1"), "objective is 'l1'"),
    ):
        with pytest.raises(InputError, match=words):
            make()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"net": "net"}, "the model is 'net'"),
        ({"net": nn.Sequential()}, "without weights"),
        ({"net": nn.Linear(2, 5)}, r"makes \(2, 5\)"),
        ({"net": nn.Linear(5, 5)}, "does not take samples"),
        ({"samples": "x"}, "samples must be a tensor"),
        ({"samples": np.zeros((3, 2))}, "torch.from_numpy"),
        ({"samples": torch.tensor(1.0)}, "0 samples"),
        ({"samples": lambda count, generator: 3}, "samples must be a tensor"),
        ({"sigma": "a"}, "sigma is 'a'"),
        ({"sigma": None}, "sigma is None"),
        ({"batch": 2.5}, "batch is 2.5"),
        ({"batch": 0}, "batch is 0"),
        ({"seed": "a"}, "seed is 'a'"),
        ({"schedule": 5}, "no list of Stage"),
        ({"schedule": [3]}, "no list of Stage"),
        ({"schedule": []}, "empty"),
        ({"optimizer": "adam"}, "optimizer is 'adam'"),
        ({"optimizer": lambda p: 3}, "makes no optimizer"),
    ],
)
def test_arguments_of_wrong_types_are_refused(options, words):
    given = {"net": LPN(2, 4, 2), "samples": torch.rand(9, 2), "sigma": 0.1, **options}
    with pytest.raises(InputError, match=words):
        fit_lpn(**given)
