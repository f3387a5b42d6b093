import math
from itertools import pairwise

import pytest
import torch

from flatminima.errors import InputError
from flatminima.measure import LinearSGD

from .cases import DOUBLE


def jacobian(n, d, outputs=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, outputs, d, dtype=DOUBLE, generator=generator)


def by_kronecker(rows, batch_size):
    """2 / lambda_max(C^+ D) with dense matrices on vec(M)."""
    n, _, d = rows.shape
    p = 0.0 if batch_size == n else (n - batch_size) / (batch_size * (n - 1))
    each = rows.mT @ rows
    h, eye = each.mean(0), torch.eye(d, dtype=DOUBLE)
    c = (torch.kron(h, eye) + torch.kron(eye, h)) / 2
    d_ = (1 - p) * torch.kron(h, h) + p * torch.stack([torch.kron(e, e) for e in each]).mean(0)
    product = torch.linalg.pinv(c, hermitian=True, rtol=1e-10) @ d_
    return 2 / torch.linalg.eigvals(product).real.max().item()


CASES = [(6, 9, 1), (9, 4, 1), (5, 7, 2), (7, 6, 2), (4, 4, 3)]


@pytest.mark.parametrize(("n", "d", "outputs"), CASES)
def test_the_lanczos_method_finds_the_dense_eigenvalue(n, d, outputs):
    rows = jacobian(n, d, outputs)
    found = LinearSGD(rows)
    for batch_size in range(1, n + 1):
        threshold = found.threshold(batch_size)
        assert threshold.converged
        assert threshold.value == pytest.approx(by_kronecker(rows, batch_size), rel=1e-8)


@pytest.mark.parametrize(("n", "d", "outputs"), CASES)
def test_it_rises_with_the_batch_size_to_that_of_gradient_descent(n, d, outputs):
    rows = jacobian(n, d, outputs, seed=1)
    found = LinearSGD(rows)
    values = [found.threshold(size).value for size in range(1, n + 1)]
    assert all(a <= b * (1 + 1e-9) for a, b in pairwise(values))
    top = torch.linalg.eigvalsh((rows.mT @ rows).mean(0))[-1].item()
    assert values[-1] == pytest.approx(2 / top)
    assert found.mean_threshold() == pytest.approx(2 / top)


@pytest.mark.parametrize(("n", "d", "outputs"), CASES)
def test_no_necessary_bound_is_below_it(n, d, outputs):
    found = LinearSGD(jacobian(n, d, outputs, seed=2))
    for size in range(1, n + 1):
        value = found.threshold(size).value
        assert value <= found.frobenius_bound(size) * (1 + 1e-9)
        assert value <= found.trace_bound(size) * (1 + 1e-9)
        assert value <= found.mean_threshold() * (1 + 1e-9)


def test_traces_and_norms_are_those_of_the_hessian():
    rows = jacobian(5, 8, 2)
    each = rows.mT @ rows
    found = LinearSGD(rows)
    assert found.trace == pytest.approx(each.mean(0).trace().item())
    assert found.frobenius == pytest.approx(each.mean(0).norm().item())
    assert found.sample_frobenius == pytest.approx(each.square().sum((1, 2)).mean().item())
    assert found.top == pytest.approx(torch.linalg.eigvalsh(each.mean(0))[-1].item())


def test_like_samples_have_one_threshold():
    found = LinearSGD(jacobian(1, 6).repeat(4, 1, 1))
    square = jacobian(1, 6).square().sum().item()
    for size in (1, 2, 4):
        assert found.threshold(size).value == pytest.approx(2 / square)


def test_orthogonal_samples_are_far_below_gradient_descent():
    found = LinearSGD(3 * torch.eye(5, 7, dtype=DOUBLE))
    assert found.threshold(1).value == pytest.approx(2 / 9)
    assert found.mean_threshold() == pytest.approx(2 * 5 / 9)
    assert found.trace_bound(1) == pytest.approx(2 / 9)


def test_the_trace_rule_of_one_output_is_wrong_for_two():
    found = LinearSGD(torch.eye(2, 4, dtype=DOUBLE)[None].repeat(3, 1, 1))
    assert found.trace == pytest.approx(2.0)
    assert found.threshold(1).value == pytest.approx(2.0)
    assert found.trace_bound(1) == pytest.approx(2.0)


def test_simulated_runs_shrink_below_it_and_explode_above():
    rows = jacobian(6, 9)[:, 0]
    found = LinearSGD(rows)
    generator = torch.Generator().manual_seed(3)
    for size in (1, 2, 3):
        edge = found.threshold(size).value
        for factor, stays in ((0.5, True), (0.9, True), (1.6, False)):
            # The second moment itself: the mean over runs is that of rare ones.
            moment = torch.eye(9, dtype=DOUBLE)
            eye, h = torch.eye(9, dtype=DOUBLE), rows.T @ rows / 6
            p = found.part(size)
            for _ in range(4000):
                mean = (eye - factor * edge * h) @ moment @ (eye - factor * edge * h)
                steps = eye - factor * edge * rows[:, :, None] * rows[:, None]
                moment = (1 - p) * mean + p * (steps @ moment @ steps).mean(0)
            in_range = (rows @ moment @ rows.T).trace().item()
            assert (in_range < 1e-3) == stays
        u = torch.randn(200, 9, dtype=DOUBLE, generator=generator)
        start = (u @ rows.T).square().mean()
        for _ in range(400):
            picks = torch.rand(200, 6, generator=generator).argsort(1)[:, :size]
            g = rows[picks]
            u = u - 0.5 * edge / size * ((g @ u[:, :, None]) * g).sum(1)
        assert (u @ rows.T).square().mean() < 0.1 * start


def test_float32_rows_will_do():
    rows = jacobian(6, 2000)
    one, other = LinearSGD(rows), LinearSGD(rows.float())
    assert len(other.eigenvalues) == 6
    assert other.threshold(2).value == pytest.approx(one.threshold(2).value, rel=1e-5)


def test_a_flat_loss_is_stable_at_every_rate():
    found = LinearSGD(torch.zeros(3, 5))
    assert found.threshold(1).value == found.mean_threshold() == math.inf
    assert found.trace_bound(1) == found.frobenius_bound(1) == math.inf


def test_a_cut_short_iteration_says_so():
    found = LinearSGD(jacobian(6, 9))
    rough, exact = found.threshold(1, max_steps=2), found.threshold(1)
    assert not rough.converged
    assert rough.steps == 2
    assert rough.value - rough.error <= exact.value <= rough.value


def test_bad_arguments_are_refused():
    found = LinearSGD(jacobian(4, 3))
    for size in (0, 5):
        with pytest.raises(InputError, match=f"batch_size is {size}: give 1 to 4"):
            found.threshold(size)
    with pytest.raises(InputError, match=r"shape \(3,\)"):
        LinearSGD(torch.zeros(3))
    with pytest.raises(InputError, match="not finite"):
        LinearSGD(torch.full((2, 2), math.nan))
