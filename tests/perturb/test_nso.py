"""NSO against a slow, obvious twin, and against closed forms."""

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from flatminima.errors import InputError
from flatminima.perturb import NSO, schedules
from flatminima.perturb.noise import DISTRIBUTIONS, Stream, tensor_ids
from flatminima.perturb.weights import Weights

from .cases import (
    DOUBLE,
    adamw,
    assert_same_bits,
    batch,
    copies,
    gradient,
    sgd,
    smooth,
    state_of,
    stateful,
    train,
    train_bare,
)

properties = settings(max_examples=25, deadline=None, derandomize=True)


def draws(parameters, k=1, sigma=0.05, seed=7, step=0, noise="normal", rank=0):
    """The U_1 .. U_k of a step, one list of tensors each."""
    ids = tensor_ids([f"parameter {i}" for i in range(len(parameters))])
    stream = Stream(seed)
    return [
        [
            sigma
            * DISTRIBUTIONS[noise].sample(
                torch.empty_like(p), stream.generator(p.device, name, step, j, rank)
            )
            for p, name in zip(parameters, ids, strict=True)
        ]
        for j in range(k)
    ]


def gradient_at(model, offsets, sign, x, y):
    names = [name for name, _ in model.named_parameters()]
    moved = [
        (p.detach() + sign * u).requires_grad_()
        for p, u in zip(model.parameters(), offsets, strict=True)
    ]
    loss = cross_entropy(functional_call(model, dict(zip(names, moved, strict=True)), (x,)), y)
    return torch.autograd.grad(loss, moved)


def twin(model, x, y, *, k, clean_weight, two_point, **drawing):
    """lambda g(W) + (1 - lambda) mean_j (g(W + U_j) + g(W - U_j)) / 2, one term at a time."""
    parameters = copies(model.parameters())
    total = [torch.zeros_like(p) for p in parameters]
    signs = (1, -1) if two_point else (1,)
    terms = [
        ((1 - clean_weight) / (k * len(signs)), offsets, sign)
        for offsets in draws(parameters, k, **drawing)
        for sign in signs
    ]
    terms.append((clean_weight, [torch.zeros_like(p) for p in parameters], 1))
    for weight, offsets, sign in terms:
        for sum_, g in zip(total, gradient_at(model, offsets, sign, x, y), strict=True):
            sum_ += weight * g
    return total


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("clean_weight", [0.0, 0.3])
@pytest.mark.parametrize("two_point", [True, False])
@pytest.mark.parametrize("noise", DISTRIBUTIONS)
def test_the_gradient_is_that_of_the_twin(k, clean_weight, two_point, noise):
    model, (x, y) = smooth(), batch(dtype=DOUBLE)
    optimizer = NSO(
        sgd(model.parameters()),
        sigma=0.05,
        seed=7,
        num_perturbations=k,
        clean_weight=clean_weight,
        two_point=two_point,
        noise=noise,
    )
    ours = gradient(optimizer, lambda: cross_entropy(model(x), y), *model.parameters())
    theirs = twin(
        model, x, y, k=k, clean_weight=clean_weight, two_point=two_point, noise=noise, seed=7
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


def vector(*values):
    return nn.Parameter(torch.tensor(values, dtype=DOUBLE))


def nso(*parameters, sigma=0.1, **options):
    return NSO(torch.optim.SGD(parameters, lr=0.1), sigma=sigma, **options)


matrices = st.lists(st.floats(-5, 5), min_size=9, max_size=9).map(
    lambda entries: torch.tensor(entries, dtype=DOUBLE).view(3, 3)
)


@properties
@given(matrices, st.integers(1, 4), st.floats(1e-4, 2.0), st.integers(0, 10**6))
def test_two_points_on_a_quadratic_give_the_plain_gradient_on_every_draw(a, k, sigma, seed):
    w, h = vector(0.3, -1.0, 2.0), a + a.T
    (found,) = gradient(
        nso(w, sigma=sigma, num_perturbations=k, seed=seed), lambda: w @ h @ w / 2 + w.sum(), w
    )
    # Rounding of sums of terms of size |H| (|W| + |U|).
    torch.testing.assert_close(found, (h @ w + 1).detach(), rtol=1e-12, atol=1e-12 * (1 + sigma))


def test_on_a_quadratic_the_trajectory_is_that_of_the_base_optimizer():
    h = torch.diag(torch.tensor([1.0, 2.0, 5.0], dtype=DOUBLE))
    ours, theirs = vector(1.0, -2.0, 0.5), vector(1.0, -2.0, 0.5)
    optimizer = NSO(adamw([ours]), sigma=0.2, num_perturbations=2)
    base = adamw([theirs])
    for _ in range(50):
        for _ in optimizer.passes():
            (ours @ h @ ours / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
        (theirs @ h @ theirs / 2).backward()
        base.step()
        base.zero_grad()
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@properties
@given(st.integers(0, 10**6), st.floats(0.01, 1.0))
def test_two_points_on_a_cubic_add_half_the_third_derivative(seed, sigma):
    # f = sum w^3, so (D^3 f[U, U, .])_i = 6 U_i^2.
    w = vector(0.3, -1.0, 2.0)
    ((u,),) = draws([w.detach()], sigma=sigma, seed=seed)
    (found,) = gradient(nso(w, sigma=sigma, seed=seed), lambda: w.pow(3).sum(), w)
    torch.testing.assert_close(found, 3 * w.detach() ** 2 + 3 * u**2, rtol=1e-12, atol=1e-12)


def test_the_mean_on_a_cubic_is_the_gradient_of_f_plus_half_sigma_squared_trace():
    w, sigma, n = vector(0.3, -1.0), 0.5, 2000
    optimizer = nso(w, sigma=sigma, num_perturbations=n, seed=1)
    (found,) = gradient(optimizer, lambda: w.pow(3).sum(), w)
    expected = 3 * w.detach() ** 2 + sigma**2 / 2 * 6  # d/dw of (sigma^2 / 2) 6 w
    stderr = 3 * sigma**2 * math.sqrt(2 / n)
    torch.testing.assert_close(found, expected, rtol=0, atol=4 * stderr)


@pytest.mark.parametrize("k", [1, 4])
def test_one_point_noise_on_a_quadratic_errs_by_sigma_squared_h_squared_over_k(k):
    h = torch.tensor([[2.0, 1.0], [1.0, -3.0]], dtype=DOUBLE)
    w, sigma, n = vector(0.3, -1.0), 0.2, 3000
    errors = []
    for seed in range(n // k):
        optimizer = nso(w, sigma=sigma, num_perturbations=k, seed=seed, two_point=False)
        (found,) = gradient(optimizer, lambda: w @ h @ w / 2, w)
        errors.append(found - (h @ w).detach())
    covariance = torch.stack(errors).T.cov(correction=0)
    # The relative standard error of a variance from m draws is sqrt(2 / m); 4 of them.
    tolerance = 4 * math.sqrt(2 / (n // k))
    expected = sigma**2 * h @ h / k
    torch.testing.assert_close(covariance, expected, rtol=0, atol=tolerance * expected.max().item())


@properties
@given(st.integers(0, 10**6), st.floats(0.01, 0.5))
def test_on_a_cosine_and_an_exponential_each_draw_is_the_closed_form(seed, sigma):
    w, a = vector(0.3, -1.0, 2.0), torch.tensor([1.0, 0.5, -0.7], dtype=DOUBLE)
    ((u,),) = draws([w.detach()], sigma=sigma, seed=seed)
    at, inner = (a @ w).detach(), a @ u
    (cosine,) = gradient(nso(w, sigma=sigma, seed=seed), lambda: torch.cos(a @ w), w)
    torch.testing.assert_close(cosine, -a * at.sin() * inner.cos(), rtol=1e-11, atol=1e-12)
    (exponential,) = gradient(nso(w, sigma=sigma, seed=seed), lambda: torch.exp(a @ w), w)
    torch.testing.assert_close(exponential, a * at.exp() * inner.cosh(), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("options", [{"sigma": 0.0}, {"sigma": 0.1, "clean_weight": 1.0}])
def test_sigma_0_and_lambda_1_are_the_base_optimizer_bit_for_bit(base, options):
    ours, theirs = stateful(), stateful()
    batches = [batch(seed=s) for s in range(4)]
    torch.manual_seed(1)
    train(NSO(base(ours.parameters()), **options), ours, batches)
    torch.manual_seed(1)
    train_bare(base(theirs.parameters()), theirs, batches)
    assert_same_bits(state_of(ours), state_of(theirs))


class Swapped(NSO):
    """-U before +U."""

    def _to(self, step, j, rank, sign):
        return super()._to(step, j, rank, -sign)


def test_swapping_the_signs_changes_nothing():
    model, (x, y) = smooth(), batch(dtype=DOUBLE)
    found = [
        gradient(
            cls(sgd(model.parameters()), sigma=0.1, seed=7, num_perturbations=2),
            lambda: cross_entropy(model(x), y),
            *model.parameters(),
        )
        for cls in (NSO, Swapped)
    ]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


def test_k_draws_are_the_mean_of_the_first_k_single_draws():
    # A stream is addressed, so cutting k draws into k single ones gives the same U.
    model, (x, y) = smooth(), batch(dtype=DOUBLE)
    joint = gradient(
        NSO(sgd(model.parameters()), sigma=0.05, seed=7, num_perturbations=3),
        lambda: cross_entropy(model(x), y),
        *model.parameters(),
    )
    offsets = draws(copies(model.parameters()), k=3)
    single = [
        [(a + b) / 2 for a, b in zip(*pair, strict=True)]
        for pair in ([gradient_at(model, u, s, x, y) for s in (1, -1)] for u in offsets)
    ]
    for index, g in enumerate(joint):
        mean = torch.stack([one[index] for one in single]).mean(0)
        torch.testing.assert_close(g, mean, rtol=1e-11, atol=1e-13)


def test_passes_per_micro_batch_equal_the_large_batch():
    model, (x, y) = smooth(), batch(8, DOUBLE)
    optimizer = NSO(sgd(model.parameters()), sigma=0.1, num_perturbations=2, clean_weight=0.2)
    whole = gradient(optimizer, lambda: cross_entropy(model(x), y), *model.parameters())
    optimizer.zero_grad()
    for x_, y_ in zip(x.chunk(4), y.chunk(4), strict=True):
        for _ in optimizer.passes():
            (cross_entropy(model(x_), y_) / 4).backward()
    for a, p in zip(whole, model.parameters(), strict=True):
        torch.testing.assert_close(p.grad, a, rtol=1e-12, atol=1e-14)


class Counting(nn.Module):
    """Counts the samples that go forward and backward."""

    def __init__(self):
        super().__init__()
        self.inner, self.forwards, self.backwards = smooth(), 0, 0

    def forward(self, x):
        self.forwards += len(x)
        out = self.inner(x)
        if out.requires_grad:
            out.register_hook(self.count)
        return out

    def count(self, grad):
        self.backwards += len(grad)


@pytest.mark.parametrize(
    ("options", "forwards", "backwards"),
    [
        ({}, 2, 2),
        ({"num_perturbations": 3}, 6, 6),
        ({"clean_weight": 0.5}, 3, 3),
        ({"clean_weight": 1.0}, 1, 1),
        ({"two_point": False, "num_perturbations": 2}, 2, 2),
        ({"signs": "split"}, 1, 1),
        ({"signs": "split", "num_perturbations": 3}, 1, 1),
        ({"signs": "alternate"}, 1, 1),
        ({"running_statistics": "clean"}, 3, 2),
    ],
)
def test_what_a_step_costs(options, forwards, backwards):
    model, (x, y) = Counting(), batch(12, DOUBLE)
    optimizer = NSO(sgd(model.parameters()), sigma=0.1, **options)
    for x_, y_ in optimizer.passes(x, y):
        loss = cross_entropy(model(x_), y_)
        if optimizer.current_pass.backward:
            loss.backward()
    assert model.forwards == 12 * forwards
    assert model.backwards == 12 * backwards
    assert optimizer.gradients_per_step(12) == pytest.approx(backwards)


def record(optimizer, w, *data):
    """Displacements of `w` and parts of the batch, pass by pass."""
    home, seen = w.detach().clone(), []
    for part in optimizer.passes(*data):
        seen.append((w.detach() - home, part))
        w.sum().backward()
    return seen


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("samples", [6, 7, 8, 13])
def test_split_takes_each_sample_once_and_opposite_signs(k, samples):
    w, x = vector(0.0, 0.0), torch.arange(samples)
    seen = record(nso(w, signs="split", num_perturbations=k, seed=7), w, x)
    offsets = draws([w.detach()], k, sigma=0.1)
    assert len(seen) == 2 * k
    assert torch.equal(torch.cat([part for _, part in seen]), x)
    for j in range(k):
        torch.testing.assert_close(seen[2 * j][0], offsets[j][0])
        torch.testing.assert_close(seen[2 * j + 1][0], -offsets[j][0])
    torch.testing.assert_close(w.grad, torch.ones_like(w))


@pytest.mark.parametrize(("samples", "passes"), [(1, 1), (2, 2), (3, 2), (5, 4)])
def test_split_of_few_samples_takes_fewer_pairs(samples, passes):
    w = vector(1.0)
    seen = record(nso(w, signs="split", num_perturbations=3), w, torch.arange(samples))
    assert len(seen) == passes
    torch.testing.assert_close(w.grad, torch.ones_like(w))


@pytest.mark.parametrize("samples", [2, 5, 8, 9])
def test_split_weighs_the_halves_by_their_samples(samples):
    # At sigma -> 0 the gradient is that of the mean over all samples, whatever the halves.
    model, (x, y) = smooth(), batch(samples, DOUBLE)
    optimizer = NSO(sgd(model.parameters()), sigma=1e-12, signs="split", num_perturbations=2)
    for x_, y_ in optimizer.passes(x, y):
        cross_entropy(model(x_), y_).backward()
    found = [p.grad for p in model.parameters()]
    expected = torch.autograd.grad(cross_entropy(model(x), y), list(model.parameters()))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_split_on_a_quadratic_leaves_half_the_difference_of_the_halves():
    # f_A = w'Aw/2 on one half and f_B on the other: G = (A + B) w / 2 + (A - B) U / 2.
    a = torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=DOUBLE)
    b = torch.tensor([[1.0, -0.5], [-0.5, 5.0]], dtype=DOUBLE)
    w = vector(1.0, -2.0)
    optimizer = nso(w, sigma=0.3, signs="split", seed=7)
    for half in optimizer.passes(torch.stack([a, a, b, b])):
        (w @ half.mean(0) @ w / 2).backward()
    ((u,),) = draws([w.detach()], sigma=0.3)
    expected = (a + b) @ w.detach() / 2 + (a - b) @ u / 2
    torch.testing.assert_close(w.grad, expected, rtol=1e-12, atol=1e-12)


def test_split_by_micro_batches_alternates_the_sign():
    w = vector(0.0)
    optimizer = nso(w, signs="split", num_perturbations=2, seed=7)
    seen = [record(optimizer, w)[0][0] for _ in range(4)]
    (first,), (second,) = draws([w.detach()], 2, sigma=0.1)
    for found, expected in zip(seen, (first, -first, second, -second), strict=True):
        torch.testing.assert_close(found, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()


def test_split_warns_of_a_sign_without_partner_at_the_users_line():
    w = vector(0.0)
    optimizer = nso(w, signs="split")
    record(optimizer, w)
    with pytest.warns(UserWarning, match="1 micro-batch.* passes\\(x, y\\)") as caught:
        optimizer.step()
    assert caught[0].filename == __file__


@pytest.mark.parametrize("options", [{"sigma": 0.0}, {"clean_weight": 1.0}])
def test_split_without_noise_has_no_sign_to_warn_of(options):
    w = vector(0.0)
    optimizer = nso(w, signs="split", **options)
    record(optimizer, w)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()


def test_asking_for_the_cost_changes_nothing():
    w = vector(0.0)
    optimizer = nso(w, signs="split")
    record(optimizer, w)
    assert optimizer.gradients_per_step() == 1
    with pytest.warns(UserWarning, match="has no partner"):
        optimizer.step()


def test_split_refuses_a_closure_and_shows_the_loop():
    w = vector(0.0)
    with pytest.raises(InputError, match=r"for x_, y_ in optimizer.passes\(x, y\)"):
        nso(w, signs="split").step(lambda: w.sum())


def test_alternate_mirrors_the_draw_at_the_next_step():
    w = vector(0.0, 0.0)
    optimizer = NSO(torch.optim.SGD([w], lr=0.0), sigma=0.1, signs="alternate", seed=7)
    seen = []
    for _ in range(4):
        seen.append(record(optimizer, w)[0][0])
        optimizer.step()
    first, second = (draws([w.detach()], sigma=0.1, step=period)[0][0] for period in (0, 1))
    for found, expected in zip(seen, (first, -first, second, -second), strict=True):
        torch.testing.assert_close(found, expected)


def test_a_schedule_scales_sigma_step_by_step():
    w = vector(0.0, 0.0)
    optimizer = NSO(
        torch.optim.SGD([w], lr=0.0), sigma=0.1, seed=7, schedule=schedules.linear(total=3)
    )
    for step, factor in enumerate([0.0, 0.5, 1.0, 1.0]):
        seen = record(optimizer, w)
        ((u,),) = draws([w.detach()], sigma=0.1 * factor, step=step)
        torch.testing.assert_close(seen[0][0], u)
        assert len(seen) == (2 if factor else 1)
        optimizer.step()


def test_each_group_has_its_own_sigma():
    a, b = nn.Parameter(torch.zeros(2000)), nn.Parameter(torch.zeros(2000))
    optimizer = NSO(torch.optim.SGD([{"params": [a], "sigma": 0.5}, {"params": [b]}]), sigma=0.1)
    for _ in optimizer.passes():
        # The relative standard error of a standard deviation from n draws is 1 / sqrt(2 n).
        assert a.std().item() == pytest.approx(0.5, rel=4 / math.sqrt(4000))
        assert b.std().item() == pytest.approx(0.1, rel=4 / math.sqrt(4000))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, DOUBLE])
def test_weights_return_bit_for_bit_in_every_dtype(dtype):
    w = nn.Parameter((torch.randn(500) * torch.logspace(-6, 4, 500)).to(dtype))
    before = w.detach().clone()
    optimizer = nso(w, sigma=0.3, num_perturbations=3)
    moved = 0
    for _ in optimizer.passes():
        moved += not torch.equal(w, before)
    assert moved == 6
    assert torch.equal(w, before)


def test_the_gradient_of_a_complex_parameter_is_that_of_its_two_parts():
    # f = sum Re(w)^3 + 2 Im(w)^3, whose two-point gradient adds 3 U^2 and 6 U^2.
    w = nn.Parameter(torch.zeros(4000, dtype=torch.complex128))
    optimizer = nso(w, sigma=0.5)
    for _ in optimizer.passes():
        (w.real.pow(3) + 2 * w.imag.pow(3)).sum().backward()
    # Var[U^2] = 2 sigma^4; 4 standard errors.
    tolerance = 4 * 3 * 0.25 * math.sqrt(2 / 4000)
    assert w.grad.real.mean().item() == pytest.approx(3 * 0.25, abs=tolerance)
    assert w.grad.imag.mean().item() == pytest.approx(6 * 0.25, abs=2 * tolerance)


@pytest.mark.parametrize("noise", DISTRIBUTIONS)
def test_every_distribution_moves_complex_parameters(noise):
    w = nn.Parameter(torch.zeros(4000, dtype=torch.complex64))
    optimizer = nso(w, sigma=0.5, noise=noise)
    for _ in optimizer.passes():
        for part in (w.detach().real, w.detach().imag):
            assert part.std().item() == pytest.approx(0.5, rel=0.15)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_perturbations": 0}, "num_perturbations must be at least 1, not 0"),
        ({"num_perturbations": 1.5}, "num_perturbations must be an integer"),
        ({"num_perturbations": True}, "num_perturbations must be an integer"),
        ({"clean_weight": -0.1}, "clean_weight must be a number in"),
        ({"clean_weight": 1.1}, "clean_weight must be a number in"),
        ({"clean_weight": math.nan}, "clean_weight must be a number in"),
        ({"clean_weight": "0.5"}, "clean_weight must be a number in"),
        ({"signs": "pair"}, "did you mean 'paired'"),
        ({"signs": "split", "two_point": False}, "leave one of them out"),
        ({"running_statistics": "cleam"}, "did you mean 'clean'"),
        ({"noise": "norml"}, "did you mean 'normal'"),
        ({"noise": "cauchy"}, "no variance.*use 'laplace'"),
        ({"schedule": 0.5}, "schedule must be a callable"),
    ],
)
def test_bad_options_are_named_with_the_mend(options, message):
    with pytest.raises(InputError, match=message):
        NSO(sgd(smooth().parameters()), sigma=0.1, **options)


def test_a_plan_counts_each_sample_once():
    for options in ({}, {"num_perturbations": 3}, {"clean_weight": 0.3}, {"two_point": False}):
        w = vector(1.0)
        record(nso(w, **options), w)
        torch.testing.assert_close(w.grad, torch.ones_like(w))


def test_reflecting_twice_returns_to_the_first_point():
    w = vector(1.0, 2.0)
    slots = nso(w)._slots([{}])
    weights = Weights(slots)
    weights.displace([torch.tensor([0.25, -0.5], dtype=DOUBLE)])
    weights.reflect()
    assert w.tolist() == [0.75, 2.5]
    weights.reflect()
    assert w.tolist() == [1.25, 1.5]
