"""Weights that stay near where training began."""

import copy

import pytest
import torch
from torch import nn

from flatminima import NSO, Supervised
from flatminima.errors import InputError
from flatminima.reparam import DistanceConstraint, DistancePenalty, make_reparam, reparam_cards


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 2)).double()


def batch():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8, 4, dtype=torch.float64, generator=generator)
    return x, torch.randint(2, (8,), generator=generator)


def moved(model, size):
    """The model with each weight moved by a random direction of this length."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            step = torch.randn(parameter.shape, dtype=parameter.dtype, generator=generator)
            parameter.add_(step * (size / step.norm()))
    return model


def test_weights_outside_the_ball_are_put_on_it_in_their_direction():
    model, start = network(), network()
    near = DistanceConstraint(model, radius=0.3)
    moved(model, 2.0)
    before = copy.deepcopy(model)
    near.after_step()
    for (name, p), q, o in zip(
        model.named_parameters(), before.parameters(), start.parameters(), strict=True
    ):
        if p.dim() > 1:
            torch.testing.assert_close(p - o, (q - o) * 0.3 / 2.0)
        else:
            assert torch.equal(p, q), name
    assert near.distances() == pytest.approx({"0.weight": 0.3, "3.weight": 0.3})


def test_weights_inside_stay_bit_for_bit():
    model = network()
    near = DistanceConstraint(model, radius=2.5)
    moved(model, 2.0)
    before = copy.deepcopy(model)
    near.after_step()
    for p, q in zip(model.parameters(), before.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_relative_radius_is_a_part_of_the_first_norm():
    model, start = network(), network()
    near = DistanceConstraint(model, radius=0.1, relative=True)
    moved(model, 5.0)
    near.after_step()
    expected = {n: 0.1 * p.norm().item() for n, p in start.named_parameters() if p.dim() > 1}
    assert near.distances() == pytest.approx(expected)


def test_rows_are_scaled_one_by_one():
    model, start = network(), network()
    near = DistanceConstraint(model, radius=0.5, norm="rows")
    with torch.no_grad():
        model[0].weight[0] += 1.0
        model[0].weight[1] += 0.1
    near.after_step()
    difference = (model[0].weight - start[0].weight).detach()
    torch.testing.assert_close(difference[0], torch.full((4,), 0.125, dtype=torch.float64))
    torch.testing.assert_close(difference[1], torch.full((4,), 0.1, dtype=torch.float64))


def test_the_penalty_pulls_back_with_its_gradient():
    model, start = network(), network()
    near = DistancePenalty(model, weight=0.7)
    moved(model, 1.0)
    objective = near.objective(Supervised())
    Supervised()(model, batch()).backward()
    plain = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    # BatchNorm's statistics do not enter the loss of a batch in training mode.
    objective(model, batch()).backward()
    for p, g, o in zip(model.parameters(), plain, start.parameters(), strict=True):
        pull = 2 * 0.7 * (p - o).detach() if p.dim() > 1 else torch.zeros_like(g)
        torch.testing.assert_close(p.grad, g + pull)


def test_the_penalty_is_no_part_of_what_is_measured():
    model = network()
    near = DistancePenalty(model, weight=0.7)
    moved(model, 1.0).eval()
    assert torch.equal(near.objective(Supervised())(model, batch()), Supervised()(model, batch()))


def test_frozen_weights_do_not_count():
    model = network()
    model[0].weight.requires_grad_(False)
    near = DistanceConstraint(model, radius=0.1)
    moved(model, 1.0)
    assert set(near.distances()) == {"3.weight"}


def test_training_stays_within_the_radius_and_goes_on_along_it():
    model = network()
    near = DistanceConstraint(model, radius=0.2)
    optimizer = NSO(torch.optim.SGD(model.parameters(), lr=0.5), sigma=0.01)
    losses = []
    for _ in range(40):
        for _ in optimizer.passes():
            loss = Supervised()(model, batch())
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        near.after_step()
        losses.append(loss.item())
        assert max(near.distances().values()) <= 0.2 * (1 + 1e-12)
    assert max(near.distances().values()) > 0.19
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("distance-constraint", {"radius": 0}, "radius is 0"),
        ("distance-constraint", {"radius": "big"}, "radius is 'big'"),
        ("distance-constraint", {}, "needs radius"),
        ("distance-constraint", {"radius": 1, "norm": "row"}, "did you mean 'rows'"),
        ("distance-penalty", {"weight": -1}, "weight is -1"),
        ("distance-penality", {"weight": 1}, "did you mean 'distance-penalty'"),
        ("distance-penalty", {"wieght": 1}, "did you mean 'weight'"),
        ("none", {"radius": 1}, "reparametrization"),
    ],
)
def test_what_cannot_be_is_refused(name, given, words):
    with pytest.raises(InputError, match=words):
        make_reparam(name, network(), **given)


def test_a_model_without_matrices_is_refused():
    with pytest.raises(InputError, match="two dimensions"):
        DistancePenalty(nn.BatchNorm1d(3), weight=1.0)


def test_cards_say_their_slot():
    assert {card.slot for card in reparam_cards()} == {"reparam"}
