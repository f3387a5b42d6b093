"""Steps of block coordinate descent: what each guarantees, and which block each rule takes."""

import itertools

import numpy as np
import pytest
from block_problems import data, every, least_squares
from hypothesis import given, settings
from hypothesis import strategies as st

from flatminima.optim.block_coordinate import GreedyBCD, LeastSquares, Logistic
from flatminima.optim.block_coordinate.line_search import armijo
from flatminima.optim.block_coordinate.spectra import inverse_root, solve

SMOOTH = ("lb", "hb", "newton", "la", "tmp")
RULES = ("random", "cyclic", "lipschitz", "gs", "gsl", "gsd", "gsq")


def at_random(objective, seed=0):
    return 0.3 * np.random.default_rng(seed).standard_normal(objective.shape)


def name(value):
    return value if isinstance(value, str) else type(value).__name__


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), tau=st.integers(1, 12))
def test_a_matrix_step_on_a_quadratic_falls_by_exactly_what_is_promised(seed, tau):
    objective = least_squares(seed=seed)
    solver = GreedyBCD(objective, tau, selection="random", seed=seed)
    g, before = solver.gradient(), solver.value()
    block = solver.step()
    promised = 0.5 * g[block] @ np.linalg.pinv(objective.bound(block)) @ g[block]
    assert before - solver.value() == pytest.approx(promised, rel=1e-9, abs=1e-10)


@pytest.mark.parametrize("objective", every(), ids=name)
@pytest.mark.parametrize("update", ["lb", "hb"])
def test_every_step_falls_by_at_least_what_is_promised(objective, update):
    solver = GreedyBCD(objective, 3, selection="random", partition=None, update=update)
    for _ in range(30):
        g, before = solver.gradient(), solver.value()
        block = solver.step()
        H = objective.bound(block)
        inverse = np.linalg.pinv(H) if update == "hb" else np.eye(3) / np.linalg.eigvalsh(H)[-1]
        assert before - solver.value() >= 0.5 * g[block] @ inverse @ g[block] - 1e-9


def test_one_block_of_all_solves_least_squares_in_one_step():
    A, y, _ = data()
    found = GreedyBCD(LeastSquares(A, y), 12).run(1).x
    np.testing.assert_allclose(found, np.linalg.lstsq(A, y, rcond=None)[0], atol=1e-10)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_single_coordinates_make_gsl_gsd_and_gsq_one_rule(seed):
    objective = least_squares(seed=seed)
    taken = []
    for rule, how in itertools.product(("gsl", "gsd", "gsq"), ("order", None)):
        solver = GreedyBCD(objective, 1, selection=rule, partition=how)
        taken.append([int(solver.step()[0]) for _ in range(8)])
    assert all(blocks == taken[0] for blocks in taken)


@pytest.mark.parametrize("objective", every(), ids=name)
def test_gsq_takes_the_fixed_block_whose_guarantee_is_largest(objective):
    solver = GreedyBCD(objective, 5, selection="gsq", start=at_random(objective))
    g = solver.gradient()
    falls = [g[b] @ np.linalg.pinv(objective.bound(b)) @ g[b] for b in solver.blocks.blocks]
    assert np.array_equal(solver.step(), solver.blocks.blocks[int(np.argmax(falls))])


@pytest.mark.parametrize("objective", every(), ids=name)
@pytest.mark.parametrize("rule", ["gs", "gsl", "gsd"])
def test_fixed_rules_take_the_block_of_their_equation(objective, rule):
    solver = GreedyBCD(objective, 5, selection=rule, start=at_random(objective))
    g, blocks = solver.gradient(), solver.blocks.blocks
    score = {
        "gs": lambda b: g[b] @ g[b],
        "gsl": lambda b: g[b] @ g[b] / np.linalg.eigvalsh(objective.bound(b))[-1],
        "gsd": lambda b: (g[b] ** 2 / objective.lipschitz[b]).sum(),
    }[rule]
    assert np.array_equal(solver.step(), blocks[int(np.argmax([score(b) for b in blocks]))])


@pytest.mark.parametrize("rule", ["gs", "gsd"])
def test_variable_rules_take_the_best_of_all_blocks(rule):
    objective = least_squares()
    solver = GreedyBCD(objective, 3, selection=rule, partition=None, start=at_random(objective))
    g = solver.gradient()
    scale = objective.lipschitz if rule == "gsd" else np.ones(12)
    combinations = list(itertools.combinations(range(12), 3))
    scores = [(g[list(b)] ** 2 / scale[list(b)]).sum() for b in combinations]
    assert tuple(solver.step()) == combinations[int(np.argmax(scores))]


def test_thresholding_never_falls_short_of_gsd_and_often_finds_more():
    better = 0
    for seed in range(30):
        objective = least_squares(seed=seed)

        def fall(rule, objective=objective):
            solver = GreedyBCD(objective, 4, selection=rule, partition=None)
            before = solver.value()
            solver.step()
            return before - solver.value()

        gsd, gsq = fall("gsd"), fall("gsq")
        assert gsq >= gsd * (1 - 1e-12)
        better += gsq > gsd * (1 + 1e-9)
    assert better >= 3


def test_exhaustive_search_bounds_what_thresholding_finds():
    objective = least_squares(seed=3)
    g = objective.gradient(np.zeros(12), objective.margins(np.zeros(12)))
    best = max(
        0.5 * g[list(b)] @ solve(objective.bound(np.array(b)), g[list(b)])
        for b in itertools.combinations(range(12), 3)
    )
    solver = GreedyBCD(objective, 3, selection="gsq", partition=None)
    before = solver.value()
    solver.step()
    assert 0.7 * best < before - solver.value() <= best * (1 + 1e-9)


@pytest.mark.parametrize("how", ["order", "sort", "average", None])
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_reaches_the_solution(rule, how):
    A, y, _ = data()
    objective = LeastSquares(A, y, l2=1.0)
    found = GreedyBCD(objective, 5, selection=rule, partition=how).run(4000, 1e-9)
    assert found.converged
    wanted = np.linalg.solve(A.T @ A + np.eye(12), A.T @ y)
    np.testing.assert_allclose(found.x, wanted, atol=1e-8)


@pytest.mark.parametrize("update", SMOOTH)
@pytest.mark.parametrize("objective", every()[:3], ids=name)
def test_every_update_reaches_the_solution_and_never_climbs(objective, update):
    objective = type(objective)(objective.A, objective.y, l2=2.0)
    solver = GreedyBCD(objective, 4, selection="gsd", partition=None, update=update)
    found = solver.run(3000, 1e-6, record=True)
    assert found.converged
    assert all(b <= a + 1e-10 for a, b in itertools.pairwise(found.values))
    assert found.values[-1] == found.value


def test_newton_ends_faster_than_bounds_on_a_logistic_problem():
    A, y, _ = data(200, 12)
    objective = Logistic(A, np.sign(y), l2=0.1)
    steps = {
        update: GreedyBCD(objective, 12, update=update).run(500, 1e-8).steps
        for update in ("newton", "hb")
    }
    assert steps["newton"] <= 10 < steps["hb"]


def test_unknown_constants_are_found_within_twice_the_true_ones():
    A, y, _ = data()
    objective = LeastSquares(A, y)
    solver = GreedyBCD(objective, 4, selection="cyclic", update="la")
    solver.run(3)
    largest = np.linalg.eigvalsh(A.T @ A)[-1]
    assert 1 <= solver.state_dict()["estimates"].max() <= 2 * largest


def test_columns_of_zeros_are_left_alone():
    A, y, _ = data()
    A[:, [2, 7]] = 0
    for update, how in itertools.product(SMOOTH, ("sort", None)):
        found = GreedyBCD(LeastSquares(A, y), 3, update=update, partition=how).run(2000, 1e-8)
        assert found.x[2] == found.x[7] == 0
        assert np.abs(A.T @ (A @ found.x - y)).max() < 1e-6
    assert GreedyBCD(LeastSquares(0 * A, y), 3).run(5).x.any() == np.False_


def test_repeated_columns_are_solved_with_the_pseudo_inverse():
    A, y, _ = data()
    twice = np.concatenate([A, A], axis=1)
    solver = GreedyBCD(LeastSquares(twice, y), 24)
    np.testing.assert_allclose(solver.run(1).x, np.linalg.pinv(twice) @ y, atol=1e-8)


def test_an_inverse_root_is_one():
    B = np.random.default_rng(0).standard_normal((3, 5))
    R = inverse_root(B.T @ B)
    np.testing.assert_allclose(R.T @ R, np.linalg.pinv(B.T @ B), atol=1e-10)


def test_the_line_search_finds_the_minimum_of_a_parabola_and_stops_where_nothing_falls():
    # 1 climbs; the parabola's minimum is 0.25.
    assert armijo(lambda t: 2 * t * t - t + 0.0, 0.0, -1.0, 0.0) == pytest.approx(0.25)
    assert armijo(lambda t: t, 0.0, -1.0, 0.0) == 0.0
    finite = armijo(lambda t: np.inf if t > 0.2 else -t, 0.0, -1.0, 0.0)
    assert 0 < finite <= 0.2


def test_the_second_point_of_the_line_search_is_the_minimum_of_a_cubic():
    seen = []

    def cubic(t):
        seen.append(t)
        return 5 * t**3 + 8 * t**2 - t + (3 if t > 0.04 else 0)

    armijo(cubic, 0.0, -1.0, 0.0)
    assert seen[1] == pytest.approx(0.1)
    first, second = (cubic(t) for t in seen[:2])
    a = np.linalg.solve([[1, 1], [seen[1] ** 3, seen[1] ** 2]], [first + 1, second + seen[1]])
    wanted = (-a[1] + np.sqrt(a[1] ** 2 + 3 * a[0])) / (3 * a[0])
    assert seen[2] == pytest.approx(np.clip(wanted, 0.01, 0.05))
