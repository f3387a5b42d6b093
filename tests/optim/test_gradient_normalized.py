"""Gradient-normalized smoothness against dense algebra, its identities, and what can go wrong."""

import io
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import mse_loss

from flatminima import GNS, NSO, EmpiricalFisher, GaussNewton, Hessian, Supervised
from flatminima.errors import InputError
from flatminima.measure import Dense, LowRank, Shift
from flatminima.optim import CARDS
from flatminima.optim.metric import Metric
from flatminima.optim.shifted import Krylov, Spectral, shifted

FLOAT = torch.float64
seeds = st.integers(0, 10_000)
damped = settings(max_examples=30, deadline=None)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=FLOAT, generator=torch.Generator().manual_seed(seed))


def psd(n, rank=None, seed=0):
    factor = normal(n, rank or n, seed=seed)
    return factor @ factor.T


def minimizer(f, start, curvature=None, **options):
    """A parameter, its optimizer with the exact Hessian unless told, and the closure."""
    x = nn.Parameter(start.clone())

    def exact():
        return Dense(torch.autograd.functional.hessian(f, x.detach()))

    optimizer = GNS([x], (lambda: curvature(x.detach())) if curvature else exact, **options)

    def closure():
        optimizer.zero_grad()
        loss = f(x)
        loss.backward()
        return loss

    return x, optimizer, closure


def iterations(optimizer, closure, target, most):
    """Steps until the loss is below the target."""
    for done in range(1, most + 1):
        optimizer.step(closure)
        if optimizer.last.loss < target:
            return done
    return most + 1


def rosenbrock(x):
    return (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2


def rosenbrock_gauss_newton(x):
    def residuals(x):
        return torch.stack([1 - x[0], 10 * (x[1] - x[0] ** 2)])

    jacobian = torch.autograd.functional.jacobian(residuals, x)
    return Dense(2 * jacobian.T @ jacobian)


@pytest.mark.parametrize("curvature", [None, rosenbrock_gauss_newton], ids=["hessian", "ggn"])
def test_rosenbrock_takes_about_fifty_iterations(curvature):
    x, optimizer, closure = minimizer(rosenbrock, torch.tensor([-2.0, 2.0], dtype=FLOAT), curvature)
    assert 40 <= iterations(optimizer, closure, 1e-8, 120) <= 60
    torch.testing.assert_close(x.detach(), torch.ones(2, dtype=FLOAT), atol=1e-3, rtol=0)


def log_sum_exp(n, seed=0):
    """f with its minimum at 0, its matrix, and its two curvatures."""
    generator = torch.Generator().manual_seed(seed)
    a = 2 * torch.rand(n, n, dtype=FLOAT, generator=generator) - 1
    b = 2 * torch.rand(n, dtype=FLOAT, generator=generator) - 1
    a = a - a.T @ torch.softmax(-b, 0)

    def f(x):
        return torch.logsumexp(a @ x - b, 0)

    def weighted(x):
        return a.T @ (torch.softmax(a @ x - b, 0)[:, None] * a)

    return f, a, weighted


@pytest.mark.parametrize("products", [200, 30], ids=["eigenvectors", "Krylov"])
@pytest.mark.parametrize("exact", [True, False])
def test_log_sum_exp_is_solved_in_a_few_dozen_iterations(exact, products):
    f, a, weighted = log_sum_exp(100)
    start = torch.ones(100, dtype=FLOAT)
    curvature = None if exact else lambda x: Dense(weighted(x))
    # Recentring makes A singular.
    metric = a.T @ a + 1e-6 * torch.eye(100, dtype=FLOAT)
    options = {"metric": metric, "products": products}
    _, optimizer, closure = minimizer(f, start, curvature, **options)
    best = f(torch.zeros(100, dtype=FLOAT)).item()
    assert iterations(optimizer, closure, best + 1e-8, 60) <= (30 if exact else 45)


def test_the_weighted_curvature_of_log_sum_exp_is_off_by_the_outer_product_of_the_gradient():
    f, _, weighted = log_sum_exp(20)
    x = normal(20).requires_grad_()
    (gradient,) = torch.autograd.grad(f(x), x)
    exact = torch.autograd.functional.hessian(f, x.detach())
    torch.testing.assert_close(weighted(x.detach()) - exact, torch.outer(gradient, gradient))


@given(seeds, st.floats(-6, 6), st.sampled_from(["none", "diagonal", "matrix"]))
@damped
def test_on_a_quadratic_every_gamma_is_accepted(seed, exponent, kind):
    n, gamma = 6, 10.0**exponent
    matrix, linear = psd(n, rank=4, seed=seed), normal(n, seed=seed + 1)
    matrix = matrix + 0.1 * torch.eye(n, dtype=FLOAT)
    metrics = {"none": None, "diagonal": normal(n, seed=seed).abs() + 0.1, "matrix": psd(n) + 1}
    metric = metrics[kind]
    b = torch.eye(n, dtype=FLOAT)
    b = b if metric is None else metric.diag() if metric.ndim == 1 else metric

    def f(x):
        return x @ matrix @ x / 2 + linear @ x

    start = normal(n, seed=seed + 2)
    options = {"gamma": gamma, "gamma_range": (1e-9, 1e12), "tol": 0.0}
    x, optimizer, closure = minimizer(f, start, lambda x: Dense(matrix), metric=metric, **options)
    before = matrix @ start + linear
    optimizer.step(closure)
    last = optimizer.last
    assert (last.status, last.trials, last.gamma) == ("moved", 1, 2 * gamma)
    step, gradient = x.detach() - start, matrix @ x.detach() + linear
    norm = (gradient @ torch.linalg.solve(b, gradient)).sqrt().item()
    assert last.damping == pytest.approx(
        (before @ torch.linalg.solve(b, before)).sqrt().item() / gamma
    )
    expected = -last.damping * b @ step
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-7 * before.norm().item())
    gain = f(start) - f(x.detach())
    assert gain >= norm**2 / last.damping - 1e-9 * f(start).abs()
    assert last.step_norm == pytest.approx((step @ b @ step).sqrt().item(), rel=1e-6)
    assert last.step_norm <= gamma * (1 + 1e-9)


def test_without_curvature_it_is_normalized_gradient_descent():
    start = normal(5)
    zero = Dense(torch.zeros(5, 5, dtype=FLOAT))
    x, optimizer, closure = minimizer(lambda x: x.sum() * 3, start, lambda x: zero, gamma=0.25)
    optimizer.step(closure)
    expected = start - 0.25 * torch.ones(5, dtype=FLOAT) / math.sqrt(5)
    torch.testing.assert_close(x.detach(), expected)


@given(seeds, st.integers(1, 12), st.integers(1, 12))
@damped
def test_a_krylov_step_is_never_longer_than_gamma_wherever_it_stops(seed, rank, most):
    matrix, gradient = psd(12, rank=rank, seed=seed), normal(12, seed=seed + 1)
    krylov = Krylov(lambda v: matrix @ v, gradient, most=most, rtol=1e-12)
    for gamma in (1e-3, 1.0, 1e3):
        step = krylov.solve(gradient.norm().item() / gamma)
        assert step is not None
        assert step.norm() <= gamma * (1 + 1e-8)
        assert step @ gradient < 0


@given(seeds, st.integers(0, 12))
@damped
def test_one_krylov_space_answers_all_shifts_as_dense_algebra_does(seed, negative):
    matrix, gradient = psd(12, seed=seed), normal(12, seed=seed + 1)
    values, vectors = torch.linalg.eigh(matrix)
    values[:negative] *= -0.1
    matrix = vectors @ values.diag() @ vectors.T
    least = values.min().item()
    krylov = Krylov(lambda v: matrix @ v, gradient, most=12, rtol=1e-13)
    spectral = Spectral(values, vectors, gradient)
    for shift in (abs(least) * 1.5 + 0.1, abs(least) + 3.0, 100.0):
        expected = -torch.linalg.solve(matrix + shift * torch.eye(12, dtype=FLOAT), gradient)
        torch.testing.assert_close(krylov.solve(shift), expected, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(spectral.solve(shift), expected, rtol=1e-6, atol=1e-8)
    if least < -1e-3:
        assert spectral.solve(-least / 2) is None
        assert krylov.solve(-least / 2) is None


def test_the_residual_of_a_krylov_step_is_what_was_asked_for_and_more_damping_costs_no_product():
    matrix, gradient = psd(200), normal(200, seed=1)
    operator = Dense(matrix)
    krylov = Krylov(operator.matmat, gradient, most=200, rtol=0.01)
    used = []
    for shift in (10.0, 20.0, 1000.0):
        step = krylov.solve(shift)
        residual = matrix @ step + shift * step + gradient
        assert residual.norm() <= 0.01 * gradient.norm() * (1 + 1e-6)
        used.append(operator.hvps)
    assert used[0] == used[1] == used[2] < 100


def test_a_rank_one_curvature_takes_two_products_and_is_solved_exactly():
    n, alpha, damping = 300, 7.0, 0.3
    vector, gradient = normal(n), normal(n, seed=1)
    operator = LowRank(vector[:, None], torch.tensor([alpha], dtype=FLOAT))
    step = Krylov(operator.matmat, gradient, most=50, rtol=1e-14).solve(damping)
    plain = gradient / damping
    along = alpha * (vector @ plain) / (1 + alpha * (vector @ vector) / damping)
    torch.testing.assert_close(step, -plain + along * vector / damping, rtol=1e-12, atol=1e-12)
    assert operator.hvps == 2


def test_the_other_forms_solve_with_what_they_keep_of_the_matrix():
    n, shift = 15, 0.7
    matrix, gradient = psd(n, rank=n, seed=3), normal(n, seed=4)
    scale = normal(n, seed=5).abs() + 0.5
    half = scale.sqrt()
    identity = torch.eye(n, dtype=FLOAT)
    given = {"products": 50, "rtol": 0.01, "seed": 0}
    for metric, weights in ((None, torch.ones(n, dtype=FLOAT)), (scale, half)):
        here = Metric(metric)
        y = shifted("diagonal", Dense(matrix), here, gradient, rank=3, **given).solve(shift)
        expected = -gradient / (matrix.diagonal() / weights**2 + shift)
        torch.testing.assert_close(y, expected)
        values, vectors = torch.linalg.eigh(matrix)
        kept = (
            vectors[:, -3:] @ values[-3:].diag() @ vectors[:, -3:].T / torch.outer(weights, weights)
        )
        y = shifted("low-rank", Dense(matrix), here, gradient, rank=3, **given).solve(shift)
        expected = -torch.linalg.solve(kept + shift * identity, gradient)
        assert (y - expected).norm() <= 0.02 * expected.norm()


@pytest.mark.parametrize("products", [4, 50])
def test_a_metric_is_a_change_of_variables(products):
    f, _, _ = log_sum_exp(8)
    metric = psd(8, seed=2) + torch.eye(8, dtype=FLOAT)
    factor = torch.linalg.cholesky(metric)
    start = torch.ones(8, dtype=FLOAT)
    options = {"products": products, "rtol": 1e-10}
    x, one, closure = minimizer(f, start, metric=metric, **options)
    y, two, other = minimizer(
        lambda y: f(torch.linalg.solve(factor.T, y)), factor.T @ start, **options
    )
    for _ in range(8):
        one.step(closure)
        two.step(other)
        assert one.last.trials == two.last.trials
        assert one.last.step_norm == pytest.approx(two.last.step_norm, rel=1e-6)
    torch.testing.assert_close(factor.T @ x.detach(), y.detach(), rtol=1e-6, atol=1e-8)


def network(seed=0, dtype=FLOAT):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)


def data(dtype=FLOAT):
    x = normal(40, 5, seed=7)
    return x.to(dtype), (x[:, :3].sin() + 0.1 * normal(40, 3, seed=8)).to(dtype)


def trainer(model, curvature=GaussNewton, **options):
    objective, batch = Supervised(mse_loss), data(next(model.parameters()).dtype)
    optimizer = GNS(
        model.named_parameters(), lambda: curvature(model, objective, [batch]), **options
    )

    def closure():
        optimizer.zero_grad()
        loss = objective(model, batch)
        loss.backward()
        return loss

    return optimizer, closure


def flat(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


@pytest.mark.parametrize("curvature", [GaussNewton, EmpiricalFisher, Hessian])
def test_a_step_of_a_network_is_that_of_dense_algebra(curvature):
    model = network()
    optimizer, closure = trainer(model, curvature, gamma=0.1, products=30, rtol=1e-12)
    start = flat(model)
    operator = curvature(model, Supervised(mse_loss), [data()])
    matrix = operator.matmat(torch.eye(len(start), dtype=FLOAT))
    loss = closure()
    gradient = torch.cat([p.grad.reshape(-1) for p in model.parameters()])
    assert optimizer.step(closure) == loss.detach()
    damping = optimizer.last.damping
    identity = torch.eye(len(start), dtype=FLOAT)
    expected = start - torch.linalg.solve(matrix + damping * identity, gradient)
    torch.testing.assert_close(flat(model), expected, rtol=1e-7, atol=1e-9)
    assert optimizer.last.loss == closure().item()


@pytest.mark.parametrize("form", ["full", "diagonal", "low-rank"])
@pytest.mark.parametrize("curvature", [GaussNewton, EmpiricalFisher, Hessian])
def test_the_loss_never_rises_and_accepted_points_pass_the_test(curvature, form):
    model = network(1)
    optimizer, closure = trainer(model, curvature, form=form, products=10, rank=4)
    before = closure().item()
    first, moved = before, 0
    for _ in range(12):
        optimizer.step(closure)
        last = optimizer.last
        if last.status == "moved":
            gain = before - last.loss + 1e-14
            assert gain >= last.gradient_norm**2 / (8 * last.damping)
            moved += 1
        assert last.loss <= before
        before = last.loss
    assert moved >= 10
    assert before < 0.75 * first


def test_several_iterations_a_step_are_the_same_and_spare_gradients():
    one, many = network(), network()
    slow, closure = trainer(one)
    fast, other = trainer(many, max_iter=5)
    calls = 0
    for _ in range(5):
        slow.step(closure)
        calls += slow.last.gradients
    fast.step(other)
    assert torch.equal(flat(one), flat(many))
    assert fast.last.iterations == 5
    assert fast.last.gradients == calls - 4


def test_only_the_free_head_of_a_model_moves():
    model = network()
    model[0].requires_grad_(False)
    body = model[0].weight.clone()
    optimizer, closure = trainer(model, products=10, rtol=1e-6)
    for _ in range(12):
        optimizer.step(closure)
    assert torch.equal(model[0].weight, body)
    assert model[0].weight.grad is None
    features = torch.tanh(model[0](data()[0]))
    features = torch.cat([features, torch.ones(40, 1, dtype=FLOAT)], 1)
    best = torch.linalg.lstsq(features, data()[1]).solution
    assert optimizer.last.loss - mse_loss(features @ best, data()[1]).item() < 1e-10


@pytest.mark.parametrize("form", ["full", "diagonal", "low-rank"])
def test_a_saved_state_goes_on_bit_for_bit(form):
    straight, saved = network(), network()
    options = {"form": form, "products": 12, "rank": 3}
    one, closure = trainer(straight, **options)
    two, other = trainer(saved, **options)
    for _ in range(7):
        one.step(closure)
    for _ in range(3):
        two.step(other)
    file = io.BytesIO()
    torch.save([saved.state_dict(), two.state_dict()], file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    resumed = network(9)
    resumed.load_state_dict(weights)
    three, again = trainer(resumed, **options, gamma=123.0)
    three.load_state_dict(state)
    assert three.gamma == two.gamma
    for _ in range(4):
        three.step(again)
    assert torch.equal(flat(resumed), flat(straight))
    assert three.last == one.last


def test_float32_stops_at_rounding_and_gamma_does_not_collapse():
    model = network(dtype=torch.float32)
    optimizer, closure = trainer(model)
    for _ in range(40):
        optimizer.step(closure)
    assert optimizer.gamma > 1e-3
    exact, other = trainer(network())
    for _ in range(40):
        exact.step(other)
    assert optimizer.last.loss < 1.05 * exact.last.loss


@pytest.mark.parametrize(("rounding", "status"), [(10, "moved"), (0, "search_failed")])
def test_the_search_goes_on_where_the_gain_is_below_rounding(monkeypatch, rounding, status):
    monkeypatch.setattr("flatminima.optim.place.ROUNDING", rounding)
    f, a, weighted = log_sum_exp(60)
    start, metric = torch.ones(60, dtype=FLOAT), a.T @ a + 1e-6 * torch.eye(60, dtype=FLOAT)
    given = {"metric": metric, "tol": 0.0}
    _, optimizer, closure = minimizer(f, start, lambda x: Dense(weighted(x)), **given)
    for _ in range(60):
        optimizer.step(closure)
    assert optimizer.last.status == status
    assert (optimizer.last.gradient_norm < 1e-12) == (status == "moved")


def failing(**options):
    """A closure whose gradient points uphill, so that no step is accepted."""
    x = nn.Parameter(torch.ones(3, dtype=FLOAT))
    optimizer = GNS([x], lambda: Dense(torch.eye(3, dtype=FLOAT)), **options)

    def closure():
        optimizer.zero_grad()
        loss = (x**2).sum()
        (-loss).backward()
        return loss

    return x, optimizer, closure


def test_a_search_that_fails_leaves_weights_gradient_and_gamma_as_they_were():
    x, optimizer, closure = failing(max_search=7)
    optimizer.step(closure)
    last = optimizer.last
    assert (last.status, last.trials, last.gradients) == ("search_failed", 7, 8)
    assert (last.gamma, last.damping, last.iterations) == (1.0, None, 0)
    assert torch.equal(x, torch.ones(3, dtype=FLOAT))
    assert torch.equal(x.grad, torch.full((3,), -2.0, dtype=FLOAT))


def test_trials_that_are_not_finite_are_rejected():
    def f(x):
        return (x - x.log()).sum()

    x, optimizer, closure = minimizer(f, torch.full((2,), 30.0, dtype=FLOAT), gamma=1e6)
    seen = 0
    for _ in range(60):
        optimizer.step(closure)
        seen += optimizer.last.trials - optimizer.last.iterations
        assert (x > 0).all()
    assert seen
    torch.testing.assert_close(x.detach(), torch.ones(2, dtype=FLOAT))


def test_at_a_stationary_point_nothing_happens():
    x, optimizer, closure = minimizer(lambda x: (x**2).sum(), torch.zeros(2, dtype=FLOAT))
    optimizer.step(closure)
    assert (optimizer.last.status, optimizer.last.gradients) == ("converged", 1)
    assert optimizer.last.products == 0
    assert not x.any()


@pytest.mark.parametrize("products", [10, 2])
def test_negative_curvature_fails_a_trial_without_a_call_of_the_closure(products):
    def f(x):
        return (x[0] ** 4 / 4 - 4 * x[0] ** 2) + x[1:].square().sum()

    start = torch.tensor([0.5, 1.0, 2.0], dtype=FLOAT)
    _, optimizer, closure = minimizer(f, start, gamma=100.0, products=products)
    optimizer.step(closure)
    assert optimizer.last.trials > optimizer.last.gradients
    for _ in range(30):
        optimizer.step(closure)
    assert optimizer.last.loss == pytest.approx(-16)


def test_singular_curvature_is_no_trouble():
    matrix = psd(8, rank=2)

    def f(x):
        return (matrix @ x - matrix.sum(0)).square().sum()

    curvature = Dense(2 * matrix @ matrix)
    for products in (8, 5):
        start = torch.zeros(8, dtype=FLOAT)
        _, optimizer, closure = minimizer(f, start, lambda x: curvature, products=products)
        for _ in range(30):
            optimizer.step(closure)
        assert optimizer.last.loss < 1e-12


def test_a_start_that_is_not_finite_is_refused_and_nothing_moves():
    x, optimizer, closure = minimizer(lambda x: x.log().sum(), torch.zeros(2, dtype=FLOAT))
    with pytest.raises(InputError, match="before the step the loss is -inf"):
        optimizer.step(closure)
    assert not x.any()


@pytest.mark.parametrize("options", [{}, {"products": 1}, {"form": "diagonal"}])
def test_a_curvature_that_is_not_finite_is_refused_and_nothing_moves(options):
    bad = Dense(torch.full((3, 3), math.nan, dtype=FLOAT))
    start = torch.ones(3, dtype=FLOAT)
    x, optimizer, closure = minimizer(lambda x: (x**2).sum(), start, lambda x: bad, **options)
    with pytest.raises(InputError, match="curvature has a product that is not finite"):
        optimizer.step(closure)
    assert torch.equal(x, start)


def test_a_closure_that_breaks_in_a_trial_leaves_the_last_accepted_point():
    x, optimizer, whole = minimizer(rosenbrock, torch.tensor([-2.0, 2.0], dtype=FLOAT))
    whole()
    start, gradient, calls = x.detach().clone(), x.grad.clone(), []

    def closure():
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole()

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    assert torch.equal(x, start)
    assert torch.equal(x.grad, gradient)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "ful"}, "did you mean 'full'"),
        ({"gamma": 0.0}, "gamma is 0.0: give a finite number above 0"),
        ({"gamma": math.nan}, "gamma is nan"),
        ({"gamma_range": (1.0, 0.5)}, r"gamma_range\[1\] is 0.5"),
        ({"gamma_range": (1.0,)}, "give \\(least, most\\)"),
        ({"tol": -1.0}, "tol is -1.0"),
        ({"rtol": 1.0}, "rtol is 1.0: give a number below 1"),
        ({"products": 0}, "products is 0: give a whole number of 1 or above"),
        ({"max_search": 2.5}, "max_search is 2.5"),
        ({"max_iter": True}, "max_iter is True"),
        ({"metric": torch.ones(3)}, "metric is for 3 parameters and there are 2"),
        ({"metric": torch.zeros(2)}, "not above 0"),
        ({"metric": -torch.eye(2)}, "not positive definite"),
        ({"metric": torch.tensor([[1.0, 2.0], [0.0, 1.0]])}, "not a symmetric matrix"),
        ({"metric": torch.full((2,), math.inf)}, "give finite"),
        ({"metric": torch.eye(2), "form": "diagonal"}, "no use for a metric"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        GNS([nn.Parameter(torch.ones(2))], lambda: Dense(torch.eye(2)), **options)


def test_parameters_that_cannot_be_are_refused():
    def make(*parameters):
        return GNS(list(parameters), lambda: Dense(torch.eye(2)))

    with pytest.raises(InputError, match="requires a gradient"):
        make(nn.Parameter(torch.ones(2), requires_grad=False))
    with pytest.raises(InputError, match="float32 or float64"):
        make(nn.Parameter(torch.ones(2, dtype=torch.bfloat16)))
    with pytest.raises(InputError, match="several dtypes"):
        make(nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, dtype=FLOAT)))
    with pytest.raises(InputError, match="give one group"):
        make({"params": [nn.Parameter(torch.ones(1))]}, {"params": [nn.Parameter(torch.ones(1))]})
    with pytest.raises(InputError, match="curvature is a Dense: give a function"):
        GNS([nn.Parameter(torch.ones(2))], Dense(torch.eye(2)))


def test_a_curvature_of_other_parameters_is_refused():
    model = network()
    objective, batch = Supervised(mse_loss), data()
    own = list(model.named_parameters())

    def step(parameters, **of):
        optimizer = GNS(parameters, lambda: GaussNewton(model, objective, [batch], **of))

        def closure():
            objective(model, batch).backward()
            return 1.0

        optimizer.step(closure)

    with pytest.raises(InputError, match="in the same order"):
        step([p for _, p in own], params="0.*")
    with pytest.raises(InputError, match="in the same order"):
        step([p for _, p in reversed(own)])
    with pytest.raises(InputError, match="and the optimizer of a, b, c, d"):
        step([(name, p) for name, (_, p) in zip("abcd", own, strict=True)])
    optimizer = GNS(own, lambda: None)
    with pytest.raises(InputError, match="gave a NoneType: return an operator"):
        optimizer.step(lambda: objective(model, batch).backward() or 1.0)


def test_a_closure_that_cannot_be_is_refused():
    x, optimizer, _ = minimizer(rosenbrock, torch.ones(2, dtype=FLOAT))
    with pytest.raises(InputError, match="calls a closure several times"):
        optimizer.step()
    with pytest.raises(InputError, match="left no gradient"):
        optimizer.step(lambda: rosenbrock(x))
    with pytest.raises(InputError, match="returned NoneType: end it with"):
        optimizer.step(lambda: None)
    with pytest.raises(InputError, match="a tensor of shape"):
        optimizer.step(lambda: x)


@pytest.mark.parametrize("curvature", [GaussNewton, EmpiricalFisher, Hessian])
def test_sparse_gradients_and_unused_weights_are_no_trouble(curvature):
    words, classes = torch.randint(6, (20,)), torch.randint(3, (20,))
    objective, ends = Supervised(), []
    for sparse in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(6, 4, sparse=sparse), nn.Linear(4, 3)).double()
        model.add_module("2", nn.Identity())
        model[2].unused = nn.Parameter(torch.ones(2).double())

        def matrix(model=model):
            return curvature(model, objective, [(words, classes)])

        optimizer = GNS(model.named_parameters(), matrix, max_iter=5)

        def closure(model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss = objective(model, (words, classes))
            loss.backward()
            return loss

        before = optimizer.step(closure).item()
        assert optimizer.last.loss < before
        assert torch.equal(model[2].unused, torch.ones(2).double())
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(*ends, rtol=1e-8, atol=1e-10)


def test_data_parallel_asks_for_processes():
    with pytest.raises(InputError, match="there is no process group"):
        GNS([nn.Parameter(torch.ones(2))], lambda: None, data_parallel=True)


def test_its_gradients_cannot_be_perturbed():
    optimizer, _ = trainer(network())
    with pytest.raises(InputError, match="GNS calls its closure itself"):
        NSO(optimizer, sigma=0.1)


def test_the_curvature_of_a_penalty_is_added_as_an_operator():
    model, weight = nn.Linear(5, 3).double(), 0.1
    objective, batch = Supervised(mse_loss), data()

    def curvature():
        return Shift(GaussNewton(model, objective, [batch]), 2 * weight)

    optimizer = GNS(model.named_parameters(), curvature)

    def closure():
        optimizer.zero_grad()
        loss = objective(model, batch) + weight * sum(p.square().sum() for p in model.parameters())
        loss.backward()
        return loss

    for _ in range(15):
        optimizer.step(closure)
    assert optimizer.last.gradient_norm < 1e-7
    assert optimizer.last.status == "converged"


@pytest.mark.parametrize("room", ["optim", "measure", "perturb"])
def test_each_room_can_be_imported_first(room):
    done = subprocess.run([sys.executable, "-c", f"import flatminima.{room}"], capture_output=True)
    assert done.returncode == 0, done.stderr


def test_it_has_a_card():
    (card,) = [card for card in CARDS if "gns" in card.aliases]
    assert card.slot == "optimizer"
