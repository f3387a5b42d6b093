"""Conjugate gradients, and what they notice."""

import pytest
import torch

from flatminima.errors import InputError
from flatminima.tuning.maid import (
    MAID,
    Regularity,
    inexact_hypergradient,
)
from flatminima.tuning.maid.conjugate import conjugate_gradients

from .maid_cases import DOUBLE, random


@pytest.mark.parametrize("n", [1, 7])
@pytest.mark.parametrize("tolerance", [1e-2, 1e-10])
def test_conjugate_gradients_solve_as_a_dense_solver_does(n, tolerance):
    root = random(n, n)
    a, b = root @ root.T + torch.eye(n, dtype=DOUBLE), random(n, seed=5)
    for start in (None, random(n, seed=6)):
        q, left = conjugate_gradients(lambda v: a @ v, b, start, tolerance, least=1.0)
        assert left <= tolerance
        assert torch.linalg.vector_norm(a @ q - b).item() == pytest.approx(left, abs=1e-13)
        exact = torch.linalg.solve(a, b)
        assert torch.linalg.vector_norm(q - exact) <= tolerance
    calls = []
    q, _ = conjugate_gradients(calls.append, 1e-3 * b, None, 1.0)
    assert not q.any()
    assert not calls


def test_a_tolerance_below_rounding_ends_with_the_true_residual():
    turn = torch.linalg.qr(random(12, 12))[0]
    a = turn @ torch.diag(torch.logspace(-3, 3, 12, dtype=DOUBLE)) @ turn.T
    a, b = (a + a.T) / 2, random(12)
    q, left = conjugate_gradients(lambda v: a @ v, b, None, 1e-30, least=1e-3, most=5000)
    assert left == pytest.approx(torch.linalg.vector_norm(a @ q - b).item())
    assert left > 1e-30


@pytest.mark.parametrize(
    ("eigenvalues", "least", "words"),
    [
        ([1.0, -0.5], 0.1, "not strongly convex.*negative"),
        ([1.0, 0.0], 0.1, "not strongly convex.*singular"),
        ([1.0, 0.01], 0.1, "less convex than it is said"),
    ],
)
def test_curvature_that_belies_the_modulus_is_found_and_explained(eigenvalues, least, words):
    a = torch.tensor(eigenvalues, dtype=DOUBLE)
    x = torch.ones(2, dtype=DOUBLE)

    def lower(x, theta):
        return 0.5 * (a * x * x).sum() - (theta * x).sum()

    def constants(x, theta):
        return Regularity(strong=least, upper=1.0, cross=0.0, coupling=1.0)

    def upper(x, theta):
        return x.square().sum()

    with pytest.raises(InputError, match=words):
        MAID(upper, lower, x, x, regularity=constants)
    with pytest.raises(InputError, match=words):
        inexact_hypergradient(upper, lower, x, x, constants, accuracy=1e-9, residual=1e-9)
