"""Objectives of block coordinate descent against automatic differentiation and each other."""

import numpy as np
import pytest
import scipy.sparse as sparse
import torch
from block_problems import data, every, lattice
from torch.nn.functional import cross_entropy, softplus

from flatminima.errors import InputError
from flatminima.optim.block_coordinate import (
    GreedyBCD,
    LabelPropagation,
    LeastSquares,
    Logistic,
    Quadratic,
    Softmax,
)


def obvious(objective):
    """The same function, written down in torch."""
    l2 = torch.tensor(objective.l2.copy())
    if isinstance(objective, Quadratic):
        M = objective.M.toarray() if sparse.issparse(objective.M) else objective.M
        M, c = torch.tensor(M), torch.tensor(objective.c)
        return lambda x: 0.5 * x @ M @ x + 0.5 * (l2 * x * x).sum() - c @ x
    A, y = torch.tensor(np.array(objective.A)), torch.tensor(objective.y)
    if isinstance(objective, LeastSquares):
        loss = lambda x: 0.5 * (A @ x - y).square().sum()  # noqa: E731
    elif isinstance(objective, Logistic):
        loss = lambda x: softplus(-y * (A @ x)).sum()  # noqa: E731
    else:
        loss = lambda x: cross_entropy(A @ x.view(objective.shape), y, reduction="sum")  # noqa: E731
    return lambda x: loss(x) + 0.5 * (l2 * x * x).sum()


def name(objective):
    return type(objective).__name__


@pytest.mark.parametrize("objective", every(), ids=name)
def test_value_gradient_and_hessian_are_those_of_automatic_differentiation(objective):
    rng = np.random.default_rng(1)
    x = 0.3 * rng.standard_normal(objective.size)
    block = np.sort(rng.choice(objective.size, 7, replace=False))
    z, slow, at = objective.margins(x), obvious(objective), torch.tensor(x)
    assert objective.value(x, z) == pytest.approx(slow(at).item(), rel=1e-12)
    g = torch.func.grad(slow)(at).numpy()
    np.testing.assert_allclose(objective.gradient(x, z), g, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(objective.gradient_at(x, z, block), g[block], atol=1e-10)
    hessian = torch.func.hessian(slow)(at).numpy()[np.ix_(block, block)]
    np.testing.assert_allclose(objective.hessian(x, z, block), hessian, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("objective", every(), ids=name)
def test_margins_follow_a_step_on_a_block(objective):
    rng = np.random.default_rng(2)
    x, block = rng.standard_normal(objective.size), np.array([1, 4, 5])
    moved = x.copy()
    moved[block] += rng.standard_normal(3)
    z = objective.margins(x) + objective.shift(block, (moved - x)[block])
    np.testing.assert_allclose(z, objective.margins(moved), atol=1e-10)


@pytest.mark.parametrize("objective", every(), ids=name)
def test_the_bound_is_above_the_hessian_wherever_x_is(objective):
    rng = np.random.default_rng(3)
    for scale in (0, 0.1, 1, 5):
        x = scale * rng.standard_normal(objective.size)
        size = int(rng.integers(1, objective.size + 1))
        block = np.sort(rng.choice(objective.size, size, replace=False))
        bound = objective.bound(block)
        gap = bound - objective.hessian(x, objective.margins(x), block)
        assert np.linalg.eigvalsh(gap)[0] > -1e-9 * np.linalg.norm(bound)


@pytest.mark.parametrize("objective", every(), ids=name)
def test_the_whole_bound_and_its_diagonal_agree_with_the_block_of_all(objective):
    dense = objective.bound(np.arange(objective.size))
    d = np.random.default_rng(4).standard_normal(objective.size)
    np.testing.assert_allclose(objective.bound_times(d), dense @ d, atol=1e-8)
    largest = np.diag(dense)
    if isinstance(objective, Softmax):
        # A single variable has the bound of two classes, tighter than its place in all.
        largest = [objective.bound(np.array([i]))[0, 0] for i in range(objective.size)]
    np.testing.assert_allclose(objective.coordinate_bounds(), largest)


def test_the_bound_of_some_classes_is_tight_for_two_samples():
    # At p = (1/2, 1/2) over a class in the block and all others, the Hessian is the bound.
    objective = Softmax(np.ones((1, 1)), [2], classes=3)
    x = np.array([0.0, -50.0, 0.0])
    hessian = objective.hessian(x, objective.margins(x), np.array([0]))
    np.testing.assert_allclose(hessian, objective.bound(np.array([0])), rtol=1e-12)


def test_tau_times_the_diagonal_is_above_the_bound():
    for objective in every():
        block = np.arange(0, objective.size, 2)
        H = objective.bound(block)
        gap = block.size * np.diag(np.diag(H)) - H
        assert np.linalg.eigvalsh(gap)[0] > -1e-9 * np.linalg.norm(H)


@pytest.mark.parametrize("kind", [LeastSquares, Logistic, Softmax])
@pytest.mark.parametrize("convert", [sparse.csr_matrix, sparse.csc_array, torch.tensor])
def test_every_kind_of_matrix_gives_the_same_steps(kind, convert):
    A, y, rng = data()
    y = rng.integers(0, 3, 40) if kind is Softmax else np.sign(y)
    found = []
    for matrix in (A, convert(A)):
        solver = GreedyBCD(kind(matrix, y, l2=0.1), 3, selection="gsq", partition=None)
        found.append(solver.run(40).x)
    np.testing.assert_allclose(np.asarray(found[1]), found[0], atol=1e-9)
    assert isinstance(found[1], torch.Tensor) == (convert is torch.tensor)


def test_sparse_tensors_and_float32_stay_what_they_are():
    A, y, _ = data()
    matrix = torch.tensor(A, dtype=torch.float32)
    for given in (matrix, matrix.to_sparse(), matrix.to_sparse_csr()):
        solver = GreedyBCD(LeastSquares(given, torch.tensor(y)), 4)
        found = solver.run(300).x
        assert found.dtype == torch.float32
        wanted = np.linalg.lstsq(A, y, rcond=None)[0]
        np.testing.assert_allclose(found.numpy(), wanted, atol=2e-3)


def test_label_propagation_is_harmonic():
    weights, labels = lattice(8)
    objective = LabelPropagation(weights, labels)
    x = GreedyBCD(objective, None, partition=None, selection="gs", update="tree").run(300, 1e-10).x
    whole = labels.copy()
    whole[objective.unlabelled] = x
    mean = (weights @ whole) / np.asarray(weights.sum(1)).ravel()
    np.testing.assert_allclose(mean[objective.unlabelled], x, atol=1e-8)


def test_label_propagation_takes_dense_weights_too():
    weights, labels = lattice(6, 8)
    found = [
        GreedyBCD(LabelPropagation(w, labels), 5).run(400, 1e-10).x
        for w in (weights, weights.toarray())
    ]
    np.testing.assert_allclose(found[0], found[1], atol=1e-8)


BAD = {
    "nan": (lambda: LeastSquares([[np.nan]], [1.0]), "nan or infinite"),
    "infinite sparse": (lambda: LeastSquares(sparse.csr_matrix([[np.inf]]), [1.0]), "infinite"),
    "no columns": (lambda: LeastSquares(np.zeros((3, 0)), np.zeros(3)), "shape"),
    "a vector": (lambda: LeastSquares(np.zeros(3), np.zeros(3)), "rows and columns"),
    "complex": (lambda: LeastSquares(np.ones((2, 2)) * 1j, [1, 1]), "real numbers"),
    "words": (lambda: LeastSquares([["a"]], [1.0]), "real numbers"),
    "complex tensor": (lambda: LeastSquares(torch.ones(2, 2) * 1j, [1, 1]), "real numbers"),
    "rows": (lambda: LeastSquares(np.ones((3, 2)), np.ones(2)), "3 rows"),
    "ridge": (lambda: LeastSquares(np.ones((3, 2)), np.ones(3), l2=-1), "0 or above"),
    "0 and 1": (lambda: Logistic(np.ones((3, 2)), [0, 1, 1]), "-1 and 1"),
    "classes": (lambda: Softmax(np.ones((3, 2)), [0, 1, 5], classes=3), "0 to 2"),
    "part of a class": (lambda: Softmax(np.ones((3, 2)), [0, 1, 0.5]), "whole numbers"),
    "not square": (lambda: Quadratic(np.ones((3, 2)), np.ones(3)), "square"),
    "not symmetric": (lambda: Quadratic([[1.0, 2], [0, 1]], np.ones(2)), "symmetric"),
    "negative": (lambda: Quadratic([[-1.0, 0], [0, 1]], np.ones(2)), "below 0"),
    "c": (lambda: Quadratic(np.eye(2), np.ones(3)), "shape"),
    "weights": (lambda: LabelPropagation(-np.ones((2, 2)), [1, np.nan]), "below 0"),
    "asymmetric weights": (lambda: LabelPropagation([[0, 1], [2, 0]], [1, np.nan]), "symmetric"),
    "no label": (lambda: LabelPropagation(np.ones((2, 2)), [np.nan] * 2), "some numbers"),
    "far": (lambda: LabelPropagation(np.diag([1.0, 1]), [1, np.nan]), "no path"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_problems_say_what_is_wrong(case):
    make, words = BAD[case]
    with pytest.raises(InputError, match=words):
        make()
