import itertools
import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flatminima.errors import InputError
from flatminima.student import t_quantile, two_sided_tail
from flatminima.study import mean_ci, paired

numbers = st.floats(-1e6, 1e6)


def by_seed(values):
    return dict(enumerate(values))


def zeros(n):
    return by_seed([0.0] * n)


@pytest.mark.parametrize("degrees", [0.5, 1, 2, 3, 4, 9, 29, 1000, 1e6])
@pytest.mark.parametrize("probability", [1e-6, 0.01, 0.3, 0.5, 0.5001, 0.75, 0.975, 0.9999])
def test_t_quantile_is_scipys(probability, degrees):
    stats = pytest.importorskip("scipy.stats")
    expected = stats.t.ppf(probability, degrees)
    assert t_quantile(probability, degrees) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("degrees", [1, 2.5, 7, 500])
@pytest.mark.parametrize("t", [0.0, 1e-4, 0.7, 2.0, 12.0, 1e3])
def test_tail_is_scipys(t, degrees):
    stats = pytest.importorskip("scipy.stats")
    expected = 2 * stats.t.sf(t, degrees)
    assert two_sided_tail(t, degrees) == pytest.approx(expected, rel=1e-9, abs=1e-280)


@pytest.mark.parametrize("p", [0.6, 0.9, 0.975, 0.999])
def test_t_quantile_closed_forms(p):
    assert t_quantile(p, 1) == pytest.approx(math.tan(math.pi * (p - 0.5)), rel=1e-10)
    assert t_quantile(p, 2) == pytest.approx((2 * p - 1) / math.sqrt(2 * p * (1 - p)), rel=1e-10)
    assert t_quantile(1 - p, 5) == pytest.approx(-t_quantile(p, 5), rel=1e-9)


@pytest.mark.parametrize(("p", "degrees"), [(0, 3), (1, 3), (0.5, 0), (float("nan"), 3)])
def test_t_quantile_refuses_what_has_none(p, degrees):
    with pytest.raises(InputError, match="quantile"):
        t_quantile(p, degrees)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=20), st.floats(0.5, 0.999))
@settings(max_examples=50, deadline=None)
def test_mean_ci_is_scipys(values, level):
    stats = pytest.importorskip("scipy.stats")
    result = mean_ci(values, level)
    sem = np.std(values, ddof=1) / math.sqrt(len(values))
    assert result.mean == pytest.approx(np.mean(values))
    assert result.stderr == pytest.approx(sem)
    if sem > 1e-9:
        expected = stats.t.interval(level, len(values) - 1, loc=np.mean(values), scale=sem)
        assert result.interval == pytest.approx(expected, rel=1e-7, abs=1e-9)


def test_mean_ci_of_one_value_has_no_interval():
    result = mean_ci([0.5])
    assert (result.mean, result.interval, result.stderr, result.half_width) == (
        0.5,
        None,
        None,
        None,
    )
    assert str(result) == "0.5"
    assert result.to_dict()["interval"] is None


def test_mean_ci_prints_with_its_half_width():
    assert str(mean_ci([1.0, 2.0, 3.0])) == "2 ± 2.5"


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf"), 2.0]])
def test_mean_ci_refuses_what_has_no_mean(values):
    with pytest.raises(InputError):
        mean_ci(values)


def test_mean_ci_refuses_a_level_that_is_none():
    with pytest.raises(InputError, match="level=95"):
        mean_ci([1.0, 2.0], level=95)


@pytest.mark.parametrize("n", [2, 3, 5, 20])
def test_mean_ci_covers_the_mean(n):
    samples = np.random.default_rng(n).normal(3.0, 2.0, size=(400, n))
    intervals = [mean_ci(row).interval for row in samples]
    assert 0.92 <= np.mean([low <= 3.0 <= high for low, high in intervals]) <= 0.98


def test_paired_takes_only_the_seeds_both_have():
    result = paired({1: 5.0, 2: 7.0, 9: 100.0}, {2: 4.0, 1: 4.0, 3: -100.0})
    assert result.samples == 2
    assert result.difference == pytest.approx(2.0)


def test_paired_refuses_what_cannot_be_compared():
    with pytest.raises(InputError, match="no seed is in both"):
        paired({1: 1.0}, {2: 1.0})
    with pytest.raises(InputError, match="nan"):
        paired({1: float("nan"), 2: 0.0}, {1: 1.0, 2: 1.0})
    with pytest.raises(InputError, match="resamples"):
        paired({1: 1.0}, {1: 1.0}, resamples=0)


def test_one_pair_has_no_interval():
    result = paired({1: 2.0}, {1: 1.0})
    assert (result.interval, result.t_interval, result.p_value) == (None, None, 1.0)
    assert "one pair" in str(result)


@given(st.lists(numbers, min_size=2, max_size=20))
@settings(max_examples=30, deadline=None)
def test_equal_methods_differ_by_nothing(values):
    result = paired(by_seed(values), by_seed(values), resamples=200)
    assert result.difference == 0
    assert result.interval == (0, 0)
    assert result.t_interval == (0, 0)
    assert result.p_value == 1


@given(st.lists(numbers, min_size=1, max_size=10), st.lists(numbers, min_size=10, max_size=10))
@settings(max_examples=30, deadline=None)
def test_exchanging_the_methods_changes_signs_only(values, reference):
    there = paired(by_seed(values), by_seed(reference), resamples=100)
    back = paired(by_seed(reference), by_seed(values), resamples=100)
    assert there.difference == -back.difference
    assert there.p_value == back.p_value
    if there.t_interval:
        assert there.t_interval == pytest.approx((-back.t_interval[1], -back.t_interval[0]))


@given(st.lists(numbers, min_size=2, max_size=8), st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_the_bootstrap_stays_within_the_differences(values, seed):
    low, high = paired(by_seed(values), zeros(len(values)), resamples=300, seed=seed).interval
    slack = 1e-9 * max(map(abs, values))
    assert min(values) - slack <= low <= high <= max(values) + slack


def test_the_seed_decides():
    values = by_seed(np.random.default_rng(0).normal(size=8))
    assert paired(values, zeros(8), seed=1) == paired(values, zeros(8), seed=1)
    assert paired(values, zeros(8), seed=1).interval != paired(values, zeros(8), seed=2).interval


@pytest.mark.parametrize("n", [2, 5, 10, 16])
def test_p_value_of_differences_of_one_sign(n):
    values = by_seed(np.random.default_rng(n).uniform(0.1, 1.0, size=n))
    result = paired(values, zeros(n), resamples=100)
    assert result.exact
    assert result.p_value == 2 / 2**n


def test_p_value_counts_ties_that_rounding_splits():
    # 0.1 + 0.2 - 0.3 is not 0 in floating point, yet its flips tie.
    values = [0.1, 0.2, -0.3]
    assert paired(by_seed(values), zeros(3)).p_value == 1.0


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=8))
@settings(max_examples=40, deadline=None)
def test_exact_p_value_is_the_obvious_count(values):
    observed = abs(sum(values))
    flips = itertools.product([1, -1], repeat=len(values))
    sums = [abs(sum(s * v for s, v in zip(flip, values, strict=True))) for flip in flips]
    expected = np.mean([total >= observed for total in sums])
    result = paired(by_seed(map(float, values)), zeros(len(values)), resamples=10)
    assert result.p_value == expected


@pytest.mark.parametrize("shift", [0.0, 0.4, 0.8])
def test_exact_p_value_is_scipys(shift):
    stats = pytest.importorskip("scipy.stats")
    a, b = np.random.default_rng(3).normal(size=(2, 10))
    expected = stats.permutation_test(
        (a + shift, b), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=np.inf
    )
    assert paired(by_seed(a + shift), by_seed(b)).p_value == pytest.approx(expected.pvalue)


def test_random_sign_flips_approach_the_exact_p_value():
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(5).normal(0.4, 1.0, size=17)
    flips = stats.permutation_test(
        (values, np.zeros(17)),
        lambda x, y: np.mean(x - y),
        permutation_type="samples",
        n_resamples=np.inf,
        vectorized=False,
    )
    result = paired(by_seed(values), zeros(17))
    assert not result.exact
    error = math.sqrt(flips.pvalue * (1 - flips.pvalue) / result.resamples)
    assert abs(result.p_value - flips.pvalue) < 5 * error + 1 / result.resamples


# Below 10 values scipy lets rounding decide on which side a resample equal to the sample counts.
@pytest.mark.parametrize("n", [10, 40])
def test_bca_interval_is_scipys(n):
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(n).exponential(size=n)
    scipys, ours = [], []
    for seed in range(8):
        interval = stats.bootstrap(
            (values,), np.mean, n_resamples=10_000, method="BCa", rng=np.random.default_rng(seed)
        ).confidence_interval
        scipys.append(interval)
        ours.append(paired(by_seed(values), zeros(n), seed=seed).interval)
    error = np.sqrt((np.var(scipys, axis=0, ddof=1) + np.var(ours, axis=0, ddof=1)) / 8)
    assert (np.abs(np.mean(scipys, axis=0) - np.mean(ours, axis=0)) < 6 * error).all()


@pytest.mark.parametrize("values", [[1, 2, 3, 4, 5], [0, 0, 1, 2, 11], [-9, 1, 2, 2, 2]])
def test_bca_interval_cuts_all_resamples_where_it_should(values):
    """The obvious twin: all n^n resamples, counted in integers."""
    normal = NormalDist()
    sums = np.array([sum(resample) for resample in itertools.product(values, repeat=5)])
    below = np.mean(sums < sum(values)) + np.mean(sums == sum(values)) / 2
    jackknife = np.array([np.mean(values[:i] + values[i + 1 :]) for i in range(5)])
    pull = jackknife.mean() - jackknife
    acceleration = (pull**3).sum() / (6 * (pull**2).sum() ** 1.5)
    bias = normal.inv_cdf(below)
    interval = paired(by_seed(values), zeros(5)).interval
    for end, tail in zip(interval, (0.025, 0.975), strict=True):
        z = bias + normal.inv_cdf(tail)
        expected = normal.cdf(bias + z / (1 - acceleration * z))
        assert np.mean(sums / 5 < end - 1e-9) - 0.012 <= expected
        assert expected <= np.mean(sums / 5 <= end + 1e-9) + 0.012


def test_with_few_pairs_student_covers_and_the_bootstrap_does_not():
    samples = np.random.default_rng(0).normal(size=(400, 3))
    results = [paired(by_seed(row), zeros(3), resamples=500) for row in samples]
    student = np.mean([r.t_interval[0] <= 0 <= r.t_interval[1] for r in results])
    bootstrap = np.mean([r.interval[0] <= 0 <= r.interval[1] for r in results])
    assert 0.92 <= student <= 0.98
    assert bootstrap < 0.85


def test_a_paired_difference_is_readable():
    result = paired(by_seed([1.0, 2.0, 3.0]), zeros(3))
    assert str(result) == "+2 [-0.48, +4.5], p = 0.25"
    assert result.to_dict()["t_interval"] == list(result.t_interval)
