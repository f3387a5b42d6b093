"""Directions, and what normalization makes of them."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from flatminima import NSO
from flatminima.errors import InputError
from flatminima.landscape import (
    Direction,
    around,
    eigen_directions,
    loss_slice,
    normalized,
    optimizer_directions,
    random_directions,
    through,
    trajectory_directions,
)
from measure.cases import DOUBLE, cnn, cross_entropy, mlp


def relu_pair(factor):
    """A ReLU network, and the same function with its weights scaled."""
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)).to(DOUBLE)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight *= factor
        other[0].bias *= factor
        other[2].weight /= factor
    return model, other, (torch.randn(20, 5, dtype=DOUBLE), torch.arange(20) % 3)


@pytest.mark.parametrize("normalization", ["filter", "layer"])
@pytest.mark.parametrize("biases", ["ignore", "scale"])
def test_a_rescaled_relu_network_gives_the_same_picture(normalization, biases):
    model, other, batch = relu_pair(10.0)
    pictures = []
    for each in (model, other):
        directions = random_directions(each, 2, normalization=normalization, biases=biases)
        pictures.append(loss_slice(each, cross_entropy, [batch], around(directions), points=7).loss)
    assert np.allclose(*pictures, rtol=1e-10)


@pytest.mark.parametrize("normalization", ["none", "unit", "whole"])
def test_without_fitting_tensor_by_tensor_it_gives_another_picture(normalization):
    model, other, batch = relu_pair(10.0)
    pictures = []
    for each in (model, other):
        directions = random_directions(each, 2, normalization=normalization)
        pictures.append(loss_slice(each, cross_entropy, [batch], around(directions), points=7).loss)
    assert not np.allclose(*pictures, rtol=0.1)


def test_normalized_lengths_are_what_they_say():
    model, _ = cnn()
    weights = dict(model.named_parameters())
    own = {
        way: random_directions(model, 1, normalization=way, biases="scale")[0]
        for way in ("filter", "layer", "whole", "unit")
    }
    for name, weight in weights.items():
        filters = [own["filter"].parts[name], weight]
        if weight.ndim > 1:
            filters = [tensor.flatten(1) for tensor in filters]
            assert torch.allclose(*(tensor.norm(dim=1) for tensor in filters))
        assert torch.allclose(*(tensor.norm() for tensor in filters))
        assert torch.allclose(own["layer"].parts[name].norm(), weight.norm())
    whole = torch.cat([w.flatten() for w in weights.values()]).norm().item()
    assert own["whole"].length == pytest.approx(whole)
    assert own["unit"].length == pytest.approx(1)


def test_ignored_biases_and_norm_layers_do_not_move():
    model, batch = cnn()
    direction = random_directions(model, 1, biases="ignore")[0]
    assert {weight.ndim > 1 for n, weight in model.named_parameters() if n in direction.parts} == {
        True
    }
    caption = loss_slice(model, cross_entropy, [batch], around(direction), points=3).caption()
    assert "normalization filter, biases and norm layers ignored" in caption
    assert "BatchNorm statistics: the running ones" in caption
    assert "16 samples" in caption
    assert "centre the model's weights" in caption


def test_random_directions_are_centred_and_follow_the_seed():
    model = nn.Linear(200, 100)
    one, two = random_directions(model, 2, seed=3, normalization="none")
    again = random_directions(model, 1, seed=4, normalization="none")[0]
    assert torch.equal(two.parts["weight"], again.parts["weight"])
    assert abs(one.parts["weight"].mean()) < 0.03
    assert one.parts["weight"].std() == pytest.approx(1, abs=0.02)


def test_adam_and_momentum_are_read_from_optimizers_and_from_what_they_saved():
    model, batch = mlp()
    adam = NSO(torch.optim.Adam(model.named_parameters(), lr=1e-3), sigma=0.01)
    sgd = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    for optimizer in (adam, sgd):
        for _ in range(2):
            optimizer.zero_grad()
            if optimizer is sgd:
                cross_entropy(model, batch).backward()
            else:
                for _ in optimizer.passes():
                    cross_entropy(model, batch).backward()
            optimizer.step()
    first, second = optimizer_directions(model, adam, normalization="none")
    assert (first.name, second.name) == ("mean gradient of Adam", "mean squared gradient of Adam")
    weight = model[0].weight
    assert torch.equal(first.parts["0.weight"], adam.base.state[weight]["exp_avg"])
    for optimizer in (adam, sgd):
        live = optimizer_directions(model, optimizer)
        saved = optimizer_directions(model, optimizer.state_dict())
        for a, b in zip(live, saved, strict=True):
            assert a.name == b.name
            assert all(torch.equal(a.parts[n], b.parts[n]) for n in a.parts)
    with pytest.raises(InputError, match="remembers none of"):
        optimizer_directions(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(InputError, match="does not fit the model"):
        optimizer_directions(mlp(hidden=7)[0], adam.state_dict())


def test_a_path_in_a_plane_is_found_with_its_coordinates():
    model, _ = mlp()
    one, two = random_directions(model, 2, normalization="unit", biases="scale")
    steps = [(3.0, 0.0), (2.0, 1.0), (1.0, -0.5), (0.0, 0.0)]
    states = [
        {n: p + a * one.parts[n] + b * two.parts[n] for n, p in model.named_parameters()}
        for a, b in steps
    ]
    found = trajectory_directions(model, states)
    assert sum(found.explained) == pytest.approx(1)
    for (x, y), state in zip(found.path, states, strict=True):
        for n, p in model.named_parameters():
            rebuilt = p + x * found.directions[0].parts[n] + y * found.directions[1].parts[n]
            assert torch.allclose(rebuilt, state[n], atol=1e-6)
    with pytest.raises(InputError, match="lie on one line"):
        trajectory_directions(model, [states[0], states[3]])
    with pytest.raises(InputError, match="lie on one line"):
        trajectory_directions(model, [])
    with pytest.raises(InputError, match="checkpoint 0 is of another architecture"):
        trajectory_directions(model, [mlp(hidden=7)[0].state_dict()])


def test_interpolation_meets_the_checkpoints_exactly():
    (model, batch), (other, _), (third, _) = mlp(), mlp(), mlp()
    for i, each in enumerate((other, third)):
        for p in each.parameters():
            p.data = torch.randn(p.shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(i))
    states = {"a": model.state_dict(), "b": other.state_dict()}
    losses = [cross_entropy(each, batch).item() for each in (model, other, third)]
    asked = copy.deepcopy(third)
    line = loss_slice(asked, cross_entropy, [batch], through(asked, states), points=21)
    assert [line.at(0), line.at(1)] == losses[:2]
    states["c"] = third.state_dict()
    plane = loss_slice(asked, cross_entropy, [batch], through(asked, states), points=9)
    assert [plane.at(0, 0), plane.at(1, 0), plane.at(0, 1)] == losses
    home = zip(asked.parameters(), third.parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in home)
    assert plane.axes[0].length == pytest.approx(
        sum(
            (p - q).square().sum().item()
            for p, q in zip(model.parameters(), other.parameters(), strict=True)
        )
        ** 0.5
    )


def test_the_line_between_batchnorm_networks_takes_their_statistics_along():
    (model, batch), (other, _) = cnn(), cnn()
    with torch.no_grad():
        for p in other.parameters():
            p += 0.3 * torch.randn_like(p)
    other(batch[0])
    frame = through(model, {"a": model.state_dict(), "b": other.state_dict()})
    before = copy.deepcopy(model.state_dict())
    found = loss_slice(model, cross_entropy, [batch], frame, points=5, radius=0.5)
    expected = [cross_entropy(each.eval(), batch).item() for each in (model, other)]
    assert [found.at(0), found.at(1)] == expected
    anew = loss_slice(
        model, cross_entropy, [batch], frame, points=5, radius=0.5, batchnorm="recalibrate"
    )
    assert not np.allclose(anew.loss, found.loss, rtol=1e-3)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())


def test_bad_frames_and_directions_are_refused():
    model, _ = mlp()
    weights = dict(model.named_parameters())
    one, two = random_directions(model, 2)
    with pytest.raises(InputError, match="3 directions: give one or two"):
        around([one, two, one])
    with pytest.raises(InputError, match="lie on one line"):
        around([one, one])
    with pytest.raises(InputError, match="unknown normalization 'filters': did you mean 'filter'"):
        random_directions(model, 1, normalization="filters")
    with pytest.raises(InputError, match="unknown treatment of biases"):
        random_directions(model, 1, biases="zero")
    with pytest.raises(InputError, match="nothing is left of the direction 'bias'"):
        normalized(Direction("bias", {"0.bias": torch.ones(6)}), weights)
    with pytest.raises(InputError, match="1 checkpoints: give two or three"):
        through(model, {"a": model.state_dict()})
    state = model.state_dict()
    with pytest.raises(InputError, match="'towards b' is 0: there is nothing"):
        through(model, {"a": state, "b": state})
    with pytest.raises(InputError, match="b is of another architecture than the model: its"):
        through(model, {"a": model.state_dict(), "b": mlp(hidden=7)[0].state_dict()})


def test_the_parameters_of_an_eigenvector_may_come_from_a_generator():
    model, batch = mlp()
    listed = list(model[0].parameters())
    for which in ("largest", "extremes"):
        given = eigen_directions(model, cross_entropy, [batch], which=which, params=listed)
        found = eigen_directions(model, cross_entropy, [batch], which=which, params=iter(listed))
        for a, b in zip(given, found, strict=True):
            assert a.parts.keys() == b.parts.keys()
            assert all(torch.equal(a.parts[name], b.parts[name]) for name in a.parts)
