"""Message passing against dense solves."""

import numpy as np
import pytest
import scipy.sparse as sparse
from block_problems import lattice
from hypothesis import given, settings
from hypothesis import strategies as st

from flatminima.errors import InputError
from flatminima.optim.block_coordinate import (
    Graph,
    GreedyBCD,
    LabelPropagation,
    LeastSquares,
    Quadratic,
    tree_solve,
)


def forest(size, seed, trees=2):
    """A positive definite matrix whose graph is a forest, its variables shuffled."""
    rng = np.random.default_rng(seed)
    M = np.zeros((size, size))
    for i in range(trees, size):
        parent = rng.integers(i)
        M[i, parent] = M[parent, i] = rng.standard_normal()
    M += np.diag(np.abs(M).sum(1) + rng.uniform(0.1, 1, size))
    shuffled = rng.permutation(size)
    return M[np.ix_(shuffled, shuffled)], rng.standard_normal(size)


def components(matrix):
    return sparse.csgraph.connected_components(matrix)[0]


def is_forest(matrix):
    edges = (np.triu(matrix, 1) != 0).sum()
    return edges == len(matrix) - components(matrix)


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 40), seed=st.integers(0, 10_000), trees=st.integers(1, 4))
def test_message_passing_is_the_dense_solve(size, seed, trees):
    M, c = forest(size, seed, trees)
    found = tree_solve(Graph(M).forest(np.arange(size)), np.diag(M), c)
    np.testing.assert_allclose(found, np.linalg.solve(M, c), rtol=1e-10, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(size=st.integers(2, 30), seed=st.integers(0, 10_000), density=st.floats(0.05, 0.6))
def test_the_largest_forest_is_a_forest_that_nothing_can_be_added_to(size, seed, density):
    rng = np.random.default_rng(seed)
    M = np.triu(rng.random((size, size)) < density, 1).astype(float)
    M += M.T
    order = rng.permutation(size)
    block = Graph(sparse.csc_matrix(M)).largest_forest(order)
    assert is_forest(M[np.ix_(block, block)])
    for i in set(range(size)) - set(block.tolist()):
        more = [*block.tolist(), i]
        assert not is_forest(M[np.ix_(more, more)])


def test_colours_have_no_edge_inside_and_a_lattice_has_two():
    weights, _ = lattice(7)
    blocks = Graph(weights).coloring()
    assert len(blocks) == 2
    for block in blocks:
        assert weights[block][:, block].nnz == 0
    assert sorted(np.concatenate(blocks).tolist()) == list(range(49))


def test_trees_cover_all_variables_with_forests():
    weights, _ = lattice(9)
    blocks = Graph(weights).trees()
    assert sorted(np.concatenate(blocks).tolist()) == list(range(81))
    assert all(is_forest(weights[b][:, b].toarray()) for b in blocks)
    assert max(b.size for b in blocks) > 40


def test_entries_that_are_zero_are_no_edges():
    M = sparse.csc_matrix(np.ones((3, 3)))
    M.data[:] = [2, 1, 0, 1, 2, 1, 0, 1, 2]
    assert Graph(M).forest(np.arange(3)).order == [0, 1, 2]


@pytest.mark.parametrize("how", ["red-black", "trees", None])
@pytest.mark.parametrize("rule", ["gs", "gsd", "random"])
def test_a_tree_step_is_the_dense_step_on_its_block(how, rule):
    weights, labels = lattice(8)
    objective = LabelPropagation(weights, labels)
    solver = GreedyBCD(objective, None, selection=rule, partition=how, update="tree")
    for _ in range(5):
        x, g = solver.x, solver.gradient()
        block = solver.step()
        x[block] -= np.linalg.solve(objective.bound(block), g[block])
        np.testing.assert_allclose(solver.x, x, atol=1e-12)


def test_a_forest_with_a_ridge_is_solved_in_one_step():
    M, c = forest(25, 0)
    objective = Quadratic(sparse.csr_matrix(M), c, l2=0.3)
    found = GreedyBCD(objective, None, selection="gs", partition=None, update="tree").run(1).x
    np.testing.assert_allclose(found, np.linalg.solve(M + 0.3 * np.eye(25), c), atol=1e-12)


def test_trees_can_be_kept_small():
    weights, labels = lattice(8)
    solver = GreedyBCD(
        LabelPropagation(weights, labels), 10, selection="gs", partition=None, update="tree"
    )
    assert solver.step().size == 10


def test_greedy_trees_beat_random_trees_red_and_black_and_small_blocks():
    weights, labels = lattice(12, 12)
    objective = LabelPropagation(weights, labels)
    best = GreedyBCD(objective, objective.size, update="hb").run(1).value

    def gap(**options):
        return GreedyBCD(objective, **options).run(30).value - best

    greedy = gap(block_size=None, selection="gs", partition=None, update="tree")
    at_random = gap(block_size=None, selection="random", partition=None, update="tree")
    colours = gap(block_size=None, selection="cyclic", partition="red-black", update="tree")
    small = gap(block_size=5, selection="gs", partition=None)
    assert greedy < at_random < colours < small


def test_what_is_no_forest_is_refused():
    weights, labels = lattice(5, 3)
    objective = LabelPropagation(weights, labels)
    with pytest.raises(InputError, match="cycle"):
        GreedyBCD(objective, objective.size, partition="order", update="tree")
    A = np.ones((3, 2))
    with pytest.raises(InputError, match="Quadratic"):
        GreedyBCD(LeastSquares(A, np.ones(3)), 1, update="tree")
    with pytest.raises(InputError, match="Quadratic"):
        GreedyBCD(LeastSquares(A, np.ones(3)), 1, partition="trees")
    with pytest.raises(InputError, match="gsq"):
        GreedyBCD(objective, None, partition=None, selection="gsq", update="tree")


def test_a_singular_tree_says_so():
    path = np.array([[1.0, -1, 0], [-1, 2, -1], [0, -1, 1]])
    solver = GreedyBCD(
        Quadratic(path, np.ones(3)), None, selection="gs", partition=None, update="tree"
    )
    with pytest.raises(InputError, match="singular"):
        solver.step()
