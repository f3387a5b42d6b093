import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flatminima.errors import InputError
from flatminima.measure import Dense, Hessian, LowRank, top_eigenvalues
from flatminima.measure.lanczos import Lanczos

from .cases import DOUBLE, MODELS, cross_entropy, decaying, dense_hessian, split, symmetric


def leading(matrix, k, which):
    values = torch.linalg.eigvalsh(matrix)
    key = {"largest": -values, "smallest": values, "magnitude": -values.abs()}[which]
    return values[key.argsort()[:k]]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.integers(1, 30),
    st.integers(0, 10_000),
    st.integers(1, 4),
    st.sampled_from(["largest", "smallest", "magnitude"]),
    st.floats(1e-3, 1e3),
)
def test_agrees_with_eigvalsh(n, seed, k, which, spread):
    k = min(k, n)
    matrix = symmetric(n, seed, spread)
    found = top_eigenvalues(Dense(matrix), k, which=which, tol=1e-8, vectors=True, seed=seed)
    assert found.converged
    # An eigenvalue lies within its residual, itself at most 1e-8 of it, or at rounding.
    expected = leading(matrix, k, which)
    size = matrix.abs().max().item()
    assert torch.tensor(found.values) == pytest.approx(expected.numpy(), rel=1e-6, abs=1e-12 * size)
    gram = found.vectors.T @ found.vectors
    assert torch.allclose(gram, torch.eye(k, dtype=DOUBLE), atol=1e-8)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(2, 30), st.integers(0, 10_000), st.integers(1, 6))
def test_the_residual_bounds_the_error_however_early_it_stops(n, seed, steps):
    matrix = symmetric(n, seed)
    k = min(2, n)
    found = top_eigenvalues(Dense(matrix), k, tol=1e-15, max_steps=steps, seed=seed)
    spectrum = torch.linalg.eigvalsh(matrix)
    for value, residual in zip(found.values, found.residuals, strict=True):
        assert (spectrum - value).abs().min().item() <= residual + 1e-12
    assert found.steps == min(steps, -(-n // k))


@pytest.mark.parametrize("name", MODELS)
def test_hessians_of_networks(name):
    model, batch = MODELS[name]()
    size = len(batch[1])
    operator = Hessian(model, cross_entropy, split(batch, size - 3, 3))
    spectrum = torch.linalg.eigvalsh(dense_hessian(model, batch))
    found = top_eigenvalues(operator, 2, tol=1e-6)
    assert found.values == pytest.approx(spectrum[[-1, -2]].numpy(), rel=1e-5)
    assert found.hvps == 2 * found.steps + 2
    assert found.hvps < operator.shape[0]


def test_stops_at_the_tolerance():
    matrix = torch.linspace(0, 1, 300, dtype=DOUBLE).square().diag()
    matrix[-1, -1] = 3.0
    found = top_eigenvalues(Dense(matrix), tol=1e-3)
    assert found.converged
    assert found.residual <= 3e-3
    assert found.steps < 20
    assert not top_eigenvalues(Dense(matrix), tol=1e-3, max_steps=2).converged


@pytest.mark.parametrize(
    ("diagonal", "k"),
    [
        ([1.0] * 5, 3),
        ([0.0] * 4, 2),
        ([2.0, 2.0, 1.0, 1.0, 1.0, 1.0], 3),
        ([5.0, 0.0, 0.0, 0.0], 4),
        ([7.0], 1),
        ([-1.0, -1.0, -2.0], 1),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_repeated_eigenvalues_and_exhausted_krylov_spaces(diagonal, k, dtype):
    turn, _ = torch.linalg.qr(symmetric(len(diagonal)))
    matrix = (turn @ torch.tensor(diagonal, dtype=DOUBLE).diag() @ turn.T).to(dtype)
    found = top_eigenvalues(Dense(matrix), k)
    expected = sorted(diagonal, reverse=True)[:k]
    # Ritz values lie within 10 eps of the spectrum's size, 7 at most.
    assert found.values == pytest.approx(expected, abs=100 * torch.finfo(dtype).eps)
    assert found.converged


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(-2, 2), min_size=2, max_size=20),
    st.integers(0, 10_000),
    st.sampled_from(["largest", "smallest", "magnitude"]),
)
def test_repeated_eigenvalues_are_found_as_often(diagonal, seed, which):
    turn, _ = torch.linalg.qr(symmetric(len(diagonal), seed))
    matrix = turn @ torch.tensor(diagonal, dtype=DOUBLE).diag() @ turn.T
    k = min(3, len(diagonal))
    found = top_eigenvalues(Dense(matrix), k, which=which, tol=1e-6, seed=seed)
    sign = {"largest": -1, "smallest": 1, "magnitude": -1}[which]
    size = abs if which == "magnitude" else float
    expected = sorted(map(size, diagonal), key=lambda value: sign * value)[:k]
    # The residuals are at most 1e-6 of the values, which are at most 2.
    assert list(map(size, found.values)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("block", [1, 2, 3, 7])
def test_many_eigenvalues_by_blocks_of_any_width(block):
    matrix = decaying(120, 0.9)
    found = top_eigenvalues(Dense(matrix), 7, block=block, tol=1e-6, vectors=True)
    assert found.converged
    assert found.values == pytest.approx(leading(matrix, 7, "largest").numpy(), rel=1e-6)
    # One product more than the steps' says whether the residuals are right.
    assert found.hvps == block * found.steps + 1
    off = matrix @ found.vectors - found.vectors * torch.tensor(found.values, dtype=DOUBLE)
    residuals = torch.linalg.vector_norm(off, dim=0)
    assert residuals.numpy() == pytest.approx(found.residuals, rel=1e-3, abs=1e-12)


def test_residuals_that_a_product_contradicts_are_computed():
    matrix = decaying(60, 0.9)

    class Moved(Dense):
        """Another matrix from the 31st product on."""

        def matmat(self, vectors):
            products = super().matmat(vectors)
            return products if self.hvps <= 30 else products + symmetric(60) @ vectors

    found = top_eigenvalues(Moved(matrix), 5, max_steps=10)
    assert found.hvps == 30 + 1 + 5
    assert min(found.residuals) > 1
    assert not found.converged


def test_as_many_values_as_asked_however_few_the_steps():
    found = top_eigenvalues(Dense(symmetric(50)), 10, max_steps=1)
    assert (len(found.values), found.steps, found.converged) == (10, 4, False)


def test_one_eigenvalue_stops_at_the_first_exhausted_space():
    assert top_eigenvalues(Dense(torch.eye(50, dtype=DOUBLE))).steps == 1


def test_float32_stays_orthogonal():
    matrix = torch.logspace(-6, 2, 200).diag()
    found = top_eigenvalues(Dense(matrix), 5, tol=1e-5, max_steps=200, vectors=True)
    assert found.values == pytest.approx(sorted(matrix.diagonal().tolist())[:-6:-1], rel=1e-4)
    assert torch.allclose(found.vectors.T @ found.vectors, torch.eye(5), atol=1e-5)


def test_the_seed_decides_alone():
    matrix = Dense(symmetric(30))
    one = top_eigenvalues(matrix, max_steps=5, seed=1)
    assert one.values == top_eigenvalues(matrix, max_steps=5, seed=1).values
    assert one.values != top_eigenvalues(matrix, max_steps=5, seed=2).values


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.integers(20, 80),
    st.integers(0, 10_000),
    st.integers(1, 4),
    st.sampled_from(["largest", "smallest", "magnitude"]),
    st.integers(0, 10),
)
def test_restarts_do_not_change_the_answer(n, seed, k, which, spare):
    matrix = symmetric(n, seed)
    found = top_eigenvalues(
        Dense(matrix),
        k,
        which=which,
        tol=1e-6,
        max_steps=3000,
        max_basis=min(n, 3 * k + 2 + spare),
        vectors=True,
        seed=seed,
    )
    assert found.converged
    assert found.values == pytest.approx(leading(matrix, k, which).numpy(), abs=1e-5)
    gram = found.vectors.T @ found.vectors
    assert torch.allclose(gram, torch.eye(k, dtype=DOUBLE), atol=1e-8)


def test_a_restarted_basis_needs_little_more_and_keeps_its_size():
    operator = LowRank(torch.eye(2000, 40, dtype=DOUBLE), torch.linspace(1, 2, 40, dtype=DOUBLE))
    free = top_eigenvalues(operator, 3, tol=1e-6)
    lanczos = Lanczos(operator, 3, 0, 20)
    for _ in range(40):
        lanczos.step(3, "largest")
        assert lanczos.size <= 20
    bounded = top_eigenvalues(operator, 3, tol=1e-6, max_basis=20)
    assert bounded.converged
    assert bounded.values == pytest.approx(free.values, rel=1e-9)
    assert free.hvps < bounded.hvps < 4 * free.hvps


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_restarts_with_repeated_eigenvalues(dtype):
    values = torch.tensor([3.0] * 3 + [2.0] * 4 + [1.0] * 60 + [-1.0] * 20, dtype=DOUBLE)
    turn, _ = torch.linalg.qr(symmetric(len(values)))
    matrix = ((turn * values) @ turn.T).to(dtype)
    found = top_eigenvalues(Dense(matrix), 5, max_basis=17, max_steps=500)
    assert found.converged
    assert found.values == pytest.approx([3, 3, 3, 2, 2], rel=1e-4)


class Stopping(Dense):
    """Interrupted at its n-th call, or slow."""

    calls, interrupted_at, pause = 0, None, 0.0

    def matmat(self, vectors):
        self.calls += 1
        if self.calls == self.interrupted_at:
            raise KeyboardInterrupt
        time.sleep(self.pause)
        return super().matmat(vectors)


def test_an_interrupt_keeps_what_there_is():
    operator = Stopping(symmetric(50))
    operator.interrupted_at = 5
    found = top_eigenvalues(operator, tol=1e-12)
    assert (found.stopped, found.steps, found.converged) == ("interrupted", 4, False)
    spectrum = torch.linalg.eigvalsh(operator.matrix)
    assert (spectrum - found.value).abs().min().item() <= found.residual
    for at, keep in ((1, True), (2, False)):
        operator.calls, operator.interrupted_at = 0, at
        with pytest.raises(KeyboardInterrupt):
            top_eigenvalues(operator, tol=1e-12, keep_interrupted=keep)


def test_max_seconds_stops_with_what_there_is():
    operator = Stopping(symmetric(50))
    operator.pause = 0.02
    found = top_eigenvalues(operator, tol=1e-12, max_seconds=0.12)
    assert found.stopped == "max_seconds"
    assert 1 <= found.steps < 8
    assert top_eigenvalues(operator, tol=1e-12, max_seconds=1e-9).steps == 1


def test_progress_ends_full():
    calls = []
    found = top_eigenvalues(Dense(symmetric(30)), progress=lambda *call: calls.append(call))
    assert calls[0] == ("eigenvalues", 1, 100)
    assert calls[-1] == ("eigenvalues", found.steps, found.steps)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 4}, "k is 4: the operator has 3"),
        ({"k": 0}, "k is 0"),
        ({"which": "largst"}, "did you mean 'largest'"),
        ({"max_steps": 0}, "max_steps is 0"),
        ({"tol": 0.0}, "tol is 0"),
        ({"max_basis": 2}, "max_basis is 2: give at least 3 for k = 1"),
        ({"max_seconds": 0.0}, "max_seconds is 0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        top_eigenvalues(Dense(symmetric(3)), **arguments)
