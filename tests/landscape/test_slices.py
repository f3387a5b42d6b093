"""Slices of losses whose shape is known."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from flatminima.errors import InputError
from flatminima.landscape import (
    Direction,
    Landscape,
    around,
    eigen_directions,
    evaluate,
    gradient_direction,
    loss_slice,
    random_directions,
)
from flatminima.measure import Hessian
from measure.cases import (
    DOUBLE,
    Quadratic,
    cnn,
    cross_entropy,
    mlp,
    quadratic_loss,
    split,
    symmetric,
)

ONE_BATCH = [torch.zeros(1, 1)]


def flat(direction, model):
    return torch.cat([direction.parts[n].flatten() for n, _ in model.named_parameters()])


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(model, before):
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_quadratic_gives_its_paraboloid_with_the_curvature_of_the_operator():
    hessian, slope = symmetric(9), torch.randn(9, dtype=DOUBLE)
    model = Quadratic(hessian, slope)
    model.weight.data.normal_()
    directions = random_directions(model, 2, biases="scale", normalization="none")
    found = loss_slice(model, quadratic_loss, ONE_BATCH, around(directions), points=11, radius=2)
    w, (d1, d2) = model.weight.detach(), (flat(d, model) for d in directions)
    for i, a in enumerate(found.axes[0].values):
        for j, b in enumerate(found.axes[1].values):
            v = w + a * d1 + b * d2
            assert found.loss[i, j] == pytest.approx(float(v @ hessian @ v / 2 + slope @ v))
    operator = Hessian(model, quadratic_loss, ONE_BATCH)
    for i, d in enumerate((d1, d2)):
        expected = float(d @ operator.matmat(d[:, None])[:, 0])
        read = found.curvature(i)
        assert read.value == pytest.approx(expected, rel=1e-9)
        assert read.per_unit == pytest.approx(expected / float(d @ d), rel=1e-9)
        assert read.error < 1e-9 * abs(expected)


def test_the_curvature_of_a_network_read_off_its_slice_is_that_of_the_operator():
    model, batch = mlp()
    batches = split(batch, 10, 14)
    direction = random_directions(model, 1, biases="scale")[0]
    found = loss_slice(model, cross_entropy, batches, around(direction), points=5, radius=0.01)
    d = flat(direction, model)
    expected = float(d @ Hessian(model, cross_entropy, batches).matmat(d[:, None])[:, 0])
    assert found.curvature().value == pytest.approx(expected, rel=1e-5)


def test_along_eigenvectors_the_curvature_is_the_eigenvalue():
    model, batch = mlp()
    directions = eigen_directions(model, cross_entropy, [batch], which="extremes", tol=1e-6)
    found = loss_slice(model, cross_entropy, [batch], around(directions), points=5, radius=0.01)
    values = [float(d.name.split()[-1]) for d in directions]
    assert values[0] > 0 > values[1]
    assert [found.curvature(i).value for i in (0, 1)] == pytest.approx(values, rel=1e-3)


def test_the_slope_along_the_gradient_is_its_length():
    model, batch = mlp()
    direction = gradient_direction(model, cross_entropy, split(batch, 7, 17))
    found = loss_slice(model, cross_entropy, [batch], around(direction), points=3, radius=1e-5)
    slope = float(found.loss[2] - found.loss[0]) / 2e-5
    whole = torch.autograd.grad(cross_entropy(model, batch), list(model.parameters()))
    assert slope == pytest.approx(torch.cat([g.flatten() for g in whole]).norm().item(), rel=1e-6)


def test_every_sample_counts_the_same_and_accuracy_is_beside_the_loss():
    model, (x, y) = mlp()
    frame = around(random_directions(model, 2))
    whole = loss_slice(model, cross_entropy, [(x, y)], frame, points=5)
    parts = loss_slice(model, cross_entropy, split((x, y), 5, 19), frame, points=5)
    assert np.allclose(whole.loss, parts.loss, rtol=1e-12)
    right = (model(x).argmax(1) == y).double().mean().item()
    assert whole.accuracy[whole.zero] == pytest.approx(right)
    assert np.allclose(whole.accuracy, parts.accuracy)
    assert whole.samples == parts.samples == 24


@pytest.mark.parametrize("at_once", [1, 3])
def test_a_loader_and_vectorized_points_give_the_same_picture(at_once):
    model, (x, y) = cnn()
    frame = around(random_directions(model, 2))
    plain = loss_slice(model, cross_entropy, [(x, y)], frame, points=5)
    loader = DataLoader(list(zip(x, y, strict=True)), batch_size=5, shuffle=True)
    other = loss_slice(model, cross_entropy, loader, frame, points=5, at_once=at_once)
    assert np.allclose(plain.loss, other.loss, rtol=1e-10)
    assert np.allclose(plain.accuracy, other.accuracy)


@pytest.mark.parametrize("batchnorm", ["running", "batch", "recalibrate"])
def test_everything_is_left_bit_for_bit_as_it_was(batchnorm):
    model, batch = cnn()
    model.train()
    before, random = state(model), torch.get_rng_state()
    momenta = [m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    frame = around(random_directions(model, 2))
    loss_slice(model, cross_entropy, split(batch, 8, 8), frame, points=5, batchnorm=batchnorm)
    assert same(model, before)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(m.training for m in model.modules())
    assert [m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)] == momenta
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_weights_come_home_when_an_evaluation_is_broken_off(error):
    model, batch = mlp()
    before, calls = state(model), []

    def failing(model, batch):
        calls.append(1)
        if len(calls) == 4:
            raise error
        return cross_entropy(model, batch)

    frame = around(random_directions(model, 2))
    with pytest.raises(error):
        loss_slice(model, failing, [batch], frame, points=5, keep_interrupted=False)
    assert same(model, before)


def test_an_interrupted_slice_goes_on_and_ends_as_if_it_had_not_been(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "BETWEEN_LOOKS", 0.0)
    model, batch = mlp()
    calls = []

    def interrupted(model, batch):
        calls.append(1)
        if len(calls) == 30:
            raise KeyboardInterrupt
        return cross_entropy(model, batch)

    frame = around(random_directions(model, 2))
    part = loss_slice(model, interrupted, [batch], frame, points=9)
    assert part.stopped == "interrupted"
    assert part.evaluated.sum() == 29
    assert "29 of 81 points evaluated (interrupted)" in part.caption()
    (at, loss, _), whole = part.shown(), loss_slice(model, cross_entropy, [batch], frame, points=9)
    assert [len(a) for a in at] == [5, 5], "the coarse grid comes first, and is drawn"
    assert np.isfinite(loss).all()
    (tmp_path / "part.json").write_text(json.dumps(part.to_dict(), allow_nan=False))
    part = Landscape.from_dict(json.loads((tmp_path / "part.json").read_text()))
    calls = []
    rest = loss_slice(model, cross_entropy, [batch], frame, points=9, earlier=part)
    assert rest.stopped == "done"
    assert np.array_equal(rest.loss, whole.loss)


def test_an_earlier_slice_of_something_else_is_refused():
    model, batch = mlp()
    frame = around(random_directions(model, 2))
    earlier = loss_slice(model, cross_entropy, [batch], frame, points=5)
    other = around(random_directions(model, 2, seed=7))
    with pytest.raises(InputError, match="something else: it goes along 'random, seed 0'"):
        loss_slice(model, cross_entropy, [batch], other, points=5, earlier=earlier)
    with pytest.raises(InputError, match="other points or another radius"):
        loss_slice(model, cross_entropy, [batch], frame, points=5, radius=2, earlier=earlier)
    model[2].weight.data *= 1.5
    with pytest.raises(InputError, match="its loss at a point is"):
        loss_slice(model, cross_entropy, [batch], frame, points=5, earlier=earlier)


def test_losses_that_are_not_finite_are_counted_and_kept_as_gaps():
    class Walled(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, dtype=DOUBLE))

    def log_loss(model, batch):
        return -model.weight.log().sum()  # NaN beyond 0, infinite at 0

    model = Walled()
    parts = [{"weight": torch.eye(2, dtype=DOUBLE)[i]} for i in (0, 1)]
    frame = around([Direction(n, p) for n, p in zip("ab", parts, strict=True)])
    found = loss_slice(model, log_loss, ONE_BATCH, frame, points=9, radius=2)
    assert found.not_finite == 81 - 36  # weights at 0 or below: 3 of 9 along each axis
    assert found.evaluated.all()
    assert "45 of 81 points not finite (gaps)" in found.caption()
    data = found.to_dict()
    assert data["loss"][0][0] is None
    again = Landscape.from_dict(json.loads(json.dumps(data, allow_nan=False)))
    assert again.not_finite == 45


def test_a_loss_that_is_nowhere_finite_has_no_picture():
    model = Quadratic(symmetric(3))
    frame = around(random_directions(model, 2, biases="scale", normalization="none"))
    found = loss_slice(model, lambda m, b: m.weight.sum() * math.nan, ONE_BATCH, frame, points=3)
    assert found.not_finite == 9
    with pytest.raises(InputError, match="no point of the landscape has a finite loss"):
        found.plot()


def test_a_budget_that_is_too_small_is_said_first_and_kept():
    model, batch = mlp()

    def slow(model, batch):
        torch.randn(300, 300) @ torch.randn(300, 300)
        return cross_entropy(model, batch)

    said = []
    frame = around(random_directions(model, 2))
    found = loss_slice(model, slow, [batch], frame, points=201, max_seconds=0.2, say=said.append)
    assert found.stopped == "max_seconds"
    assert 5 <= found.evaluated.sum() < 201**2
    assert len(said) == 1
    assert "more than max_seconds = 0.2" in said[0]
    assert "the coarse grid first" in said[0]
    assert found.seconds < 2


def test_batch_statistics_make_the_scale_of_a_filter_before_batchnorm_irrelevant():
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, bias=False),
        nn.BatchNorm2d(3, eps=1e-30),
        nn.Flatten(),
        nn.Linear(12, 3),
    ).to(DOUBLE)
    batch = (torch.randn(16, 1, 4, 4, dtype=DOUBLE), torch.arange(16) % 3)
    scaled = copy.deepcopy(model)
    scaled[0].weight.data *= torch.tensor([10.0, 0.1, 3.0], dtype=DOUBLE)[:, None, None, None]
    pictures = {}
    for way in ("filter", "none"):
        pictures[way] = [
            loss_slice(
                m,
                cross_entropy,
                [batch],
                around(random_directions(m, 2, normalization=way)),
                points=5,
                batchnorm="batch",
            ).loss
            for m in (model, scaled)
        ]
    assert np.allclose(*pictures["filter"], rtol=1e-10)
    assert not np.allclose(*pictures["none"], rtol=1e-2)


def test_recalibrated_statistics_are_those_of_the_data():
    model, (x, y) = cnn()
    direction = random_directions(model, 1, biases="scale")[0]
    found = loss_slice(
        model, cross_entropy, split((x, y), 8, 8), around(direction), points=3,
        batchnorm="recalibrate",
    )  # fmt: skip
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in moved.named_parameters():
            parameter += direction.parts[name]
    moved[1].reset_running_stats()
    moved[1].momentum = None
    moved.train()
    for part in split((x, y), 8, 8):
        moved(part[0])
    moved.eval()
    assert found.loss[2] == pytest.approx(cross_entropy(moved, (x, y)).item(), rel=1e-10)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"points": 2}, "points is 2: give at least 3"),
        ({"radius": 0}, "radius is 0: give a finite number above 0"),
        ({"radius": math.nan}, "radius is nan"),
        ({"spans": ((-1, 1),)}, "2 axes and 1 spans"),
        ({"spans": ((-1, 1), (1, 2))}, "from below 0 to above 0"),
        ({"batchnorm": "train"}, "unknown way of BatchNorm 'train'"),
        ({"at_once": 0}, "at_once is 0"),
        ({"max_seconds": 0}, "max_seconds is 0"),
    ],
)
def test_bad_settings_are_refused_with_the_mend(settings, message):
    model, batch = mlp()
    frame = around(random_directions(model, 2))
    with pytest.raises(InputError, match=message):
        loss_slice(model, cross_entropy, [batch], frame, **settings)


def test_directions_of_another_model_are_refused():
    model, batch = mlp()
    other, _ = mlp(hidden=7)
    frame = around(random_directions(other, 2))
    with pytest.raises(InputError, match=r"'random, seed 0' is of another architecture"):
        loss_slice(model, cross_entropy, [batch], frame)
    with pytest.raises(InputError, match="batches is empty"):
        loss_slice(model, cross_entropy, [], around(random_directions(model, 2)))


def test_an_even_number_of_points_still_has_the_origin():
    model, batch = mlp()
    found = loss_slice(model, cross_entropy, [batch], around(random_directions(model, 1)), points=4)
    assert found.at(0.0) == pytest.approx(cross_entropy(model, batch).item(), rel=1e-14)


def test_a_loader_that_shuffles_and_drops_gives_each_point_the_same_samples(monkeypatch):
    monkeypatch.setattr(evaluate, "READ_AT_ONCE", 2)
    model, batch = mlp()
    data, frame = list(zip(*batch, strict=True)), around(random_directions(model, 1))
    loader = DataLoader(data, batch_size=10, shuffle=True, drop_last=True)
    torch.manual_seed(5)
    found = loss_slice(model, cross_entropy, loader, frame, points=9)
    torch.manual_seed(5)
    fixed = loss_slice(model, cross_entropy, list(loader), frame, points=9)
    assert np.allclose(found.loss, fixed.loss, rtol=1e-10)
    own = torch.Generator().manual_seed(0)
    changing = DataLoader(data, batch_size=10, shuffle=True, drop_last=True, generator=own)
    with pytest.raises(InputError, match="hold other samples"):
        loss_slice(model, cross_entropy, changing, frame, points=9)


def test_points_that_cannot_reach_both_checkpoints_are_refused():
    from flatminima.landscape.grid import axis_values

    assert {0.0, 1.0} <= set(axis_values(-0.5, 1.5, 5, unit=True))
    with pytest.raises(InputError, match="do not reach 0 and 1"):
        axis_values(-29.5, 30.5, 25, unit=True)
