"""Knobs: bounds, transforms, draws."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flatminima.errors import InputError
from flatminima.tuning.self_tuning import Knob, Knobs

DOUBLE = torch.float64
KINDS = {
    "bounded": {"low": -1.0, "high": 3.0},
    "above": {"low": 0.25},
    "anywhere": {"low": -math.inf},
    "ratios": {"low": 1e-4, "high": 1e2, "log": True},
    "positive": {"log": True},
}


@pytest.mark.parametrize("kind", KINDS)
@given(part=st.floats(0.01, 0.99))
@settings(max_examples=40, deadline=None)
def test_a_knob_starts_where_it_is_told(kind, part):
    options = KINDS[kind]
    low, high = max(options.get("low", 0), -5), min(options.get("high", 5), 5)
    start = low + part * (high - low)
    knob = Knob(start, **options)
    at = torch.tensor(knob.position(), dtype=DOUBLE)
    assert knob.value(at).item() == pytest.approx(start, rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@given(u=st.floats(-30, 30))
@settings(max_examples=40, deadline=None)
def test_a_knob_never_leaves_its_bounds_and_grows_with_u(kind, u):
    knob = Knob(1.0, **KINDS[kind])
    low, high = (knob.value(torch.tensor(x, dtype=DOUBLE)).item() for x in (u, u + 0.1))
    assert knob.low <= low <= high <= knob.high


@pytest.mark.parametrize("start", range(7))
def test_a_whole_knob_starts_in_the_middle_of_its_number(start):
    knob = Knob(start, high=7, whole=True)
    at = torch.tensor(knob.position(), dtype=DOUBLE)
    assert knob.value(at).item() == start
    assert knob.inner(at).item() == pytest.approx(start + 0.5)
    assert knob.value(torch.linspace(-9, 9, 2001, dtype=DOUBLE)).unique().tolist() == [*range(7)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"start": 1, "low": 2, "high": 2}, "low must be below high"),
        ({"start": 1, "low": 2, "high": 1}, "low must be below high"),
        ({"start": 0.9, "high": 0.9}, "start between them"),
        ({"start": 0}, "start between them"),
        ({"start": math.nan}, "start between them"),
        ({"start": 7, "high": 7, "whole": True}, "start between them"),
        ({"start": 1, "low": math.nan}, "low must be below high"),
        ({"start": 1, "low": -math.inf, "high": 2}, "give low"),
        ({"start": 1, "high": 2, "log": True}, "on a log scale"),
        ({"start": 1, "low": 0.1, "log": True}, "on a log scale"),
        ({"start": 1, "scale": 0}, "a knob's scale is 0"),
    ],
)
def test_bounds_that_cannot_be_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        Knob(**options)


def two(seed: int = 0) -> Knobs:
    return Knobs(
        {"each": Knob(1.0, scale=0.2), "all": Knob(0.5, high=1, scale=0.7, shared=True)},
        dtype=DOUBLE,
        seed=seed,
    )


def test_draws_have_the_mean_and_the_scale_they_should():
    knobs = two()
    u = torch.stack([knobs.draw(4, step) for step in range(4000)]).detach()
    for i, scale in enumerate((0.2, 0.7)):
        first = u[:, 0, i]
        assert (first.mean() - knobs.position[i]).abs() < 4 * scale / 4000**0.5
        assert first.std().item() == pytest.approx(scale, rel=0.05)


def test_a_shared_knob_has_one_draw_for_the_batch_and_for_all_ranks():
    knobs = two()
    one, other = knobs.noise(5, 3, rank=0), knobs.noise(5, 3, rank=1)
    assert one[:, 1].unique().numel() == 1
    assert torch.equal(one[:, 1], other[:, 1])
    assert one[:, 0].unique().numel() == 5
    assert not torch.equal(one[:, 0], other[:, 0])
    values = knobs.values(knobs.draw(5, 3))
    assert values["each"].shape == (5,)
    assert values["all"].shape == ()


def test_draws_are_addressed_and_not_consumed():
    knobs = two()
    first = knobs.noise(3, 7)
    knobs.noise(3, 8)
    assert torch.equal(knobs.noise(3, 7), first)
    assert not torch.equal(two(seed=1).noise(3, 7), first)


def test_the_gradient_of_the_entropy_is_one_over_each_scale():
    knobs = two()
    gradient = torch.autograd.grad(knobs.entropy(), knobs.raw_scale)[0]
    slope = torch.sigmoid(knobs.raw_scale)  # d softplus / d s
    torch.testing.assert_close(gradient / slope, 1 / knobs.scale)
    assert knobs.entropy().item() == pytest.approx(
        sum(torch.distributions.Normal(0.0, s).entropy().item() for s in (0.2, 0.7)), rel=1e-6
    )


def test_counted_from_the_start_values_are_the_same_and_the_position_is_zero():
    knobs = Knobs(two().knobs, dtype=DOUBLE, from_start=True)
    assert knobs.position.tolist() == [0.0, 0.0]
    assert knobs.current() == pytest.approx({"each": 1.0, "all": 0.5})
    ours, theirs = (k.values(k.draw(5, 2)) for k in (knobs, two()))
    torch.testing.assert_close(ours, theirs)


def test_a_state_is_of_the_same_knobs_only():
    knobs = two()
    with pytest.raises(InputError, match="the state is of the knobs each, all"):
        Knobs({"each": Knob(1.0)}).load_state_dict(knobs.state_dict())
    with pytest.raises(InputError, match="no knob to tune"):
        Knobs({})
