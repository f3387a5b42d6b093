import math
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flatminima.errors import InputError
from flatminima.measure import Dense, Hessian, LowRank, hessian_trace
from flatminima.measure.over_batches import OverBatches

from .cases import (
    DOUBLE,
    MODELS,
    Quadratic,
    cross_entropy,
    decaying,
    dense_hessian,
    mlp,
    quadratic_loss,
    split,
    symmetric,
)

METHODS = ["auto", "hutchinson", "hutch++", "xtrace"]


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.lists(st.floats(-100, 100), min_size=1, max_size=8), st.integers(0, 2**40))
def test_a_diagonal_matrix_is_exact_on_every_draw(diagonal, seed):
    matrix = torch.tensor(diagonal, dtype=DOUBLE).diag()
    estimate = hessian_trace(Dense(matrix), method="hutchinson", probes=5, seed=seed)
    # Signs square to 1, so only the order of summation is left: 1e-12 of the largest sum.
    assert abs(estimate.value - sum(diagonal)) <= 1e-12 * (1 + sum(map(abs, diagonal)))
    assert estimate.stderr <= 1e-12 * (1 + sum(map(abs, diagonal)))


SPECTRA = {
    "flat": symmetric(60),
    "decaying": decaying(60, 0.8),
    "outliers": decaying(60, 0.1) * 100 + 0.05 * symmetric(60, 1),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_intervals_cover_as_often_as_they_say(method, spectrum):
    matrix = SPECTRA[spectrum]
    halves = {"first": slice(0, 25), "second": slice(25, 60)}
    operator, truth = Dense(matrix, halves), matrix.trace().item()
    parts = [matrix.diagonal()[where].sum().item() for where in halves.values()]
    whole, blocks = 0, [0, 0]
    for seed in range(200):
        estimate = hessian_trace(operator, method=method, probes=48, seed=seed)
        low, high = estimate.interval(0.95)
        whole += low <= truth <= high
        for i, block in enumerate(estimate.blocks.values()):
            low, high = block.interval(0.95)
            blocks[i] += low <= parts[i] <= high
    # 200 trials at 95 %: the standard deviation is 1.5 points. A block's forms can be as skewed as
    # the square of one normal variable, and a normal interval from 48 of them is then a bit short.
    assert 180 <= whole <= 198
    assert all(176 <= covered <= 199 for covered in blocks), blocks


@pytest.mark.parametrize("method", METHODS)
def test_no_method_is_biased(method):
    matrix = SPECTRA["decaying"]
    values = torch.tensor(
        [hessian_trace(Dense(matrix), method=method, probes=24, seed=s).value for s in range(300)]
    )
    apart = abs(values.mean().item() - matrix.trace().item())
    assert apart < 4 * values.std().item() / math.sqrt(300)


def test_xtrace_needs_far_fewer_products_where_the_spectrum_decays():
    turn, _ = torch.linalg.qr(torch.randn(3000, 12, dtype=DOUBLE))
    operator = LowRank(turn, 100 * 0.5 ** torch.arange(12, dtype=DOUBLE), shift=1e-4)
    coarse = hessian_trace(operator, method="hutchinson", probes=40)
    fine = hessian_trace(operator, method="auto", probes=40)
    assert fine.method.startswith("XTrace, 20")
    assert fine.stderr < 1e-5 * coarse.stderr
    assert abs(fine.value - (200 * (1 - 0.5**12) + 0.3)) < 4 * fine.stderr + 1e-9


def test_auto_makes_test_vectors_of_twelve_products_and_probes_of_fewer():
    operator = Dense(decaying(120, 0.7))
    truth = operator.matrix.trace().item()
    twelve = [hessian_trace(operator, probes=12, seed=seed) for seed in range(200)]
    fewer = [hessian_trace(operator, probes=11, seed=seed) for seed in range(200)]
    assert {e.samples for e in twelve} == {6}
    assert {e.samples for e in fewer} == {11}
    rms = [sum((e.value / truth - 1) ** 2 for e in found) for found in (twelve, fewer)]
    assert rms[0] < rms[1] / 2


def test_auto_turns_to_hutchinson_where_the_spectrum_is_flat():
    estimate = hessian_trace(Dense(symmetric(200)), probes=80)
    assert estimate.method == "Hutchinson, Rademacher probes; matrix"
    # 10 forms of the first 20 products, which would have been XTrace's, and 60 more.
    assert (estimate.hvps, estimate.samples) == (80, 70)


def test_auto_turns_to_single_probes_where_test_vectors_stop_paying():
    turn, _ = torch.linalg.qr(symmetric(400))
    spectrum = torch.cat([torch.full((8,), 100.0), torch.full((392,), 1.0)]).to(DOUBLE)
    operator = Dense((turn * spectrum) @ turn.T + symmetric(400, 1, 0.3))
    estimates = [hessian_trace(operator, probes=150, seed=seed) for seed in range(100)]
    assert all("probes of the rest" in e.method for e in estimates)
    assert {e.hvps for e in estimates} <= {149, 150}
    truth = operator.matrix.trace().item()
    assert sum(abs(e.value - truth) <= 1.96 * e.stderr for e in estimates) >= 89
    only = hessian_trace(operator, method="xtrace", probes=150)
    assert estimates[0].stderr < only.stderr


def test_auto_multiplies_all_unit_vectors_where_there_are_few():
    model, batch = mlp()
    operator = Hessian(model, cross_entropy, split(batch, 20, 4))
    estimate = hessian_trace(operator, probes=60)
    diagonal = dense_hessian(model, batch).diagonal()
    assert estimate.method == "exact, all unit vectors; Hessian, reverse over reverse"
    assert estimate.value == pytest.approx(diagonal.sum().item(), rel=1e-12)
    assert (estimate.stderr, estimate.hvps) == (0.0, 57)
    for block, where in zip(estimate.blocks.values(), operator.blocks.values(), strict=True):
        assert block.value == pytest.approx(diagonal[where].sum().item(), rel=1e-10)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("rank", [0, 1, 3])
def test_an_exhausted_range_is_no_trouble(method, dtype, rank):
    turn, _ = torch.linalg.qr(symmetric(40))
    operator = LowRank(turn[:, :rank].to(dtype), torch.full((rank,), 2.0, dtype=dtype))
    estimate = hessian_trace(operator, method=method, probes=30)
    assert abs(estimate.value - 2 * rank) <= 5 * estimate.stderr + 1e3 * torch.finfo(dtype).eps
    if method != "hutchinson":
        assert estimate.stderr <= 1e3 * torch.finfo(dtype).eps


@pytest.mark.parametrize("method", ["hutch++", "xtrace"])
def test_float32_is_as_good_as_its_rounding(method):
    matrix = decaying(80, 0.7)
    single, double = (
        hessian_trace(Dense(m), method=method, probes=60) for m in (matrix.float(), matrix)
    )
    truth = matrix.trace().item()
    assert abs(double.value - truth) < 5 * double.stderr
    assert abs(single.value - truth) < 5 * single.stderr + 1e-5 * truth
    assert single.stderr < 2 * double.stderr + 1e-5 * truth


def test_the_standard_error_is_the_one_of_the_variance_formula():
    matrix = symmetric(20)
    variance = 2 * (matrix.square().sum() - matrix.diagonal().square().sum()).item()
    estimate = hessian_trace(Dense(matrix), method="hutchinson", probes=4000)
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
    estimate = hessian_trace(operator, method="hutchinson", probes=400)
    assert abs(estimate.value - exact) < 5 * estimate.stderr
    assert (estimate.samples, estimate.hvps, estimate.gradients) == (400, 400, 40)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_blocks_add_up_and_are_within_their_errors(name, method):
    model, batch = MODELS[name]()
    operator = Hessian(model, cross_entropy, [batch])
    estimate = hessian_trace(operator, method=method, probes=50)
    total = sum(block.value for block in estimate.blocks.values())
    assert total == pytest.approx(estimate.value, rel=1e-12)
    diagonal = dense_hessian(model, batch).diagonal()
    assert list(estimate.blocks) == [n for n, _ in model.named_parameters()]
    for block, where in zip(estimate.blocks.values(), operator.blocks.values(), strict=True):
        # 5 standard errors, and rounding where the block is diagonal.
        assert abs(block.value - diagonal[where].sum().item()) <= 5 * block.stderr + 1e-12


def test_chunks_do_not_change_the_samples():
    model, batch = mlp()
    one = hessian_trace(Hessian(model, cross_entropy, [batch]), method="hutchinson", probes=12)
    many = hessian_trace(
        Hessian(model, cross_entropy, [batch], chunk=5), method="hutchinson", probes=12
    )
    assert many.value == pytest.approx(one.value, rel=1e-12)
    assert many.stderr == pytest.approx(one.stderr, rel=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_the_seed_decides_alone(method):
    matrix = Dense(symmetric(30))
    torch.manual_seed(1)
    first = hessian_trace(matrix, method=method, probes=24, seed=3)
    torch.manual_seed(2)
    assert hessian_trace(matrix, method=method, probes=24, seed=3).value == first.value
    assert hessian_trace(matrix, method=method, probes=24, seed=4).value != first.value


@pytest.mark.parametrize("method", METHODS)
def test_rel_error_stops_by_the_standard_error(method):
    matrix = symmetric(300) + 60 * torch.eye(300, dtype=DOUBLE)
    estimate = hessian_trace(Dense(matrix), method=method, probes=270, rel_error=0.005)
    assert 20 <= estimate.hvps < 270
    assert estimate.stopped == "rel_error"
    assert estimate.stderr <= 0.005 * abs(estimate.value)
    if method != "hutch++":  # Whose sketch is a third of the products it may take.
        fixed = hessian_trace(Dense(matrix), method=method, probes=estimate.hvps)
        assert (fixed.value, fixed.stderr) == (estimate.value, estimate.stderr)
        assert fixed.stopped == "probes"


def test_rel_error_takes_twenty_products_at_least_and_probes_at_most():
    exact = Dense(torch.eye(300, dtype=DOUBLE))
    assert hessian_trace(exact, method="hutchinson", rel_error=0.5).samples == 20
    assert hessian_trace(exact, method="xtrace", rel_error=0.5).samples == 10
    traceless = symmetric(30)
    traceless -= traceless.trace() / 30 * torch.eye(30)
    estimate = hessian_trace(Dense(traceless), probes=25, rel_error=1e-6)
    # XTrace takes products in pairs.
    assert (estimate.hvps, estimate.stopped) == (24, "probes")


class Slow(Dense):
    """Each call takes 20 ms; from a certain one on it is interrupted."""

    calls, interrupted_at = 0, None

    def matmat(self, vectors):
        self.calls += 1
        if self.calls == self.interrupted_at:
            raise KeyboardInterrupt
        time.sleep(0.02)
        return super().matmat(vectors)


@pytest.mark.parametrize("method", METHODS)
def test_max_seconds_stops_with_what_there_is(method):
    estimate = hessian_trace(Slow(symmetric(300)), method=method, probes=270, max_seconds=0.15)
    assert estimate.stopped == "max_seconds"
    assert estimate.hvps < 270
    assert estimate.seconds < 0.4
    assert estimate.stderr > 0


@pytest.mark.parametrize("method", METHODS)
def test_an_interrupt_keeps_what_there_is(method):
    def measure(at, **settings):
        operator = Slow(symmetric(300))
        operator.interrupted_at = at
        return hessian_trace(operator, method=method, probes=120, **settings)

    partial = measure(5)
    assert partial.stopped == "interrupted"
    assert 0 < partial.stderr < math.inf
    with pytest.raises(KeyboardInterrupt):
        measure(1)
    with pytest.raises(KeyboardInterrupt):
        measure(5, keep_interrupted=False)


def test_one_probe_has_no_standard_error():
    estimate = hessian_trace(Dense(symmetric(4)), method="hutchinson", probes=1)
    assert math.isnan(estimate.stderr)
    assert estimate.to_dict()["stderr"] is None


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("probes", [25, 26])
def test_progress_ends_full(method, probes):
    calls = []
    hessian_trace(
        Dense(symmetric(30)),
        method=method,
        probes=probes,
        progress=lambda *call: calls.append(call),
    )
    dones = [done for _, done, _ in calls]
    assert dones == sorted(dones)
    assert {stage for stage, _, _ in calls} == {"trace"}
    assert calls[-1][1] == calls[-1][2] >= probes - 1


class Batched(OverBatches):
    """Batch b has the matrix c_b A; a batch is the tensor of its c, of which the mean counts."""

    description = "test"

    def _add_products(self, batch, count, rows, products):
        products.add_(rows @ self._model.hessian, alpha=count * batch.mean().item())
        return batch.mean()


@pytest.mark.parametrize("method", METHODS)
def test_the_error_of_the_data_is_that_of_batches_drawn_anew(method):
    model = Quadratic(decaying(30, 0.8))
    probes = 30 if method == "auto" else 24
    trace, estimates = model.hessian.trace().item(), []
    for seed in range(150):
        generator = torch.Generator().manual_seed(seed)
        batches = list(1 + torch.randn(12, 4, generator=generator, dtype=DOUBLE))
        operator = Batched(model, quadratic_loss, batches)
        estimates.append(hessian_trace(operator, method=method, probes=probes, seed=seed))
    data = torch.tensor([e.data_stderr for e in estimates])
    # The mean of 48 numbers of variance 1. Over 150 repetitions the mean is good to 2 %.
    assert data.square().mean().sqrt().item() == pytest.approx(trace / math.sqrt(48), rel=0.1)
    if method == "auto":
        covered = sum(abs(e.value - trace) <= 2.2 * e.total_stderr for e in estimates)
        # t with 11 degrees of freedom covers 95 % within 2.2 standard errors.
        assert 135 <= covered <= 149


def test_batches_that_agree_have_no_error_of_the_data():
    model = Quadratic(symmetric(30))
    estimate = hessian_trace(Hessian(model, quadratic_loss, [torch.zeros(3)] * 4), probes=25)
    assert estimate.data_stderr == pytest.approx(0, abs=1e-12)
    assert math.isnan(hessian_trace(Dense(symmetric(30)), probes=25).data_stderr)
    one = hessian_trace(Hessian(model, quadratic_loss, [torch.zeros(3)]), probes=25)
    assert math.isnan(one.data_stderr)
    assert one.total_stderr != one.total_stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"probes": 0}, "probes is 0"),
        ({"probes": 3, "method": "xtrace"}, "probes is 3: give at least 4 for 'xtrace'"),
        ({"rel_error": 0.0}, "rel_error is 0.0"),
        ({"rel_error": -1.0}, "rel_error is -1.0"),
        ({"max_seconds": 0.0}, "max_seconds is 0.0"),
        ({"method": "hutchinsen"}, "did you mean 'hutchinson'"),
        ({"method": "xtrace"}, "has 3 dimensions, too few for 'xtrace'"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        hessian_trace(Dense(symmetric(3)), **arguments)
