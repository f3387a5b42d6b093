import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flatminima.errors import InputError
from flatminima.perturb import schedules

properties = settings(max_examples=100, deadline=None, derandomize=True)


def test_linear_is_linspace_and_held_by_the_epoch():
    ramp = schedules.linear(total=6, every=2)
    assert [ramp(step) for step in range(8)] == [0, 0, 0.5, 0.5, 1, 1, 1, 1]


def test_exponential_is_geometric():
    ramp = schedules.exponential(total=3, start=0.01)
    assert [ramp(step) for step in range(4)] == pytest.approx([0.01, 0.1, 1, 1])


@properties
@given(st.integers(1, 1000), st.integers(1, 100), st.floats(1e-6, 1.0))
def test_ramps_rise_and_end_at_1(total, every, start):
    for ramp in (
        schedules.linear(total, every),
        schedules.exponential(total, every, start),
    ):
        values = [ramp(step) for step in range(0, total + 2, max(1, total // 20))]
        assert values == sorted(values)
        assert ramp(total) == 1.0


def test_by_epoch_counts_epochs():
    schedule = schedules.by_epoch(lambda epoch: 10 * epoch, steps_per_epoch=3)
    assert [schedule(step) for step in range(7)] == [0, 0, 0, 10, 10, 10, 20]


def test_a_schedule_says_what_it_is():
    assert schedules.describe(schedules.constant()) == {"name": "constant"}
    assert schedules.describe(schedules.linear(5)) == {"name": "linear", "total": 5, "every": 1}
    assert schedules.describe(lambda step: 1.0) == {"name": "custom"}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: schedules.linear(0), "total of a schedule .* not 0"),
        (lambda: schedules.linear(5, every=0), "every of a schedule"),
        (lambda: schedules.linear(2.5), "total of a schedule"),
        (lambda: schedules.exponential(5, start=0.0), "start of an exponential schedule"),
        (lambda: schedules.exponential(5, start=1.5), "start of an exponential schedule"),
        (lambda: schedules.by_epoch(float, 0), "steps_per_epoch"),
    ],
)
def test_bad_schedules_are_named(build, message):
    with pytest.raises(InputError, match=message):
        build()
