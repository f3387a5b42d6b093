import pytest
import torch
from torch import nn

from flatminima.perturb import SAM

from .cases import DOUBLE, gradient, sgd, smooth


def test_the_gradient_is_taken_at_the_top_of_the_ball():
    h = torch.diag(torch.tensor([1.0, 4.0], dtype=DOUBLE))
    w = nn.Parameter(torch.tensor([3.0, -2.0], dtype=DOUBLE))
    (found,) = gradient(SAM(torch.optim.SGD([w]), rho=0.5), lambda: w @ h @ w / 2, w)
    uphill = h @ w.detach()
    expected = h @ (w.detach() + 0.5 * uphill / uphill.norm())
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_the_norm_is_over_all_groups_and_each_has_its_rho():
    a, b = (nn.Parameter(torch.tensor([v], dtype=DOUBLE)) for v in (3.0, 4.0))
    groups = [{"params": [a], "rho": 1.0}, {"params": [b], "rho": 0.5}]
    optimizer = SAM(torch.optim.SGD(groups), rho=0.1)
    places = []
    for _ in optimizer.passes():
        places.append((a.item(), b.item()))
        ((a**2 + b**2) / 2).sum().backward()
    assert places[1] == pytest.approx((3 + 1.0 * 3 / 5, 4 + 0.5 * 4 / 5), rel=1e-12)


def test_the_loss_scale_does_not_change_the_place():
    w = nn.Parameter(torch.tensor([3.0, -2.0], dtype=DOUBLE))
    places = []
    for scale in (1.0, 2.0**16):
        for _ in SAM(torch.optim.SGD([w]), rho=0.5).passes():
            place = w.detach().clone()
            (scale * w.pow(4).sum()).backward()
        places.append(place)
    torch.testing.assert_close(*places, rtol=1e-12, atol=0)


def test_a_step_costs_two_gradients():
    assert SAM(sgd(smooth().parameters()), rho=0.1).gradients_per_step() == 2


def test_a_zero_gradient_moves_nothing():
    w = nn.Parameter(torch.zeros(3))
    optimizer = SAM(torch.optim.SGD([w]), rho=0.5)
    for _ in optimizer.passes():
        assert torch.equal(w, torch.zeros(3))
        w.pow(2).sum().backward()


def test_complex_weights_climb_in_both_parts():
    w = nn.Parameter(torch.tensor([3 + 4j], dtype=torch.complex128))
    optimizer = SAM(torch.optim.SGD([w]), rho=1.0)
    for _ in optimizer.passes():
        place = w.detach().clone()
        w.abs().pow(2).sum().backward()
    torch.testing.assert_close(place, torch.tensor([3.6 + 4.8j], dtype=torch.complex128))


def test_sparse_gradients_climb_as_dense_ones():
    places = []
    for sparse in (False, True):
        torch.manual_seed(0)
        table = nn.Embedding(5, 3, sparse=sparse)
        optimizer = SAM(torch.optim.SGD(table.parameters()), rho=0.5)
        for _ in optimizer.passes():
            places.append(table.weight.detach().clone())
            table(torch.tensor([1, 2, 2])).pow(2).sum().backward()
    torch.testing.assert_close(places[1], places[3])
    assert not torch.equal(places[0], places[1])


def test_gradients_gathered_before_are_kept_over_the_first_pass():
    w = nn.Parameter(torch.tensor([1.0], dtype=DOUBLE))
    optimizer = SAM(torch.optim.SGD([w]), rho=0.5)
    for _ in range(2):
        for _ in optimizer.passes():
            (w**2 / 2).sum().backward()
    assert w.grad.item() == pytest.approx(3.0)
