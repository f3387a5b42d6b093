"""Gradients dropped where they conflict with another's."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flatminima import gradient_dropout
from flatminima.errors import InputError
from flatminima.reparam import keep_probability
from flatminima.reparam.gradient_dropout import dropped

number = st.floats(-1e3, 1e3).filter(lambda x: x == 0 or abs(x) > 1e-3)


def double(x):
    return torch.tensor([x], dtype=torch.float64)


@settings(max_examples=100, deadline=None)
@given(number, number)
def test_the_probability_is_that_of_the_published_formula(a, b):
    found = keep_probability(double(a), double(b)).item()
    if a:
        sign = 1 if a > 0 else -1
        assert found == pytest.approx((1 + sign * (a + b) / (abs(a) + abs(b))) / 2, abs=1e-12)
    if a * b < 0:
        assert found == abs(a) / (abs(a) + abs(b))
    else:
        assert found == 1


@settings(max_examples=50, deadline=None)
@given(number, number, st.floats(1e-30, 1e30))
def test_the_probability_does_not_depend_on_the_scale_of_both(a, b, scale):
    one, other = (
        keep_probability(double(a), double(b)),
        keep_probability(double(a * scale), double(b * scale)),
    )
    torch.testing.assert_close(one, other, rtol=1e-12, atol=0)


@settings(max_examples=50, deadline=None)
@given(number, number, st.floats(0, 1), st.floats(0, 1, exclude_max=True))
def test_what_does_not_conflict_is_left_untouched_whatever_is_drawn(a, b, strength, u):
    a, b, u = double(a), double(b), double(u)
    # 1 - l + l rounds to 1 within an ulp.
    close = {"rtol": 1e-15, "atol": 0}
    torch.testing.assert_close(dropped(a, a.abs() * b.sign() * b.sign() * a.sign(), 1.0, u), a)
    torch.testing.assert_close(dropped(a, a * b.abs(), strength, u), a, **close)
    torch.testing.assert_close(dropped(a, torch.zeros_like(b), strength, u), a, **close)
    assert torch.equal(dropped(a, b, 0.0, u), a)


def test_on_average_it_keeps_its_share():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(6, dtype=torch.float64, generator=generator) for _ in range(2))
    assert (a * b < 0).any()
    uniform = torch.rand(200_000, 6, dtype=torch.float64, generator=generator)
    mean = dropped(a.expand_as(uniform), b.expand_as(uniform), 0.7, uniform).mean(0)
    expected = (0.3 + 0.7 * keep_probability(a, b)) * a
    # Five standard errors of a mean of 200 000 of at most |a| / 2 each.
    torch.testing.assert_close(mean, expected, rtol=0, atol=5 * a.abs().max().item() * 0.5 / 447)


def test_a_reference_that_is_not_finite_shows_in_the_gradient():
    a, u = torch.ones(3), torch.zeros(3)
    b = torch.tensor([1.0, float("nan"), 2.0])
    assert dropped(a, b, 1.0, u).isnan().tolist() == [False, True, False]
    a = torch.tensor([float("inf"), 1.0, 1.0])
    assert not dropped(a, -torch.ones(3), 1.0, u).isfinite()[0]


def losses(w):
    """Two losses whose gradients are a, and b."""
    a, b = torch.tensor([1.0, -2.0, 3.0, 0.5]), torch.tensor([1.0, 6.0, -1.0, 0.0])
    shared = w * 1.0
    return (a * shared).sum(), (b * shared).sum(), a, b


def test_it_writes_the_gradient_and_replaces_what_was_there():
    w = torch.zeros(4, requires_grad=True)
    w.grad = torch.full((4,), 7.0)
    task, reference, a, b = losses(w)
    gradient_dropout([w], task, reference, generator=torch.Generator().manual_seed(3))
    uniform = torch.rand(4, generator=torch.Generator().manual_seed(3))
    assert torch.equal(w.grad, dropped(a, b, 1.0, uniform))
    task, reference, a, b = losses(w)
    gradient_dropout([w], task, reference, strength=0.0)
    assert torch.equal(w.grad, a)


def test_a_parameter_that_one_loss_does_not_use():
    w, other = torch.zeros(4, requires_grad=True), torch.zeros(2, requires_grad=True)
    task, reference, a, _ = losses(w)
    gradient_dropout([w, other], task, reference + other.sum(), strength=0.0)
    assert other.grad is None
    task, _, a, _ = losses(w)
    gradient_dropout([w], task, other.sum())
    assert torch.equal(w.grad, a)


@pytest.mark.parametrize("strength", [-0.1, 1.5, True, "much", float("nan")])
def test_a_strength_out_of_range_is_refused(strength):
    w = torch.zeros(4, requires_grad=True)
    task, reference, _, _ = losses(w)
    with pytest.raises(InputError, match=r"strength is .* from 0 to 1"):
        gradient_dropout([w], task, reference, strength=strength)
