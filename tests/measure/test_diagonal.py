import json

import pytest
import torch

from flatminima.errors import InputError
from flatminima.measure import (
    Dense,
    DiagonalEstimate,
    Hessian,
    LowRank,
    hessian_diagonal,
    squared_frobenius_norm,
)

from .cases import DOUBLE, MODELS, cross_entropy, decaying, dense_hessian, symmetric


@pytest.mark.parametrize("name", MODELS)
def test_diagonals_of_networks_are_within_their_errors(name):
    model, batch = MODELS[name]()
    exact = dense_hessian(model, batch).diagonal()
    found = hessian_diagonal(Hessian(model, cross_entropy, [batch]), probes=40)
    assert (found.hvps, found.samples) == (40, 20)
    assert ((found.values - exact).abs() <= 6 * found.stderrs + 1e-12).all()
    assert found.stderrs.norm() < exact.norm()


def test_no_entry_is_biased_and_errors_are_as_large_as_they_say():
    matrix = decaying(40, 0.85)
    found = [hessian_diagonal(Dense(matrix), probes=24, seed=seed) for seed in range(300)]
    values = torch.stack([f.values for f in found])
    apart = (values.mean(0) - matrix.diagonal()).abs()
    assert (apart < 4.5 * values.std(0) / 300**0.5).all()
    errors = torch.stack([f.stderrs for f in found])
    covered = ((values - matrix.diagonal()).abs() <= 1.96 * errors).double().mean(0)
    assert 0.90 <= covered.mean().item() <= 0.99


def test_a_matrix_of_low_rank_is_exact():
    turn, _ = torch.linalg.qr(symmetric(50))
    operator = LowRank(turn[:, :3], torch.tensor([4.0, 2.0, -1.0], dtype=DOUBLE))
    exact = operator.matmat(torch.eye(50, dtype=DOUBLE)).diagonal()
    assert torch.allclose(hessian_diagonal(operator, probes=10).values, exact, atol=1e-10)


def test_as_many_probes_as_dimensions_are_exact():
    matrix = symmetric(9)
    found = hessian_diagonal(Dense(matrix), probes=10)
    assert torch.equal(found.values, matrix.diagonal())
    assert not found.stderrs.any()
    assert found.method == "exact, all unit vectors; matrix"


def test_the_diagonal_survives_json():
    found = hessian_diagonal(Dense(symmetric(9)), probes=6)
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    again = DiagonalEstimate.from_dict(data)
    assert torch.equal(again.values, found.values)
    assert torch.equal(again.stderrs, found.stderrs)
    assert (again.samples, again.method) == (3, found.method)


def test_the_frobenius_norm_covers_as_often_as_it_says():
    matrix = decaying(40, 0.95)
    truth, covered = matrix.square().sum().item(), 0
    for seed in range(200):
        low, high = squared_frobenius_norm(Dense(matrix), probes=40, seed=seed).interval()
        covered += low <= truth <= high
    assert 180 <= covered <= 198


def test_the_frobenius_norm_stops_at_the_relative_error():
    found = squared_frobenius_norm(Dense(symmetric(200)), probes=500, rel_error=0.03)
    assert 20 <= found.samples < 500
    assert found.stderr <= 0.03 * found.value
    assert abs(found.value - symmetric(200).square().sum().item()) < 4 * found.stderr


def test_float32_squares_do_not_overflow():
    matrix = torch.full((4,), 1e25).diag()
    assert squared_frobenius_norm(Dense(matrix)).value == pytest.approx(4e50, rel=1e-6)


def test_progress_ends_full():
    calls = []
    progress = lambda *call: calls.append(call)  # noqa: E731
    hessian_diagonal(Dense(symmetric(40)), probes=30, progress=progress)
    assert calls == [("diagonal", 20, 30), ("diagonal", 30, 30), ("diagonal", 30, 30)]
    calls.clear()
    squared_frobenius_norm(Dense(symmetric(40)), probes=15, progress=progress)
    assert calls == [("frobenius", 10, 15), ("frobenius", 15, 15), ("frobenius", 15, 15)]


def test_bad_arguments_are_refused():
    with pytest.raises(InputError, match="probes is 3"):
        hessian_diagonal(Dense(symmetric(9)), probes=3)
    with pytest.raises(InputError, match="probes is 0"):
        squared_frobenius_norm(Dense(symmetric(9)), probes=0)
    with pytest.raises(InputError, match="rel_error is 0"):
        squared_frobenius_norm(Dense(symmetric(9)), rel_error=0)
