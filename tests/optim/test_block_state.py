"""Going on from a saved state, what comes back, and bad input to the solver."""

import tracemalloc

import numpy as np
import pytest
import scipy.sparse as sparse
import torch
from block_problems import data, lattice

import flatminima
from flatminima.errors import InputError
from flatminima.optim.block_coordinate import (
    GreedyBCD,
    LabelPropagation,
    LeastSquares,
    Logistic,
    Quadratic,
)

A, Y, _ = data()


@pytest.mark.parametrize("update", ["lb", "hb", "newton", "la", "tmp"])
@pytest.mark.parametrize("rule", ["random", "cyclic", "lipschitz", "gs", "gsl", "gsd", "gsq"])
@pytest.mark.parametrize("how", ["sort", None])
def test_saving_and_going_on_is_never_having_stopped(tmp_path, how, rule, update):
    def made(seed):
        options = {"selection": rule, "partition": how, "update": update, "seed": seed}
        return GreedyBCD(Logistic(A, np.sign(Y)), 5, **options)

    through = made(1)
    through.run(40)
    stopped = made(1)
    stopped.run(17)
    torch.save(stopped.state_dict(), tmp_path / "state.pt")
    resumed = made(2)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    resumed.run(23)
    assert np.array_equal(resumed.x, through.x)
    assert resumed.value() == through.value()
    assert resumed.identified_at == through.identified_at


def test_a_state_does_not_change_when_the_solver_goes_on():
    solver = GreedyBCD(LeastSquares(A, Y), 4, selection="random")
    solver.run(3)
    state = solver.state_dict()
    solver.run(5)
    wanted = solver.x
    for _ in range(2):
        solver.load_state_dict(state)
        solver.run(5)
        assert np.array_equal(solver.x, wanted)


def test_resuming_a_tree_solver_across_a_refresh_of_the_margins():
    weights, labels = lattice(6, 6)

    def made():
        problem = LabelPropagation(weights, labels)
        return GreedyBCD(problem, 3, partition=None, selection="random", update="tree")

    through, stopped, resumed = made(), made(), made()
    through.run(1040)
    stopped.run(990)
    resumed.load_state_dict(stopped.state_dict())
    resumed.run(50)
    assert np.array_equal(resumed.x, through.x)


def test_a_state_of_another_solver_is_refused():
    state = GreedyBCD(LeastSquares(A, Y), 4).state_dict()
    for other in (
        GreedyBCD(LeastSquares(A, Y), 3),
        GreedyBCD(LeastSquares(A, Y), 4, selection="gs"),
        GreedyBCD(LeastSquares(A[:20], Y[:20]), 4),
    ):
        with pytest.raises(InputError, match="state is of a solver"):
            other.load_state_dict(state)
    for options in ({"partition": "order"}, {"partition": None}, {"l1": 0.1, "update": "lb"}):
        made = {"update": "lb"} | options
        state = GreedyBCD(LeastSquares(A, Y), 4, update="lb").state_dict()
        with pytest.raises(InputError, match="other blocks, another l1 or bounds"):
            GreedyBCD(LeastSquares(A, Y), 4, **made).load_state_dict(state)


def test_margins_stay_true_over_many_steps():
    solver = GreedyBCD(LeastSquares(A, Y), 2, selection="random", update="lb", partition=None)
    solver.run(2500)
    np.testing.assert_allclose(solver.state_dict()["margins"].numpy(), A @ solver.x, atol=1e-10)


def test_the_solver_stops_where_the_gradient_is_small():
    found = GreedyBCD(LeastSquares(A, Y), 4).run(10_000, 1e-6)
    assert found.converged
    assert found.steps < 10_000
    assert np.abs(A.T @ (A @ found.x - Y)).max() <= 1e-6
    assert "converged after" in str(found)


def test_what_comes_back_can_be_changed_without_harm():
    solver = GreedyBCD(LeastSquares(A, Y), 4)
    solver.run(3)
    before = solver.value()
    solver.x[:] = 7
    solver.run(0).x[:] = 7
    assert solver.value() == before


def test_the_data_are_left_as_they_were():
    matrix, y = A.copy(), Y.copy()
    start = np.ones(12)
    GreedyBCD(LeastSquares(matrix, y), 4, start=start).run(20)
    assert np.array_equal(matrix, A)
    assert np.array_equal(y, Y)
    assert (start == 1).all()


@pytest.mark.parametrize("how", ["sort", None])
def test_memory_is_that_of_the_non_zeros_and_the_vectors(how):
    matrix = sparse.random(4000, 3000, 0.005, format="csc", random_state=0)
    y = np.ones(4000)
    GreedyBCD(LeastSquares(matrix, y), 10, partition=how).run(2)
    tracemalloc.start()
    GreedyBCD(LeastSquares(matrix, y), 10, partition=how).run(30)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # A dense copy would take 8 x 4000 x 3000 = 96 MB.
    assert peak < 3 * 12 * matrix.nnz + 12 * 8 * 7000 + 8 * 10 * 3000


def test_blocks_may_be_given_and_the_last_may_be_short():
    blocks = [[0, 5], torch.tensor([1, 2, 3]), np.arange(6, 12), [4]]
    solver = GreedyBCD(LeastSquares(A, Y), None, partition=blocks)
    assert solver.run(3000, 1e-8).converged
    assert [b.size for b in GreedyBCD(LeastSquares(A, Y), 5).blocks.blocks] == [5, 5, 2]


def test_partitions_are_what_they_say():
    objective = LeastSquares(A, Y)
    bounds = objective.lipschitz

    def blocks(how):
        return GreedyBCD(objective, 4, partition=how).blocks.blocks

    assert [b.tolist() for b in blocks("order")] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    lowest = [bounds[b].min() for b in blocks("sort")]
    highest = [bounds[b].max() for b in blocks("sort")]
    assert lowest[0] >= highest[1]
    assert lowest[1] >= highest[2]
    ranked = np.argsort(-bounds)
    assert set(blocks("average")[0]) == {*ranked[:2], *ranked[-2:]}


BAD = {
    "selection": ({"selection": "gss"}, "unknown selection 'gss'"),
    "update": ({"update": "h"}, "unknown update"),
    "partition": ({"partition": "sorted"}, "did you mean 'sort'"),
    "no size": ({"block_size": None}, "block_size is missing"),
    "size 0": ({"block_size": 0}, "1 to the number of variables, 12"),
    "size 13": ({"block_size": 13}, "1 to the number of variables, 12"),
    "half": ({"block_size": 2.5}, "whole number"),
    "true": ({"block_size": True}, "whole number"),
    "missing": ({"partition": [[0, 1], [2, 3]]}, "variable 4 is in 0 of them"),
    "twice": ({"partition": [list(range(12)), [3]]}, "variable 3 is in 2 of them"),
    "outside": ({"partition": [[0, 12]]}, "0 to 11"),
    "no blocks": ({"partition": []}, "variable 0 is in 0"),
    "empty block": ({"partition": [[], list(range(12))]}, "list of variables"),
    "start": ({"start": np.ones(3)}, "start has the shape"),
    "start nan": ({"start": np.full(12, np.nan)}, "nan"),
    "objective": ({"objective": A}, "give a Smooth"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_says_what_is_wrong(case):
    options, words = BAD[case]
    given = {"objective": LeastSquares(A, Y), "block_size": 3, **options}
    with pytest.raises(InputError, match=words):
        GreedyBCD(**given)


def test_an_objective_that_is_not_convex_is_noticed():
    solver = GreedyBCD(Quadratic([[1.0, 3], [3, 1]], np.ones(2)), 2, partition=None)
    with pytest.raises(InputError, match="convex"):
        solver.step()


def test_a_run_asks_for_steps_and_a_tolerance():
    solver = GreedyBCD(LeastSquares(A, Y), 3)
    with pytest.raises(InputError, match="0 or more"):
        solver.run(-1)
    with pytest.raises(InputError, match="0 or more"):
        solver.run(5, np.nan)


def test_it_has_a_card_and_a_public_name():
    assert flatminima.GreedyBCD is GreedyBCD
    assert any("greedy-bcd" in card.aliases for card in flatminima.optim.CARDS)
