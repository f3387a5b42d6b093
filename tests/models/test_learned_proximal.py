"""Learned proximal networks: what convexity promises, against dense algebra and slow twins."""

import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flatminima import LPN, ConvLPN, PatchLPN
from flatminima.errors import InputError
from flatminima.models.learned_proximal import LearnedProximal

FLOAT = torch.float64
seeds = st.integers(0, 10_000)
few = settings(max_examples=10, deadline=None)
KINDS = ("vectors", "free mean", "images", "patches")


def network(kind="vectors", seed=0, alpha=0.05):
    torch.manual_seed(seed)
    net = {
        "vectors": lambda: LPN(6, 16, 3, beta=5, alpha=alpha),
        "free mean": lambda: LPN(6, 16, 2, beta=5, alpha=alpha, free_mean=True),
        "images": lambda: ConvLPN(2, 4, 2, beta=5, alpha=alpha),
        "patches": lambda: PatchLPN(LPN(9, 16, 2, beta=5, alpha=alpha), 3),
    }[kind]().double()
    with torch.no_grad():
        for weight in net.nonnegative():
            weight.mul_(3)
    return net


def samples(kind, count, seed=0):
    shape = {"images": (2, 4, 4), "patches": (1, 4, 5)}.get(kind, (6,))
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *shape, dtype=FLOAT, generator=generator)


def dot(a, b):
    return (a * b).flatten(1).sum(1)


class Quadratic(LearnedProximal):
    """psi = y' M y / 2: f = M y and R(x) = x' (M^-1 - I) x / 2."""

    def __init__(self, matrix):
        super().__init__()
        self.register_buffer("matrix", matrix)
        self.least = float(torch.linalg.eigvalsh(matrix)[0])

    def potential(self, y):
        return dot(y @ self.matrix, y) / 2

    def nonnegative(self):
        return []

    def check(self, y):
        assert y.shape[1] == len(self.matrix)


@pytest.mark.parametrize("kind", KINDS)
@given(seed=seeds)
@few
def test_the_jacobian_is_symmetric_with_eigenvalues_of_at_least_two_alpha(kind, seed):
    net, y = network(kind, seed), samples(kind, 1, seed)
    jacobian = torch.autograd.functional.jacobian(lambda v: net(v.reshape(y.shape)), y.flatten())
    jacobian = jacobian.reshape(y.numel(), y.numel())
    assert torch.allclose(jacobian, jacobian.T, atol=1e-13)
    assert net.least == 0.1
    assert torch.linalg.eigvalsh(jacobian)[0] >= net.least - 1e-12


@pytest.mark.parametrize("kind", KINDS)
@given(seed=seeds)
@few
def test_f_of_y_is_the_best_among_all_that_f_reaches(kind, seed):
    net = network(kind, seed)
    y, others = 2 * samples(kind, 3, seed), 2 * samples(kind, 200, seed + 1)
    x, c = net(y).detach(), net(others).detach()
    psi = net.potential(others).detach()
    r = dot(others, c) - dot(c, c) / 2 - psi
    own = dot(y, x) - dot(x, x) / 2 - net.potential(y).detach()
    for i in range(3):
        cost = dot(c - y[i], c - y[i]) / 2 + r
        assert cost.min() >= dot(x - y, x - y)[i] / 2 + own[i] - 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_the_prior_is_that_of_the_point_f_came_from(kind):
    net, y = network(kind, alpha=0.02), 2 * samples(kind, 5)
    x = net(y).detach()
    prior = net.prior(x)
    known = dot(y, x) - dot(x, x) / 2 - net.potential(y).detach()
    assert torch.allclose(prior.value, known, atol=1e-10)
    assert torch.allclose(prior.y, y, atol=1e-5)
    assert prior.residual.max() < 1e-6
    assert "at 5 samples" in str(prior)


def test_the_error_of_a_prior_covers_the_truth_wherever_newton_was_stopped():
    net, y = network(alpha=0.02), 3 * samples("vectors", 20)
    x = net(y).detach()
    truth = net.prior(x).value
    for steps in range(5):
        early = net.prior(x, steps=steps)
        assert (early.value <= truth + 1e-9).all()
        assert (truth <= early.value + early.error + 1e-9).all()
    assert net.prior(x, steps=0).error.max() > 1e-3


def test_of_a_quadratic_potential_all_is_known():
    matrix = torch.diag(torch.tensor([0.2, 0.5, 0.9], dtype=FLOAT))
    net, x = Quadratic(matrix), torch.randn(7, 3, dtype=FLOAT)
    assert torch.allclose(net(x), x @ matrix)
    inverse = torch.linalg.inv(matrix) - torch.eye(3, dtype=FLOAT)
    prior = net.prior(x)
    assert torch.allclose(prior.value, dot(x @ inverse, x) / 2, atol=1e-12)
    net.sigma.fill_(0.5)
    assert torch.allclose(net.prior(x).log_density, -prior.value / 0.25)


def test_half_the_square_is_the_identity_with_a_constant_prior():
    net = LPN(4, 8, 2, alpha=0.5).double()
    with torch.no_grad():
        net.out.zero_()
    y = torch.randn(5, 4, dtype=FLOAT)
    assert torch.equal(net(y), y)
    assert net.prior(y).value.abs().max() < 1e-14


def test_without_a_free_y_the_prior_says_so():
    net = network(alpha=0.0)
    far = net.prior(1e6 * torch.ones(1, 6, dtype=FLOAT), steps=5)
    assert far.residual[0] > 1
    assert far.error[0] == math.inf


def test_the_mean_passes_unchanged_where_it_is_free():
    net, y = network("free mean"), samples("free mean", 4)
    assert torch.allclose(net(y).mean(1), y.mean(1))
    assert torch.allclose(net(y + 3), net(y) + 3)
    x = net(y).detach()
    assert torch.allclose(net.prior(x + 3).value, net.prior(x).value)


@pytest.mark.parametrize("stride", [1, 3])
def test_patches_are_averaged_as_a_slow_loop_averages_them(stride):
    torch.manual_seed(0)
    inner = LPN(9, 8, 2, beta=5).double()
    y = torch.randn(2, 1, 6, 9, dtype=FLOAT)
    total = torch.zeros_like(y)
    for image in range(2):
        for row in range(0, 6, stride):
            for column in range(0, 9, stride):
                rows = (torch.arange(3) + row) % 6
                columns = (torch.arange(3) + column) % 9
                patch = y[image, 0][rows][:, columns]
                result = inner(patch.reshape(1, 9)).reshape(3, 3)
                total[image, 0, rows[:, None], columns] += result * (stride / 3) ** 2
    assert torch.allclose(PatchLPN(inner, 3, stride)(y), total)


def test_convolutions_do_not_care_where_an_image_begins():
    net, y = network("images"), samples("images", 3)
    moved = y.roll((1, 2), (2, 3))
    assert torch.allclose(net(moved), net(y).roll((1, 2), (2, 3)))
    assert torch.allclose(net.potential(moved), net.potential(y))


def test_f_works_without_gradients_and_leaves_its_input_alone():
    net, y = network(), samples("vectors", 3)
    with torch.no_grad():
        quiet = net(y)
    assert not quiet.requires_grad
    assert not y.requires_grad
    assert torch.equal(quiet, net(y).detach())
    net(y).sum().backward()
    assert all(p.grad is not None for p in [net.out, *net.inner])


def test_inference_mode_is_refused_with_the_mend():
    with torch.inference_mode(), pytest.raises(InputError, match=r"use torch\.no_grad"):
        network()(samples("vectors", 1))


def test_saved_and_loaded_it_is_the_same_network():
    net, other = network(seed=1), network(seed=2)
    net.sigma.fill_(0.3)
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file))
    y = samples("vectors", 2)
    assert torch.equal(net(y), other(y))
    assert float(other.sigma) == 0.3


def test_negative_weights_are_refused_until_they_are_clipped():
    net, x = network(), samples("vectors", 2)
    with torch.no_grad():
        net.inner[0][0, :2] = -1
        first = net.skips[0].weight.clone()
    with pytest.raises(InputError, match=r"2 negative weights .* clip_"):
        net.prior(x)
    net.clip_()
    assert net.inner[0].min() == 0
    assert torch.equal(net.skips[0].weight, first)
    net.require_convex()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LPN(0), "dim is 0"),
        (lambda: LPN(3, alpha=-1), "alpha is -1"),
        (lambda: LPN(3, beta=0), "beta is 0"),
        (lambda: LPN(3, layers=0), "layers is 0"),
        (lambda: ConvLPN(kernel=4), "odd side"),
        (lambda: PatchLPN(LPN(9), 4), "takes 9 numbers"),
        (lambda: PatchLPN(LPN(9), 3, stride=2), "does not divide"),
        (lambda: LPN(3)(torch.zeros(2, 4)), r"samples of 3 numbers.*\(2, 4\)"),
        (lambda: LPN(3)(torch.zeros(2, 3, dtype=torch.uint8)), "divided by 255"),
        (lambda: ConvLPN()(torch.zeros(8, 8)), r"\(batch, 1, height, width\)"),
        (lambda: ConvLPN()(torch.zeros(1, 1, 2, 8)), "smaller than"),
        (lambda: PatchLPN(LPN(9), 3, 3)(torch.zeros(1, 1, 7, 9)), "stride 3"),
        (lambda: LPN(3).prior(torch.zeros(1, 3)).log_density, "no sigma"),
        (lambda: LPN(4.5), "dim is 4.5"),
        (lambda: LPN(True), "dim is True"),
        (lambda: LPN(3, hidden="a"), "hidden is 'a'"),
        (lambda: LPN(3, layers=1.0), "layers is 1.0"),
        (lambda: LPN(3, beta="a"), "beta is 'a'"),
        (lambda: LPN(3, alpha=None), "alpha is None"),
        (lambda: ConvLPN(kernel=3.0), "kernel is 3.0"),
        (lambda: PatchLPN(nn.Linear(4, 4), 2), "a Linear: give an LPN"),
        (lambda: PatchLPN(LPN(4), 2.0), "side is 2.0"),
        (lambda: PatchLPN(LPN(4), 2, 1.0), "stride is 1.0"),
        (lambda: LPN(3)("y"), "y must be a tensor"),
        (lambda: LPN(3)(np.zeros((2, 3))), "torch.from_numpy"),
        (lambda: LPN(3).potential(None), "y must be a tensor"),
        (lambda: LPN(3).prior([1.0]), "y must be a tensor"),
        (lambda: LPN(3).prior(torch.full((1, 3), math.nan)), "not finite"),
        (lambda: LPN(3).prior(torch.zeros(1, 3), steps=1.5), "steps is 1.5"),
        (lambda: LPN(3).prior(torch.zeros(1, 3), tolerance=-1), "tolerance is -1"),
    ],
)
def test_what_cannot_work_is_refused_with_the_mend(make, words):
    with pytest.raises(InputError, match=words):
        make()


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_of_another_type_than_the_weights_are_refused_with_the_mend(kind):
    net = network(kind)
    y = samples(kind, 2).float()
    for call in (net, net.potential):
        with pytest.raises(InputError, match=r"float32 and the network of torch\.float64: give"):
            call(y)
    assert net(y.double()).dtype == net.float()(y).double().dtype
    assert net.float().prior(y.double()).value.isfinite().all(), "the prior is in float64 anyway"


def test_it_is_a_module_that_says_what_it_was_trained_on():
    assert isinstance(LPN(2), nn.Module)
    assert "not trained" in repr(LPN(2))
