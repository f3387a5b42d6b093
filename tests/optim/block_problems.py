"""Small problems that the tests of block coordinate descent share."""

import numpy as np
import scipy.sparse as sparse

from flatminima.optim.block_coordinate import LeastSquares, Logistic, Quadratic, Softmax


def data(n=40, p=12, seed=0):
    """Columns of different lengths that depend on each other."""
    rng = np.random.default_rng(seed)
    A = (rng.standard_normal((n, p)) + 0.4) * rng.uniform(0.4, 2, p)
    return A * (rng.random((n, p)) < 0.7), rng.standard_normal(n), rng


def lattice(side, labelled=20, seed=0):
    """The weights of a square lattice, and labels of -1 and 1 at a few nodes."""
    line = sparse.diags([1.0, 1.0], [-1, 1], shape=(side, side))
    eye = sparse.identity(side)
    weights = (sparse.kron(line, eye) + sparse.kron(eye, line)).tocsc()
    rng = np.random.default_rng(seed)
    labels = np.full(side * side, np.nan)
    labels[rng.choice(side * side, labelled, replace=False)] = rng.choice([-1.0, 1.0], labelled)
    return weights, labels


def least_squares(**options):
    A, y, _ = data(**options)
    return LeastSquares(A, y)


def every():
    """One of each kind, with a ridge on some variables."""
    A, y, rng = data()
    l2 = rng.uniform(0, 1, 12) * (rng.random(12) < 0.5)
    M = A.T @ A
    return [
        LeastSquares(A, y, l2=l2),
        Logistic(A, np.sign(y), l2=l2),
        Softmax(A, rng.integers(0, 4, 40), l2=np.repeat(l2, 4)),
        Quadratic(M, A.T @ y, l2=l2),
        Quadratic(sparse.csc_matrix(M), A.T @ y, l2=l2),
    ]
