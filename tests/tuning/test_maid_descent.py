"""The steps of MAID against the true upper level, and their state."""

import json

import pytest
import torch

from flatminima.errors import InputError
from flatminima.tuning.maid import (
    MAID,
    Estimated,
    Regularity,
    Settings,
    minimize_bilevel,
)

from .maid_cases import DOUBLE, Ridge


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
