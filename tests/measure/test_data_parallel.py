"""Two processes with a part of the batches each measure what one does with all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flatminima.errors import InputError
from flatminima.measure import Hessian

from . import product_ranks as ranks
from .cases import cross_entropy, mlp


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    directory = tmp_path_factory.mktemp("ranks")
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", ranks.__name__]
    processes = [
        subprocess.Popen([*command, str(rank), str(directory)], env=environment)
        for rank in range(2)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    return [torch.load(directory / f"{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def alone():
    return ranks.measured(mlp()[0])


@pytest.mark.slow
@pytest.mark.parametrize("model", ["found", "wrapped"])
def test_products_losses_and_counts_are_those_of_one_process(results, alone, model):
    for found in (result[model] for result in results):
        for name, (products, loss, samples, gradients) in alone[0].items():
            close = 1e-6 if name == "differences" else 1e-12
            assert (found[0][name][0] - products).norm() < close * products.norm()
            assert found[0][name][1] == pytest.approx(loss, rel=1e-14)
            assert found[0][name][2] == samples == 24
            assert found[0][name][3] == gradients


@pytest.mark.slow
def test_estimates_are_those_of_one_process_with_the_error_of_the_data(results, alone):
    for result in results:
        _, trace, top = result["found"]
        assert trace == pytest.approx(alone[1], rel=1e-9)
        assert top == pytest.approx(alone[2], rel=1e-9)


@pytest.mark.slow
def test_ranks_agree_bit_for_bit(results):
    one, other = (result["found"] for result in results)
    for name in one[0]:
        assert torch.equal(one[0][name][0], other[0][name][0])
    assert one[1:] == other[1:]


@pytest.mark.slow
def test_float32_counts_and_losses_are_whole(results, alone):
    for result in results:
        products, loss, samples = result["float32"]
        expected = alone[0]["autograd"]
        assert samples == 24
        assert loss == pytest.approx(expected[1], rel=1e-6)
        assert (products - expected[0]).norm() < 1e-5 * expected[0].norm()


@pytest.mark.slow
def test_a_block_of_products_takes_one_reduction(results):
    assert [result["reductions"] for result in results] == [3, 3]


@pytest.mark.slow
def test_what_cannot_work_is_told_on_all_ranks_and_none_waits(results):
    one, other = (result["refused"] for result in results)
    for found in (one, other):
        assert "rank 1 has other weights than rank 0: data_parallel=True needs" in found["weights"]
        assert "rank 1 has other vectors than rank 0" in found["vectors"]
        assert found["none"] is None
    assert "rank 1 of 2 failed: see its message" in one["nan"]
    assert "the loss of batch 0 (counting from 0) is nan" in other["nan"]
    assert "rank 1 of 2 failed" in one["empty"]
    assert "batches is empty" in other["empty"]


def test_a_process_group_is_needed():
    model, batch = mlp()
    with pytest.raises(InputError, match="there is no process group: start with torchrun"):
        Hessian(model, cross_entropy, [batch], data_parallel=True)
