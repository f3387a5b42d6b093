"""MAID against closed forms, dense derivatives, and what its bounds promise."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flatminima.errors import InputError
from flatminima.tuning.maid import (
    MAID,
    Estimated,
    Regularity,
    Settings,
    inexact_hypergradient,
    minimize_bilevel,
)
from flatminima.tuning.maid.conjugate import conjugate_gradients
from flatminima.tuning.maid.lower import solve_lower
from flatminima.tuning.maid.problem import Bilevel
from flatminima.tuning.maid.softmax import SoftmaxRegression

DOUBLE = torch.float64


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


class Ridge:
    """One ridge exponent for each feature; the lower problem has a closed form."""

    n = 6

    def __init__(self, seed=0):
        truth = random(self.n, seed=seed + 9) * torch.tensor([1, 1, 1, 0, 0, 0], dtype=DOUBLE)
        self.a, self.v = random(12, self.n, seed=seed), random(20, self.n, seed=seed + 1)
        self.b = self.a @ truth + 0.7 * random(12, seed=seed + 2)
        self.w = self.v @ truth + 0.7 * random(20, seed=seed + 3)
        self.data = float(torch.linalg.eigvalsh(self.a.T @ self.a / 12)[0])
        self.stiff = float(torch.linalg.eigvalsh(self.v.T @ self.v / 20)[-1])
        self.x, self.theta = torch.zeros(self.n, dtype=DOUBLE), torch.full((self.n,), -3.0).double()

    def lower(self, x, theta):
        return (self.a @ x - self.b).square().sum() / 24 + 0.5 * (theta.exp() * x * x).sum()

    def upper(self, x, theta):
        return (self.v @ x - self.w).square().sum() / 40

    def regularity(self, x, theta):
        weights = theta.exp()
        return Regularity(
            strong=float(weights.min()) + self.data,
            upper=self.stiff,
            cross=float(weights.max()),
            coupling=float((weights * x).abs().max()),
            convex=True,
        )

    def solution(self, theta):
        return torch.linalg.solve(
            self.a.T @ self.a / 12 + torch.diag(theta.exp()), self.a.T @ self.b / 12
        )

    def exact(self, theta):
        """f and its gradient, by autograd through the solve."""
        theta = theta.detach().requires_grad_()
        f = self.upper(self.solution(theta), theta)
        return f.item(), torch.autograd.grad(f, theta)[0]


def softmax():
    """A small softmax regression with a knob for each feature, the biases and the distance."""
    a, v = random(15, 3, seed=3), random(10, 3, seed=4)
    y, w = torch.arange(15) % 3, torch.arange(10) % 3
    groups = torch.arange(4).expand(3, 4)
    start = 0.3 * random(3, 3, seed=5)
    found = SoftmaxRegression((a, y), (v, w), groups=groups, start=start)
    return found, torch.zeros(3, 4, dtype=DOUBLE)


def dense(problem, x, theta):
    """x, f and grad f by Newton steps and dense derivatives."""
    shape, n = x.shape, x.numel()

    def slope(x, theta):
        x = x if x.requires_grad else x.detach().requires_grad_()
        return torch.autograd.grad(problem.lower(x, theta), x, create_graph=True)[0].flatten()

    for _ in range(60):
        hessian = torch.autograd.functional.hessian(lambda x: problem.lower(x, theta), x)
        x = x - torch.linalg.solve(hessian.reshape(n, n), slope(x, theta).detach()).view(shape)
    x = x.detach().requires_grad_()
    hessian = torch.autograd.functional.hessian(lambda x: problem.lower(x, theta), x).reshape(n, n)
    j = torch.autograd.functional.jacobian(lambda t: slope(x, t), theta).reshape(n, -1)
    f = problem.upper(x, theta)
    g = torch.autograd.grad(f, x)[0].flatten()
    return x.detach(), f.item(), (-j.T @ torch.linalg.solve(hessian, g)).view(theta.shape)


exponents = st.integers(-12, 0).map(lambda k: 10.0 ** (k / 2))


@given(st.integers(0, 50), exponents)
@settings(max_examples=30, deadline=None)
def test_a_small_lower_gradient_means_a_near_solution(seed, accuracy):
    ridge = Ridge(seed)
    strong = ridge.regularity(ridge.x, ridge.theta).strong
    found = solve_lower(
        Bilevel(ridge.upper, ridge.lower),
        random(6, seed=seed),
        ridge.theta,
        accuracy,
        strong=strong,
    )
    assert found.size <= accuracy * strong
    away = torch.linalg.vector_norm(found.x - ridge.solution(ridge.theta))
    assert away <= accuracy * (1 + 1e-9)


@given(st.integers(0, 50), exponents, exponents, st.floats(-4, 1))
@settings(max_examples=40, deadline=None)
def test_the_error_of_a_hypergradient_is_within_both_bounds(seed, accuracy, residual, level):
    ridge = Ridge(seed)
    theta = level + 0.5 * random(6, seed=seed + 7)
    found = inexact_hypergradient(
        ridge.upper,
        ridge.lower,
        random(6, seed=seed),
        theta,
        ridge.regularity,
        accuracy=accuracy,
        residual=residual,
    )
    f, exact = ridge.exact(theta)
    error = torch.linalg.vector_norm(found.value - exact).item()
    assert error <= found.bound * (1 + 1e-9) + 1e-12
    assert found.bound <= found.paper_bound
    assert found.low - 1e-12 <= f <= found.high + 1e-12
    assert found.error <= accuracy
    assert found.residual <= residual


@given(exponents, exponents, st.floats(-4, 0), st.integers(0, 20))
@settings(max_examples=10, deadline=None)
def test_the_bounds_hold_where_the_lower_problem_is_not_quadratic(accuracy, residual, level, seed):
    problem, x = softmax()
    theta = level + 0.5 * random(problem.knobs, seed=seed)
    found = inexact_hypergradient(
        problem.upper,
        problem.lower,
        random(*problem.shape, seed=seed),
        theta,
        problem.regularity,
        accuracy=accuracy,
        residual=residual,
    )
    _, f, exact = dense(problem, x, theta)
    error = torch.linalg.vector_norm(found.value - exact).item()
    assert error <= found.bound * (1 + 1e-9) + 1e-12
    assert found.bound <= found.paper_bound
    assert found.low - 1e-12 <= f <= found.high + 1e-12


def test_an_exact_hypergradient_is_autograd_through_the_solution():
    ridge = Ridge()
    found = inexact_hypergradient(
        ridge.upper,
        ridge.lower,
        ridge.x,
        ridge.theta,
        ridge.regularity,
        accuracy=1e-12,
        residual=1e-12,
    )
    torch.testing.assert_close(found.value, ridge.exact(ridge.theta)[1], rtol=1e-8, atol=1e-10)


def test_a_knob_of_the_upper_level_adds_its_own_gradient():
    ridge = Ridge()

    def upper(x, theta):
        return ridge.upper(x, theta) + (theta[0] * x).sum() + theta.sin().sum()

    theta = ridge.theta.clone().requires_grad_()
    (exact,) = torch.autograd.grad(upper(ridge.solution(theta), theta), theta)
    found = inexact_hypergradient(
        upper, ridge.lower, ridge.x, ridge.theta, ridge.regularity, accuracy=1e-11, residual=1e-11
    )
    torch.testing.assert_close(found.value, exact, rtol=1e-8, atol=1e-9)


def test_the_constants_of_softmax_regression_are_no_less_than_what_differences_show():
    problem, _ = softmax()
    for seed in range(20):
        theta = random(problem.knobs, seed=seed) - 1
        x, y = random(3, 4, seed=seed + 100), random(3, 4, seed=seed + 200)
        y = x + 10.0 ** -(seed % 4) * y
        known = problem.regularity(x, theta)
        level = Bilevel(problem.upper, problem.lower)
        apart = float(torch.linalg.vector_norm(y - x))
        here, there = (_dense(level, z, theta) for z in (x, y))
        assert torch.linalg.eigvalsh(here["hessian"])[0] >= known.strong * (1 - 1e-9)
        assert torch.linalg.matrix_norm(here["cross"], 2) <= known.coupling * (1 + 1e-9)
        moved = {k: torch.linalg.matrix_norm(there[k] - here[k], 2) / apart for k in here}
        assert moved["hessian"] <= known.hessian
        assert moved["cross"] <= known.cross * (1 + 1e-9)
        slopes = [level.upper_at(z, theta).gradient for z in (x, y)]
        assert torch.linalg.vector_norm(slopes[1] - slopes[0]) <= known.upper * apart


def _dense(level, x, theta):
    """H and J from products with unit vectors."""
    point = level.at(x, theta)
    units = torch.eye(x.numel(), dtype=DOUBLE).view(-1, *x.shape)
    return {
        "hessian": torch.stack([point.product(u).flatten() for u in units], 1),
        "cross": torch.stack([point.cross(u).flatten() for u in units]),
    }


def test_products_are_those_of_the_dense_derivatives():
    problem, _ = softmax()
    x, theta = random(3, 4, seed=1), random(problem.knobs, seed=2)
    level = Bilevel(problem.upper, problem.lower)
    found = _dense(level, x, theta)
    hessian = torch.autograd.functional.hessian(lambda x: problem.lower(x, theta), x)
    torch.testing.assert_close(found["hessian"], hessian.reshape(12, 12))
    (_, both), _ = torch.autograd.functional.hessian(problem.lower, (x, theta))
    torch.testing.assert_close(found["cross"], both.reshape(12, -1))
    point = level.at(x, theta)
    columns = [point.along(u).flatten() for u in torch.eye(len(theta), dtype=DOUBLE)]
    torch.testing.assert_close(torch.stack(columns, 1), found["cross"])
    assert level.products == 1 + 24 + 1 + len(theta)


@pytest.mark.parametrize("start", [(0.1, 0.1), (1e-3, 10.0), (1e-5, 0.1), (1.0, 1e6)])
def test_each_step_lowers_the_true_upper_level_by_what_is_reported(start):
    ridge = Ridge()
    accuracy, length = start
    how = Settings(accuracy=accuracy, residual=accuracy, step_size=length)
    maid = MAID(
        ridge.upper, ridge.lower, ridge.x, ridge.theta, regularity=ridge.regularity, settings=how
    )
    before, _ = ridge.exact(maid.theta)
    for _ in range(40):
        step = maid.step()
        after, _ = ridge.exact(maid.theta)
        assert step.decrease >= how.decrease * step.length * step.gradient**2 * (1 - 1e-9)
        assert before - after >= step.decrease - 1e-12
        assert step.low - 1e-12 <= before
        assert after <= step.high + 1e-12
        before = after
    assert before < ridge.exact(ridge.theta)[0]


def test_all_starts_end_at_the_same_upper_level():
    ridge, ends = Ridge(), []
    for accuracy in (1e-1, 1e-3, 1e-5):
        for length in (0.1, 10.0):
            found = minimize_bilevel(
                ridge.upper,
                ridge.lower,
                ridge.x,
                ridge.theta,
                regularity=ridge.regularity,
                settings=Settings(accuracy=accuracy, residual=accuracy, step_size=length),
                products=3000,
                steps=1000,
            )
            ends.append(found.upper)
            assert found.certified
            assert found.low <= found.upper <= found.high
    assert max(ends) / min(ends) < 1.005


def test_the_tolerance_certifies_a_small_true_gradient():
    ridge = Ridge()

    def wide(theta):
        return theta.expand(6)

    found = minimize_bilevel(
        ridge.upper,
        lambda x, theta: ridge.lower(x, wide(theta)),
        ridge.x,
        torch.tensor([-3.0], dtype=DOUBLE),
        regularity=lambda x, theta: Regularity(
            strong=float(theta.exp()) + ridge.data,
            upper=ridge.stiff,
            cross=float(theta.exp()),
            convex=True,
        ),
        settings=Settings(tolerance=1e-4),
    )
    assert found.stopped == "tolerance"
    at = found.theta.requires_grad_()
    f = ridge.upper(ridge.solution(wide(at)), at)
    assert torch.autograd.grad(f, at)[0].abs() <= 1e-4


def test_at_a_minimum_it_stops_instead_of_tightening_for_ever():
    ridge = Ridge()
    centre = ridge.solution(ridge.theta)
    found = minimize_bilevel(
        lambda x, theta: 0.5 * (x - centre).square().sum(),
        ridge.lower,
        ridge.x,
        ridge.theta,
        regularity=ridge.regularity,
    )
    assert found.stopped in ("stationary", "precision")
    assert found.upper < 1e-15


@pytest.mark.parametrize("measured", [False, True], ids=["given", "estimated"])
def test_a_saved_and_loaded_descent_equals_one_that_never_stopped(tmp_path, measured):
    def new():
        ridge = Ridge()
        regularity = Estimated(ridge.upper, ridge.lower) if measured else ridge.regularity
        return MAID(ridge.upper, ridge.lower, ridge.x, ridge.theta, regularity=regularity)

    whole, parts = new(), new()
    for k in range(12):
        whole.step()
        parts.step()
        if k % 4 == 1:
            torch.save(parts.state_dict(), tmp_path / "state.pt")
            parts.result()
            parts = new()
            parts.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    one, two = whole.result(), parts.result()
    assert torch.equal(one.theta, two.theta)
    assert torch.equal(one.x, two.x)
    assert one.to_dict() == two.to_dict()
    assert whole.history == parts.history


def test_a_state_of_another_problem_is_refused():
    ridge = Ridge()
    maid = MAID(ridge.upper, ridge.lower, ridge.x, ridge.theta, regularity=ridge.regularity)
    state = maid.state_dict() | {"theta": torch.zeros(3, dtype=DOUBLE)}
    with pytest.raises(InputError, match="theta is"):
        maid.load_state_dict(state)


def test_estimated_constants_are_near_the_true_ones_and_certify_nothing():
    ridge = Ridge()
    x = ridge.solution(ridge.theta)
    found, known = (
        rule(x, ridge.theta) for rule in (Estimated(ridge.upper, ridge.lower), ridge.regularity)
    )
    assert known.strong / 2.1 <= found.strong <= known.strong
    assert known.coupling <= found.coupling <= 2.1 * known.coupling
    assert known.upper <= found.upper <= 2.1 * known.upper
    assert 0.1 * known.cross <= found.cross <= 2.1 * known.cross
    assert found.hessian < 1e-9
    result = minimize_bilevel(ridge.upper, ridge.lower, ridge.x, ridge.theta, products=3000)
    assert not result.certified
    assert "not certified" in str(result)
    assert ridge.exact(result.theta)[0] < ridge.exact(ridge.theta)[0]


def test_a_run_leaves_the_global_random_state_alone_and_repeats_itself():
    ridge = Ridge()
    state = torch.get_rng_state()
    runs = [
        minimize_bilevel(ridge.upper, ridge.lower, ridge.x, ridge.theta, steps=5) for _ in range(2)
    ]
    assert torch.equal(state, torch.get_rng_state())
    assert runs[0].to_dict() == runs[1].to_dict()


def test_float32_descends_too():
    ridge = Ridge()
    ridge.a, ridge.b, ridge.v, ridge.w = (t.float() for t in (ridge.a, ridge.b, ridge.v, ridge.w))
    found = minimize_bilevel(
        ridge.upper,
        ridge.lower,
        ridge.x.float(),
        ridge.theta.float(),
        regularity=ridge.regularity,
        steps=10,
    )
    assert found.theta.dtype == torch.float32
    assert found.upper < found.start


def test_the_result_is_plain_numbers_and_can_be_drawn():
    pytest.importorskip("matplotlib").use("svg")
    ridge = Ridge()
    found = minimize_bilevel(
        ridge.upper, ridge.lower, ridge.x, ridge.theta, regularity=ridge.regularity, steps=5
    )
    kept = json.loads(json.dumps(found.to_dict()))
    assert len(kept["history"]) == 5
    assert all(step["decrease"] > 0 for step in kept["history"])
    assert kept["stopped"] == "steps"
    assert "5 steps" in str(found)
    assert found.plot().get_xlabel() == "products"


@pytest.mark.parametrize("n", [1, 7])
@pytest.mark.parametrize("tolerance", [1e-2, 1e-10])
def test_conjugate_gradients_solve_as_a_dense_solver_does(n, tolerance):
    root = random(n, n)
    a, b = root @ root.T + torch.eye(n, dtype=DOUBLE), random(n, seed=5)
    for start in (None, random(n, seed=6)):
        q, left = conjugate_gradients(lambda v: a @ v, b, start, tolerance, least=1.0)
        assert left <= tolerance
        assert torch.linalg.vector_norm(a @ q - b).item() == pytest.approx(left, abs=1e-13)
        exact = torch.linalg.solve(a, b)
        assert torch.linalg.vector_norm(q - exact) <= tolerance
    calls = []
    q, _ = conjugate_gradients(calls.append, 1e-3 * b, None, 1.0)
    assert not q.any()
    assert not calls


def test_a_tolerance_below_rounding_ends_with_the_true_residual():
    turn = torch.linalg.qr(random(12, 12))[0]
    a = turn @ torch.diag(torch.logspace(-3, 3, 12, dtype=DOUBLE)) @ turn.T
    a, b = (a + a.T) / 2, random(12)
    q, left = conjugate_gradients(lambda v: a @ v, b, None, 1e-30, least=1e-3, most=5000)
    assert left == pytest.approx(torch.linalg.vector_norm(a @ q - b).item())
    assert left > 1e-30


@pytest.mark.parametrize(
    ("eigenvalues", "least", "words"),
    [
        ([1.0, -0.5], 0.1, "not strongly convex.*negative"),
        ([1.0, 0.0], 0.1, "not strongly convex.*singular"),
        ([1.0, 0.01], 0.1, "less convex than it is said"),
    ],
)
def test_curvature_that_belies_the_modulus_is_found_and_explained(eigenvalues, least, words):
    a = torch.tensor(eigenvalues, dtype=DOUBLE)
    x = torch.ones(2, dtype=DOUBLE)

    def lower(x, theta):
        return 0.5 * (a * x * x).sum() - (theta * x).sum()

    def constants(x, theta):
        return Regularity(strong=least, upper=1.0, cross=0.0, coupling=1.0)

    def upper(x, theta):
        return x.square().sum()

    with pytest.raises(InputError, match=words):
        MAID(upper, lower, x, x, regularity=constants)
    with pytest.raises(InputError, match=words):
        inexact_hypergradient(upper, lower, x, x, constants, accuracy=1e-9, residual=1e-9)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"theta": torch.ones(6, dtype=torch.int64)}, "whole numbers and choices are no knobs"),
        ({"theta": [1.0]}, "theta is of type list"),
        ({"theta": torch.ones(6)}, "both of one type"),
        ({"x": torch.full((6,), float("nan")).double()}, "x is empty or not finite"),
        ({"upper": lambda x, theta: x}, "upper returned"),
        ({"upper": lambda x, theta: theta.sum()}, "upper does not depend on x"),
        ({"upper": lambda x, theta: (x - 1e3).sqrt().sum()}, "upper level is nan"),
        ({"lower": lambda x, theta: (x * 0 + 1).sum().item()}, "lower returned"),
        ({"lower": lambda x, theta: theta.sum()}, "does not depend on x"),
        ({"lower": lambda x, theta: (x * theta).sum()}, "not strongly convex"),
        ({"lower": lambda x, theta: (x * x).sum()}, "no knob reaches"),
        ({"lower": lambda x, theta: (x * x).sum() * theta.log().sum()}, "not finite at the start"),
        ({"steps": 0}, "steps is 0"),
    ],
)
def test_what_cannot_be_descended_is_refused(change, words):
    ridge = Ridge()
    given = {"upper": ridge.upper, "lower": ridge.lower, "x": ridge.x, "theta": ridge.theta}
    given |= {"regularity": ridge.regularity, **change}
    if given["x"] is not ridge.x:
        given["theta"] = ridge.theta
    with pytest.raises(InputError, match=words):
        minimize_bilevel(given.pop("upper"), given.pop("lower"), **given)


@pytest.mark.parametrize("stiffness", [torch.round, torch.ceil, lambda t: torch.tensor(t.item())])
def test_a_knob_that_acts_by_steps_is_named(stiffness):
    ridge = Ridge()

    def lower(x, theta):
        return ridge.lower(x, theta[:6]) + stiffness(theta[6]) * 0.5 * x.square().sum()

    theta = torch.cat([ridge.theta, torch.tensor([2.3], dtype=DOUBLE)])
    with pytest.raises(InputError, match=r"theta\[6\] is not differentiable"):
        minimize_bilevel(
            ridge.upper,
            lower,
            ridge.x,
            theta,
            regularity=lambda x, theta: ridge.regularity(x, theta[:6]),
        )


def test_a_knob_without_effect_stays_where_it_was():
    ridge = Ridge()
    theta = torch.cat([ridge.theta, torch.tensor([2.3], dtype=DOUBLE)])
    found = minimize_bilevel(
        ridge.upper,
        lambda x, theta: ridge.lower(x, theta[:6]),
        ridge.x,
        theta,
        regularity=lambda x, theta: ridge.regularity(x, theta[:6]),
        steps=5,
    )
    assert found.theta[6] == 2.3
    assert found.upper < found.start


def test_a_hypergradient_that_is_not_finite_names_the_knob():
    ridge = Ridge()

    def lower(x, theta):
        return ridge.lower(x, theta) + (theta[2] + 3).abs().sqrt() * x.sum()

    with pytest.raises(InputError, match=r"not finite along theta\[2\]"):
        minimize_bilevel(ridge.upper, lower, ridge.x, ridge.theta, regularity=ridge.regularity)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Settings(accuracy=0), "accuracy is 0"),
        (lambda: Settings(shrink=1.0), "shrink is 1.0"),
        (lambda: Settings(grow=0.9), "grow is 0.9"),
        (lambda: Settings(decrease=0.6), "decrease < descent"),
        (lambda: Settings(inner="many"), "inner is 'many'"),
        (lambda: Regularity(strong=0.0, upper=1, cross=1), "strongly convex"),
        (lambda: Regularity(strong=1.0, upper=float("inf"), cross=1), "constant upper"),
        (lambda: Regularity(strong=1.0, upper=1, cross=-1), "constant cross"),
    ],
)
def test_settings_and_constants_out_of_range_are_refused(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_a_solve_that_takes_too_long_ends_the_run_and_says_so():
    ridge = Ridge()
    found = minimize_bilevel(
        ridge.upper,
        ridge.lower,
        ridge.x,
        ridge.theta,
        regularity=ridge.regularity,
        settings=Settings(inner=1, accuracy=1e-9, residual=1e-9),
    )
    assert found.stopped == "unsolved"
    assert not found.history


def test_the_norm_of_j_is_bounded_by_columns_where_none_is_given():
    ridge = Ridge()

    def without(x, theta):
        return Regularity(strong=0.01, upper=ridge.stiff, cross=1.0)

    x = random(6)
    found = inexact_hypergradient(
        ridge.upper, ridge.lower, x, ridge.theta, without, accuracy=1e-9, residual=1e-9
    )
    j = float((ridge.theta.exp() * found.x).square().sum().sqrt())
    slope = float(
        torch.linalg.vector_norm(
            Bilevel(ridge.upper, ridge.lower).upper_at(found.x, ridge.theta).gradient
        )
    )
    expected = without(x, x).paper_bound(slope, j, found.error, found.residual)
    assert found.paper_bound == pytest.approx(expected, rel=1e-9)
    many = torch.zeros(300, dtype=DOUBLE)
    with pytest.raises(InputError, match="300 knobs"):
        inexact_hypergradient(
            ridge.upper,
            lambda x, theta: ridge.lower(x, theta[:6]),
            x,
            many,
            without,
            accuracy=0.1,
            residual=0.1,
        )
