"""L1, bounds, and how soon what they pin is known."""

import itertools
import math

import numpy as np
import pytest
from block_problems import data
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import lsq_linear, minimize_scalar
from sklearn.linear_model import Lasso

from flatminima.errors import InputError
from flatminima.optim.block_coordinate import (
    GreedyBCD,
    LeastSquares,
    Logistic,
    Quadratic,
    Separable,
    Softmax,
    identification_steps,
)

UPDATES = ("lb", "la", "tmp")


@settings(max_examples=60, deadline=None)
@given(
    x=st.floats(-2, 2),
    g=st.floats(-3, 3),
    curvature=st.floats(0.1, 5),
    l1=st.sampled_from([0.0, 0.7]),
    bounds=st.sampled_from([None, (0, None), (-0.5, 0.3), (0.2, 0.2), (None, -0.1)]),
)
def test_the_proximal_step_minimizes_its_model(x, g, curvature, l1, bounds):
    added = Separable(1, np.float64, l1, bounds)
    at = added.project(np.array([x]))
    steps = added.step(at, np.array([g]), np.array([curvature]))

    def model(d):
        return g * d + curvature * d * d / 2 + l1 * abs(at[0] + d)

    low, high = max(added.lower[0], -50) - at[0], min(added.upper[0], 50) - at[0]
    assert low - 1e-12 <= steps[0] <= high + 1e-12
    if high - low < 1e-9:
        return
    slow = minimize_scalar(model, bounds=(low, high), method="bounded", options={"xatol": 1e-10})
    assert model(steps[0]) <= slow.fun + 1e-8
    fall = added.decrease(at, np.array([g]), np.array([curvature]))[0]
    assert fall == pytest.approx(model(0) - model(steps[0]), abs=1e-12)


@pytest.mark.parametrize("how", ["sort", None])
@pytest.mark.parametrize("rule", ["random", "cyclic", "gs", "gsl", "gsd"])
@pytest.mark.parametrize("update", UPDATES)
def test_the_lasso_is_that_of_another_solver(update, rule, how):
    A, y, _ = data(20, 30)
    solver = GreedyBCD(LeastSquares(A, y), 6, selection=rule, partition=how, update=update, l1=4.0)
    found = solver.run(6000, 1e-8)
    assert found.converged
    other = Lasso(alpha=4.0 / 20, fit_intercept=False, tol=1e-14, max_iter=100_000).fit(A, y)
    np.testing.assert_allclose(found.x, other.coef_, atol=1e-6)
    assert np.array_equal(found.x != 0, other.coef_ != 0)


@pytest.mark.parametrize("update", UPDATES)
def test_bounds_are_those_of_another_solver_and_hold_all_along(update):
    A, y, rng = data()
    low, high = -rng.uniform(0, 0.1, 12), rng.uniform(0, 0.1, 12)
    solver = GreedyBCD(LeastSquares(A, y), 4, update=update, bounds=(low, high), start=low + high)
    for _ in range(50):
        solver.step()
        assert (low <= solver.x).all()
        assert (solver.x <= high).all()
    found = solver.run(5000, 1e-10)
    other = lsq_linear(A, y, (low, high), method="bvls", tol=1e-14)
    np.testing.assert_allclose(found.x, other.x, atol=1e-7)


def test_a_penalty_with_bounds_meets_the_conditions_of_a_solution():
    A, y, rng = data(40, 15)
    labels = rng.integers(0, 3, 40)
    for objective in (LeastSquares(A, y), Logistic(A, np.sign(y)), Softmax(A, labels)):
        for update in UPDATES:
            l1 = np.linspace(0, 3, objective.size)
            solver = GreedyBCD(
                objective, 6, selection="gsd", partition=None, update=update, l1=l1,
                bounds=(-0.2, None),
            )  # fmt: skip
            found = solver.run(20_000, 1e-7)
            assert found.converged
            x, g = found.x.ravel(), solver.gradient()
            slope = np.where(x == 0, np.clip(-g, -l1, l1), l1 * np.sign(x))
            held = x == -0.2
            assert np.abs((g + slope)[~held]).max() < 1e-6
            assert ((g - l1)[held] > -1e-6).all()


@pytest.mark.parametrize("update", UPDATES)
def test_no_step_climbs(update):
    A, y, _ = data(40, 15)
    solver = GreedyBCD(
        Logistic(A, np.sign(y)), 5, selection="gsd", partition=None, update=update, l1=1.0
    )
    values = solver.run(100, record=True).values
    assert all(b <= a + 1e-11 for a, b in itertools.pairwise(values))


def test_two_metrics_finish_a_quadratic_once_the_support_fits_the_block():
    A, y, _ = data(60, 40)
    objective = LeastSquares(A, y)
    steps = {
        update: GreedyBCD(
            objective, 40, selection="gsd", partition=None, update=update, bounds=(0, None)
        ).run(5000, 1e-7).steps
        for update in ("tmp", "lb")
    }  # fmt: skip
    assert steps["tmp"] <= 15
    assert steps["tmp"] * 5 < steps["lb"]


def test_two_metrics_shrink_columns_that_are_repeated():
    A, y, _ = data()
    twice = np.concatenate([A, A], axis=1)
    solver = GreedyBCD(LeastSquares(twice, y), 24, update="tmp", partition=None, l1=1.0)
    assert solver.run(500, 1e-7).converged


def test_the_pinned_variables_are_known_within_the_bound():
    A, y, _ = data(40, 10)
    objective = LeastSquares(A, y, l2=20.0)
    everything = objective.bound(np.arange(10))
    eigenvalues = np.linalg.eigvalsh(everything)
    solver = GreedyBCD(objective, 10, update="lb", l1=3.0)
    start = solver.value()
    best = GreedyBCD(objective, 10, update="tmp", l1=3.0).run(200, 1e-11)
    found = solver.run(3000, 1e-10)
    margin = solver.nondegeneracy_margin()
    assert margin > 0
    assert 0 < (found.x == 0).sum() < 10
    most = identification_steps(eigenvalues[-1], eigenvalues[0], margin, start - best.value)
    assert 0 < found.identified_at <= most
    assert np.array_equal(found.x == 0, best.x == 0)


def test_the_margin_of_a_known_solution():
    # min (x - c)^2 / 2 + |x|: pinned where |c| <= 1, with the margin 1 - |c|.
    c = np.array([0.25, -0.5, 3.0])
    solver = GreedyBCD(Quadratic(np.eye(3), c), 3, update="lb", l1=1.0)
    solver.run(1)
    np.testing.assert_allclose(solver.x, [0, 0, 2])
    assert solver.nondegeneracy_margin() == pytest.approx(0.5)
    bounded = GreedyBCD(Quadratic(np.eye(3), c), 3, update="lb", bounds=(0, 2.5))
    bounded.run(1)
    np.testing.assert_allclose(bounded.x, [0.25, 0, 2.5])
    assert bounded.nondegeneracy_margin() == pytest.approx(0.5)
    free = GreedyBCD(Quadratic(np.eye(3), c), 3)
    assert free.nondegeneracy_margin() == math.inf


def test_columns_of_zeros_are_shrunk_to_zero():
    A, y, _ = data()
    A[:, 3] = 0
    for update in UPDATES:
        solver = GreedyBCD(LeastSquares(A, y), 4, update=update, l1=0.5, start=np.ones(12))
        assert solver.run(3000, 1e-7).x[3] == 0


BAD = {
    "infeasible": ({"bounds": (1, 0)}, "infeasible: variable 0 must be at least 1 and at most 0"),
    "one infeasible": ({"bounds": (np.zeros(12), -np.eye(12)[5])}, "variable 5"),
    "nan": ({"bounds": (np.nan, None)}, "without nan"),
    "shape": ({"bounds": (np.zeros(3), None)}, "12 variables"),
    "three": ({"bounds": (0, 1, 2)}, "lower, upper"),
    "nothing left": ({"bounds": (np.inf, None)}, "no value is left"),
    "penalty": ({"l1": -1}, "l1 must be"),
    "penalty nan": ({"l1": np.nan}, "nan"),
    "update": ({"l1": 1, "update": "hb"}, "use 'tmp' or 'lb'"),
    "newton": ({"bounds": (0, None), "update": "newton"}, "use 'tmp' or 'lb'"),
    "gsq": ({"l1": 1, "selection": "gsq"}, "use 'gsd' or 'gsl'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_constraints_say_what_is_wrong(case):
    options, words = BAD[case]
    A, y, _ = data()
    with pytest.raises(InputError, match=words):
        GreedyBCD(LeastSquares(A, y), 3, **{"update": "lb", **options})


def test_the_bound_on_steps_asks_for_positive_constants():
    with pytest.raises(InputError, match="margin"):
        identification_steps(1.0, 1.0, 0.0, 1.0)
