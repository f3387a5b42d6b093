"""Gated layers against their definition, weight by weight, and against the exact best response."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import conv2d, linear

from flatminima.errors import InputError
from flatminima.tuning.self_tuning import Gated, bake, gate, gated_layers
from flatminima.tuning.self_tuning.gating import response_of, set_home

DOUBLE = torch.float64


def make(kind: str, knobs: int = 2, *, bias: bool = True, **options) -> Gated:
    torch.manual_seed(0)
    if kind == "linear":
        layer = nn.Linear(4, 3, bias=bias, dtype=DOUBLE)
    else:
        layer = nn.Conv2d(
            2, 4, 3, bias=bias, dtype=DOUBLE, stride=2, padding=1, groups=2, padding_mode="circular"
        )
    gated = gate(layer, knobs, **options)
    with torch.no_grad():
        gated.slopes.normal_()
        gated.home.normal_()
        if gated.factor is not None:
            gated.factor.fill_(0.7)
    return gated


def inputs(kind: str, samples: int = 5) -> torch.Tensor:
    shape = (samples, 4) if kind == "linear" else (samples, 2, 6, 6)
    return torch.randn(shape, dtype=DOUBLE)


def outputs(layer, x, u):
    with response_of(layer).to(u):
        return layer(x)


def slowly(layer, x, weight, bias):
    if x.dim() == 2:
        return linear(x, weight, bias)
    padded = nn.functional.pad(x, (1, 1, 1, 1), mode="circular")
    return conv2d(padded, weight, bias, stride=2, groups=2)


@pytest.mark.parametrize("kind", ["linear", "convolution"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("scaled", [True, False])
def test_each_sample_meets_a_layer_with_weights_of_its_own(kind, bias, center, scaled):
    layer = make(kind, bias=bias, center=center, scaled=scaled)
    x, u = inputs(kind), torch.randn(5, 2, dtype=DOUBLE)
    found = outputs(layer, x, u)
    n, factor = len(layer.weight), 0.7 if scaled else 1.0
    for i in range(5):
        g = layer.slopes @ (u[i] - layer.home if center else u[i])
        weight = (
            factor * layer.weight + g[:n].view(-1, *[1] * (x.dim() - 1)) * layer.response_weight
        )
        own = factor * layer.bias + g[n:] * layer.response_bias if bias else None
        torch.testing.assert_close(found[i : i + 1], slowly(layer, x[i : i + 1], weight, own))
        at = layer.at(u[i : i + 1])
        torch.testing.assert_close(at[0], weight)
        assert (at[1] is None) == (own is None)


def test_the_gates_of_a_sample_serve_all_its_positions():
    layer = make("linear")
    x, u = torch.randn(5, 7, 2, 4, dtype=DOUBLE), torch.randn(5, 2, dtype=DOUBLE)
    found = outputs(layer, x, u)
    for i in range(7):
        torch.testing.assert_close(found[:, i, 1], outputs(layer, x[:, i, 1], u))


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_without_slopes_it_is_the_ordinary_layer_and_no_gradient_reaches_u(kind):
    layer = make(kind, scaled=True)
    with torch.no_grad():
        layer.slopes.zero_()
    x, u = inputs(kind), torch.randn(1, 2, dtype=DOUBLE, requires_grad=True)
    found = outputs(layer, x, u)
    torch.testing.assert_close(found, 0.7 * slowly(layer, x, layer.weight, layer.bias))
    (gradient,) = torch.autograd.grad(found.square().sum(), u)
    assert gradient.tolist() == [[0.0, 0.0]]


@given(st.integers(0, 2**31), st.sampled_from(["linear", "convolution"]))
@settings(max_examples=30, deadline=None)
def test_outputs_are_affine_in_u(seed, kind):
    layer = make(kind)
    torch.manual_seed(seed)
    x = inputs(kind)
    one, other = (3 * torch.randn(5, 2, dtype=DOUBLE) for _ in range(2))
    both = outputs(layer, x, one) + outputs(layer, x, other)
    torch.testing.assert_close(both, 2 * outputs(layer, x, (one + other) / 2))


def test_the_best_response_of_ridge_is_a_gate_on_fixed_units_and_ours_is_its_tangent():
    torch.manual_seed(1)
    n, d = 30, 6
    x, y = torch.randn(n, d, dtype=DOUBLE), torch.randn(n, dtype=DOUBLE)
    _, singular, right = torch.linalg.svd(x, full_matrices=False)
    ordinary = torch.linalg.lstsq(x, y[:, None]).solution[:, 0]

    def ridge(penalty: float) -> torch.Tensor:
        eye = torch.eye(d, dtype=DOUBLE)
        return torch.linalg.solve(x.T @ x / n + math.exp(penalty) * eye, x.T @ y / n)

    def opening(penalty: float) -> torch.Tensor:
        return torch.sigmoid(2 * singular.log() - math.log(n) - penalty)

    at = -0.4
    exact = right.T @ (opening(at) * (right @ ordinary))
    torch.testing.assert_close(exact, ridge(at), rtol=1e-12, atol=1e-12)

    # Units V'x, each with a gate whose slope is that of the sigmoid there.
    units = gate(nn.Linear(d, d, bias=False, dtype=DOUBLE), 1, center=True)
    with torch.no_grad():
        units.weight.copy_(opening(at)[:, None] * right)
        units.response_weight.copy_(right)
        units.slopes.copy_((-opening(at) * (1 - opening(at)))[:, None])
        units.home.fill_(at)
    errors = []
    for step in (1e-2, 5e-3):
        weight, _ = units.at(torch.tensor([[at + step]], dtype=DOUBLE))
        errors.append((weight.T @ (right @ ordinary) - ridge(at + step)).norm().item())
    assert errors[0] < 1e-4
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.02)


def network() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(48, 8),
        nn.Dropout(0.3),
        nn.Linear(8, 2),
    )


@pytest.mark.parametrize("center", [True, False])
def test_a_baked_network_is_ordinary_and_answers_as_the_gated_one_at_home(center):
    model = gate(network(), 3, center=center, scaled=True).eval()
    assert len(gated_layers(model)) == 3
    for layer in gated_layers(model).values():
        nn.init.normal_(layer.slopes)
    set_home(model, torch.tensor([0.3, -1.0, 2.0]))
    x = torch.randn(6, 1, 4, 4)
    before = model(x)
    baked = bake(copy.deepcopy(model))
    assert not gated_layers(baked)
    assert set(baked.state_dict()) == set(network().state_dict())
    torch.testing.assert_close(baked(x), before)
    torch.testing.assert_close(model(x), before, rtol=0, atol=0)


def test_centered_gates_leave_the_model_as_it_was_wherever_the_knobs_stand():
    before = network().eval()
    model = gate(copy.deepcopy(before), 3, center=True).eval()
    set_home(model, torch.tensor([0.3, -1.0, 2.0]))
    x = torch.randn(6, 1, 4, 4)
    assert torch.equal(model(x), before(x))


def test_a_saved_model_is_whole(tmp_path):
    model = gate(network(), 2)
    set_home(model, torch.tensor([0.3, -1.0]))
    torch.save(model.state_dict(), tmp_path / "model.pt")
    other = gate(network(), 2)
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    x = torch.randn(6, 1, 4, 4)
    assert torch.equal(other.eval()(x), model.eval()(x))


def test_a_layer_in_two_places_is_gated_once_and_tied_or_frozen_weights_stay():
    shared = nn.Linear(3, 3)
    model = nn.Sequential(shared, nn.Tanh(), shared, nn.Linear(3, 3), nn.Linear(3, 3))
    model[4].weight = model[3].weight
    gate(model, 1)
    assert model[0] is model[2]
    assert isinstance(model[0], Gated)
    assert type(model[3]) is type(model[4]) is nn.Linear
    bake(model)
    assert model[0] is model[2]
    frozen = nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 2))
    assert list(gated_layers(gate(frozen, 1))) == ["1"]


def test_what_cannot_be_gated_is_refused():
    with pytest.raises(InputError, match=r"no free nn\.Linear or"):
        gate(nn.LayerNorm(3), 1)
    layer = make("linear")
    with pytest.raises(InputError, match="for 4 samples, and the layer was given 5"):
        outputs(layer, inputs("linear"), torch.zeros(4, 2, dtype=DOUBLE))
    with pytest.raises(InputError, match="for 2 knobs, and there are 3"):
        set_home(layer, torch.zeros(3))
    with pytest.raises(InputError, match=r"gate\(model, len"):
        response_of(nn.Linear(2, 2))
