import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flatminima.errors import InputError
from flatminima.measure import Dense, Hessian, hessian_trace

from .cases import DOUBLE, MODELS, cross_entropy, dense_hessian, mlp, split, symmetric


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.lists(st.floats(-100, 100), min_size=1, max_size=8), st.integers(0, 2**40))
def test_a_diagonal_matrix_is_exact_on_every_draw(diagonal, seed):
    matrix = torch.tensor(diagonal, dtype=DOUBLE).diag()
    estimate = hessian_trace(Dense(matrix), num_probes=5, seed=seed)
    # Signs square to 1, so only the order of summation is left: 1e-12 of the largest sum.
    assert abs(estimate.value - sum(diagonal)) <= 1e-12 * (1 + sum(map(abs, diagonal)))
    assert estimate.stderr <= 1e-12 * (1 + sum(map(abs, diagonal)))


def test_intervals_cover_as_often_as_they_say():
    matrix = symmetric(30)
    truth = matrix.trace().item()
    covered = 0
    for seed in range(200):
        low, high = hessian_trace(Dense(matrix), num_probes=50, seed=seed).interval(0.95)
        covered += low <= truth <= high
    # 200 trials at 95 %: the standard deviation is 1.5 points.
    assert 180 <= covered <= 198


def test_the_standard_error_is_the_one_of_the_variance_formula():
    matrix = symmetric(20)
    variance = 2 * (matrix.square().sum() - matrix.diagonal().square().sum()).item()
    estimate = hessian_trace(Dense(matrix), num_probes=4000)
    # The standard deviation of s over 4000 samples is about 2 %.
    assert estimate.stderr == pytest.approx(math.sqrt(variance / 4000), rel=0.1)


def test_softmax_regression_with_bias():
    torch.manual_seed(0)
    model = nn.Linear(6, 4).to(DOUBLE)
    x, y = torch.randn(40, 6, dtype=DOUBLE), torch.arange(40) % 4
    p = model(x).softmax(1)
    exact = ((1 - p.square().sum(1)) * (x.square().sum(1) + 1)).mean().item()
    operator = Hessian(model, cross_entropy, split((x, y), 33, 7))
    diagonal = operator.matmat(torch.eye(28, dtype=DOUBLE)).trace().item()
    assert diagonal == pytest.approx(exact, rel=1e-12)
    estimate = hessian_trace(operator, num_probes=400)
    assert abs(estimate.value - exact) < 5 * estimate.stderr
    assert (estimate.samples, estimate.hvps, estimate.gradients) == (400, 400, 40)


@pytest.mark.parametrize("name", MODELS)
def test_blocks_add_up_and_are_within_their_errors(name):
    model, batch = MODELS[name]()
    operator = Hessian(model, cross_entropy, [batch])
    estimate = hessian_trace(operator, num_probes=100)
    total = sum(block.value for block in estimate.blocks.values())
    assert total == pytest.approx(estimate.value, rel=1e-12)
    diagonal = dense_hessian(model, batch).diagonal()
    assert list(estimate.blocks) == [n for n, _ in model.named_parameters()]
    for block, where in zip(estimate.blocks.values(), operator.blocks.values(), strict=True):
        # 5 standard errors, and rounding where the block is diagonal.
        assert abs(block.value - diagonal[where].sum().item()) <= 5 * block.stderr + 1e-12


def test_chunks_do_not_change_the_samples():
    model, batch = mlp()
    one = hessian_trace(Hessian(model, cross_entropy, [batch]), num_probes=12)
    many = hessian_trace(Hessian(model, cross_entropy, [batch], chunk=5), num_probes=12)
    assert many.value == pytest.approx(one.value, rel=1e-12)
    assert many.stderr == pytest.approx(one.stderr, rel=1e-12)


def test_the_seed_decides_alone():
    matrix = Dense(symmetric(9))
    torch.manual_seed(1)
    first = hessian_trace(matrix, num_probes=7, seed=3)
    torch.manual_seed(2)
    assert hessian_trace(matrix, num_probes=7, seed=3).value == first.value
    assert hessian_trace(matrix, num_probes=7, seed=4).value != first.value


def test_rel_error_stops_by_the_standard_error():
    matrix = symmetric(40) + 20 * torch.eye(40, dtype=DOUBLE)
    estimate = hessian_trace(Dense(matrix), num_probes=500, rel_error=0.01)
    assert 10 < estimate.samples < 500
    assert estimate.stderr <= 0.01 * abs(estimate.value)
    fixed = hessian_trace(Dense(matrix), num_probes=estimate.samples)
    assert (fixed.value, fixed.stderr) == (estimate.value, estimate.stderr)


def test_rel_error_takes_ten_probes_at_least_and_num_probes_at_most():
    exact = Dense(torch.eye(3, dtype=DOUBLE))
    assert hessian_trace(exact, num_probes=100, rel_error=0.5).samples == 10
    traceless = symmetric(20)
    traceless -= traceless.trace() / 20 * torch.eye(20)
    assert hessian_trace(Dense(traceless), num_probes=25, rel_error=1e-6).samples == 25


def test_one_probe_has_no_standard_error():
    estimate = hessian_trace(Dense(symmetric(4)), num_probes=1)
    assert math.isnan(estimate.stderr)
    assert estimate.to_dict()["stderr"] is None


def test_progress_ends_full():
    calls = []
    hessian_trace(Dense(symmetric(4)), num_probes=25, progress=lambda *call: calls.append(call))
    assert [done for _, done, _ in calls] == [10, 20, 25, 25]
    assert {stage for stage, _, _ in calls} == {"trace"}
    assert calls[-1][1:] == (25, 25)


@pytest.mark.parametrize("arguments", [{"num_probes": 0}, {"rel_error": 0.0}, {"rel_error": -1.0}])
def test_bad_arguments_are_refused(arguments):
    with pytest.raises(InputError, match=next(iter(arguments))):
        hessian_trace(Dense(symmetric(3)), **arguments)
