"""What MAID cannot descend, and what it says of it."""

import pytest
import torch

from flatminima.errors import InputError
from flatminima.tuning.maid import (
    Regularity,
    Settings,
    minimize_bilevel,
)

from .maid_cases import DOUBLE, Ridge


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
        (lambda: Settings(inner=10.5), "inner is 10.5: give a whole number"),
        (lambda: Settings(backtracks=2.5), "backtracks is 2.5: give a whole number"),
        (lambda: Regularity(strong=-2.0, upper=1, cross=1), "is -2: MAID needs a strongly convex"),
        (lambda: Regularity(strong=0.0, upper=1, cross=1), "strongly convex"),
        (lambda: Regularity(strong=1.0, upper=float("inf"), cross=1), "constant upper"),
        (lambda: Regularity(strong=1.0, upper=1, cross=-1), "constant cross"),
    ],
)
def test_settings_and_constants_out_of_range_are_refused(make, words):
    with pytest.raises(InputError, match=words):
        make()
