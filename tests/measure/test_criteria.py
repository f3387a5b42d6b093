import json
import math

import pytest
import torch
from torch import nn

from flatminima.errors import InputError
from flatminima.measure import SpectralCriteria, spectral_criteria

from .cases import DOUBLE, cross_entropy, dense_hessian, symmetric


def test_the_ratios_are_those_computed_by_hand():
    nodes = torch.tensor([-1.0, -0.25, 4.0, 9.0])
    found = spectral_criteria(nodes, torch.tensor([0.25, 0.25, 0.25, 0.25]))
    assert found.edge_ratio == pytest.approx(1 / 9)
    assert found.mass_ratio == pytest.approx(1.25 / 13)
    assert found.power_ratio == pytest.approx(1.5 / 5)
    assert spectral_criteria(nodes).to_dict() == found.to_dict()
    weighted = spectral_criteria(nodes, torch.tensor([0.6, 0.2, 0.1, 0.1]), exponent=2)
    assert weighted.power_ratio == pytest.approx((0.36 + 0.0025) / (0.16 + 0.81))


def test_of_all_eigenvalues_the_mass_ratio_is_that_of_the_traces():
    matrix = symmetric(12) + torch.eye(12, dtype=DOUBLE)
    values = torch.linalg.eigvalsh(matrix)
    found = spectral_criteria(values)
    assert found.mass_ratio == pytest.approx(
        -(values[values < 0].sum() / values[values > 0].sum()).item()
    )
    assert found.edge_ratio == pytest.approx(abs(values[0] / values[-1]).item())


def test_runs_are_measured_one_by_one_and_averaged():
    one, other = torch.tensor([-1.0, 2.0]), torch.tensor([-1.0, 4.0, 4.0])
    found = spectral_criteria([one, other])
    assert (found.runs, found.nodes) == (2, 3)
    assert found.edge_ratio == pytest.approx((0.5 + 0.25) / 2)
    assert found.mass_ratio == pytest.approx((0.5 + 0.125) / 2)
    assert found.edge_stderr == pytest.approx(0.125)
    stacked = spectral_criteria(torch.stack([one, one]))
    assert (stacked.edge_ratio, stacked.edge_stderr) == (0.5, 0.0)
    assert math.isnan(spectral_criteria(one).edge_stderr)


def test_numbers_will_do_for_tensors():
    by_tensors = spectral_criteria(torch.tensor([[-1.0, 2.0], [-1.0, 4.0]], dtype=DOUBLE))
    assert spectral_criteria(((-1.0, 2.0), (-1.0, 4.0))) == by_tensors
    alone = spectral_criteria([-1.0, 2.0], [0.5, 0.5])
    assert (alone.edge_ratio, alone.runs) == (0.5, 1)


def test_cutting_nodes_into_more_changes_the_power_ratio_alone():
    nodes = torch.tensor([-1.0, 2.0])
    cut = torch.tensor([-1.0] * 9 + [2.0])
    weights = torch.tensor([0.5 / 9] * 9 + [0.5])
    coarse, fine = spectral_criteria(nodes), spectral_criteria(cut, weights)
    assert fine.mass_ratio == pytest.approx(coarse.mass_ratio)
    assert fine.edge_ratio == coarse.edge_ratio
    assert fine.power_ratio == pytest.approx(3 * coarse.power_ratio)


def test_a_trained_network_is_far_from_symmetric_and_a_new_one_is_not():
    torch.manual_seed(0)
    x = torch.randn(60, 6, dtype=DOUBLE)
    batch = (x, (x[:, 0] > 0).long() + (x[:, 1] * x[:, 2] > 0).long())
    model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3)).to(DOUBLE)
    new = spectral_criteria(torch.linalg.eigvalsh(dense_hessian(model, batch)))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(400):
        optimizer.zero_grad()
        cross_entropy(model, batch).backward()
        optimizer.step()
    old = spectral_criteria(torch.linalg.eigvalsh(dense_hessian(model, batch)))
    assert old.edge_ratio < new.edge_ratio / 5
    assert old.mass_ratio < new.mass_ratio / 2


def test_mainly_negative_spectra_are_not_interpreted():
    found = spectral_criteria(torch.tensor([-3.0, 1.0]))
    assert not found.readable
    assert "not to be interpreted" in str(found)
    good = spectral_criteria(torch.tensor([-1.0, 3.0]))
    assert good.readable
    assert "not to be" not in str(good)
    data = json.loads(json.dumps(good.to_dict(), allow_nan=False))
    assert data["edge_stderr"] is None
    again = SpectralCriteria.from_dict(data)
    assert again.to_dict() == good.to_dict()


def test_a_positive_spectrum_has_no_negative_mass():
    found = spectral_criteria(torch.tensor([1.0, 4.0]))
    assert (found.edge_ratio, found.mass_ratio, found.power_ratio) == (0.25, 0.0, 0.0)


@pytest.mark.parametrize(
    ("nodes", "weights", "exponent", "message"),
    [
        (torch.ones(3), None, 0.0, "exponent is 0"),
        (torch.ones(0), None, 0.5, "no nodes"),
        ([], None, 0.5, "one weight for each node"),
        (torch.ones(3), torch.ones(2), 0.5, r"lengths \[3\] and weights \[2\]"),
        (torch.tensor([math.nan]), None, 0.5, "not finite"),
        (torch.ones(2), torch.tensor([2.0, -1.0]), 0.5, "negative"),
        (-torch.ones(2), None, 0.5, "the highest node is -1"),
    ],
)
def test_bad_arguments_are_refused(nodes, weights, exponent, message):
    with pytest.raises(InputError, match=message):
        spectral_criteria(nodes, weights, exponent=exponent)
