import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flatminima.errors import InputError
from flatminima.measure import (
    Dense,
    EigenEstimate,
    Estimate,
    TraceEstimate,
    hessian_trace,
    top_eigenvalues,
)
from flatminima.measure.results import plus_minus

from .cases import symmetric


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (12.345, 0.4, "12.3 ± 0.4"),
        (12.345, 0.14, "12.35 ± 0.14"),
        (12.345, 0.096, "12.35 ± 0.10"),
        (1234.5, 61.0, "1230 ± 60"),
        (-0.5, 2.0, "0 ± 2"),
        (2.5e-5, 3e-7, "(2.50 ± 0.03)e-5"),
        (1.5e8, 2e6, "(1.50 ± 0.02)e+8"),
        (7.0, 0.0, "7 ± 0"),
        (7.0, math.nan, "7 ± nan"),
        (0.0, 0.3, "0.0 ± 0.3"),
    ],
)
def test_digits_follow_the_error(value, error, text):
    assert plus_minus(value, error) == text


@settings(derandomize=True)
@given(st.floats(-1e300, 1e300), st.floats(0, 1e300))
def test_every_number_prints(value, error):
    assert "±" in plus_minus(value, error)


@pytest.mark.parametrize("samples", [2, 10, 100])
def test_an_interval_is_students(samples):
    stats = pytest.importorskip("scipy.stats")
    low, high = Estimate(10.0, 1.0, samples, method="m").interval(0.9)
    reach = stats.t.ppf(0.95, samples - 1)
    assert (low, high) == pytest.approx((10 - reach, 10 + reach))


def test_an_interval_of_one_sample_is_not_known_and_a_level_is_a_probability():
    one = Estimate(10.0, math.nan, 1, method="m")
    assert all(map(math.isnan, one.interval()))
    with pytest.raises(InputError, match="level is 95: give a probability"):
        Estimate(10.0, 1.0, 10, method="m").interval(95)


def test_results_go_through_json():
    estimate = hessian_trace(Dense(symmetric(4)), probes=12)
    data = json.loads(json.dumps(estimate.to_dict(), allow_nan=False))
    assert TraceEstimate.from_dict(data) == estimate
    assert set(data["blocks"]["all"]) == {"value", "stderr"}
    top = top_eigenvalues(Dense(symmetric(4)), 2, vectors=True)
    data = json.loads(json.dumps(top.to_dict(), allow_nan=False))
    assert EigenEstimate.from_dict(data) == top
    assert "vectors" not in data
    assert top.peak_bytes is None
    assert top.dtype == "float64"
    assert top.seconds > 0


def test_results_print():
    top = EigenEstimate((3.0, 1.0), (0.02, 0.1), 9, True, "largest", method="m")
    assert str(top) == "3.00 ± 0.02, 1.00 ± 0.10"
    late = EigenEstimate((3.0,), (0.02,), 9, False, "largest", method="m")
    assert str(late) == "3.00 ± 0.02 (not converged in 9 steps)"
    assert (top.value, top.residual) == (3.0, 0.02)
