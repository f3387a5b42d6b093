"""What the bounds of a hypergradient promise, against closed forms and dense derivatives."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flatminima.errors import InputError
from flatminima.tuning.maid import (
    Regularity,
    inexact_hypergradient,
)
from flatminima.tuning.maid.lower import solve_lower
from flatminima.tuning.maid.problem import Bilevel

from .maid_cases import DOUBLE, Ridge, dense, random, softmax

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
