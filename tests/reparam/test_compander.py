"""Bounded companding weights: the function, its place in a model, and runs with it."""

import copy
import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import parametrize

from flatminima import NSO, SAM
from flatminima.errors import InputError
from flatminima.reparam import Companded, WeightCompander, bake_, compand_, make_reparam
from flatminima.training.measuring import open_target
from flatminima.training.recipe import Recipe
from flatminima.training.run import finetune

positive = st.floats(1e-2, 1e2)


def network():
    torch.manual_seed(0)
    layers = nn.Linear(6, 5), nn.BatchNorm1d(5), nn.GELU(), nn.Linear(5, 4), nn.GELU()
    return nn.Sequential(*layers, nn.Linear(4, 3))


def scaled(a, b, fn="arctan", learnable=False):
    """One that was told its weights, in float64."""
    made = WeightCompander(a, b, learnable, fn)
    made.right_inverse(torch.zeros(2, dtype=torch.float64))
    return made


@settings(max_examples=50, deadline=None)
@given(positive, positive, st.floats(-1e3, 1e3))
def test_the_slope_is_that_of_the_closed_form(a, b, v):
    latent = torch.tensor(v, dtype=torch.float64, requires_grad=True)
    for fn in ("arctan", "tanh"):
        w = scaled(a, b, fn)(latent)
        (slope,) = torch.autograd.grad(w, latent)
        inner = (w / a).detach()
        expected = inner.cos() ** 2 if fn == "arctan" else 1 - inner**2
        torch.testing.assert_close(slope, a / b * expected, rtol=1e-9, atol=1e-12 * a / b)


def test_the_slope_at_zero_is_a_over_b():
    latent = torch.zeros((), dtype=torch.float64, requires_grad=True)
    for fn in ("arctan", "tanh"):
        (slope,) = torch.autograd.grad(scaled(0.3, 0.1, fn)(latent), latent)
        assert slope.item() == pytest.approx(3.0, rel=1e-14)


@settings(max_examples=50, deadline=None)
@given(positive, positive, st.floats(-0.89, 0.89), st.sampled_from(["arctan", "tanh"]))
def test_the_inverse_is_one(a, b, part, fn):
    made = scaled(a, b, fn)
    w = torch.tensor([part * a], dtype=torch.float64)
    torch.testing.assert_close(made(made.right_inverse(w)), w, rtol=1e-12, atol=1e-14 * a)


@settings(max_examples=50, deadline=None)
@given(positive, st.floats(-1e6, 1e6))
def test_no_latent_is_beyond_the_bound_and_the_function_is_odd(a, v):
    latent = torch.tensor(v, dtype=torch.float64)
    for fn, bound in (("arctan", a * math.pi / 2), ("tanh", a)):
        made = scaled(a, 0.5, fn)
        assert abs(made(latent).item()) <= bound * (1 + 1e-15)
        assert torch.equal(made(-latent), -made(latent))


@settings(max_examples=50, deadline=None)
@given(st.floats(-10, 10), st.floats(1, 1e4))
def test_far_from_its_bound_it_is_the_identity(v, b):
    latent = torch.tensor(v, dtype=torch.float64)
    for fn in ("arctan", "tanh"):
        away = abs(scaled(b, b, fn)(latent) - latent).item()
        assert away <= abs(v) ** 3 / (3 * b * b) + 1e-12


def test_the_slopes_by_the_scales_are_those_of_the_closed_form():
    a, b = 0.7, 0.4
    made = scaled(a, b, learnable=True)
    v = torch.linspace(-2, 2, 9, dtype=torch.float64)
    for index in range(9):
        w = made(v)[index]
        by_log_a, by_log_b = torch.autograd.grad(w, (made.log_a, made.log_b))
        torch.testing.assert_close(by_log_a / a, w.detach() / a)
        torch.testing.assert_close(by_log_b / b, -a * v[index] / (b * b + v[index] ** 2))


def test_a_model_begins_as_it_was_and_is_left_with_the_same_outputs():
    for learnable in (False, True):
        model, x = network().eval(), torch.randn(8, 6)
        before = model(x)
        compand_(model, learnable=learnable)
        torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-6)
        trained(model)
        after = model.eval()(x)
        assert bake_(model) is model
        assert torch.equal(model(x), after)
        assert model.state_dict().keys() == network().state_dict().keys()
        assert [type(m) for m in model] == [type(m) for m in network()]
        assert all(p.requires_grad and p.is_leaf for p in model.parameters())


def trained(model, wrap=lambda base: base, steps=5):
    torch.manual_seed(1)
    x, y = torch.randn(16, 6), torch.randint(3, (16,))
    model.train()
    optimizer = wrap(torch.optim.SGD(model.parameters(), lr=0.5))
    for _ in range(steps):
        for _ in optimizer.passes() if hasattr(optimizer, "passes") else [None]:
            nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def test_a_copy_can_be_baked_and_the_model_trained_on():
    model, x = compand_(network()), torch.randn(8, 6)
    copied = copy.deepcopy(model)
    before = model.eval()(x)
    bake_(copied)
    assert torch.equal(copied.eval()(x), before)
    trained(model)
    assert parametrize.is_parametrized(model[0])
    assert not torch.equal(model.eval()(x), before)


@pytest.mark.parametrize("wrap", [lambda b: NSO(b, sigma=0.5), lambda b: SAM(b, rho=1.0)])
def test_under_passes_the_bound_holds_and_the_latents_move(wrap):
    model = compand_(network(), a=0.4, b=0.1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trained(model, wrap, steps=20)
    for layer in (model[0], model[3], model[5]):
        assert layer.weight.abs().max() < 0.4 * math.pi / 2
    latents = {name: p for name, p in model.named_parameters() if p.dim() > 1}
    assert all(not torch.equal(p, before[name]) for name, p in latents.items())


def test_a_step_moves_a_weight_by_the_square_of_the_slope():
    made = scaled(0.3, 0.1)
    v = torch.linspace(-0.4, 0.4, 9, dtype=torch.float64, requires_grad=True)
    slope = torch.autograd.grad(made(v).sum(), v)[0]
    by_weight = torch.randn(9, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((by_weight * made(v)).sum(), v)
    rate = 1e-7
    moved = (made(v - rate * gradient) - made(v)).detach()
    torch.testing.assert_close(moved, -rate * slope**2 * by_weight, rtol=1e-4, atol=1e-13)


def test_weights_without_a_latent_are_clipped_with_a_warning():
    layer = nn.Linear(3, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.05, -0.2, 3.0]]))
    with pytest.warns(UserWarning, match=r"2 of 3 weights of shape \(1, 3\) .* larger than 1.4 a"):
        compand_(layer, a=0.1)
    torch.testing.assert_close(layer.weight, torch.tensor([[0.05, -0.14, 0.14]]))


def test_the_default_scale_clips_nothing_and_is_of_each_layer():
    model = network()
    with torch.no_grad():
        model[0].weight[0, 0] = 5.0  # far out
        model[5].weight.uniform_(-1, 1)
    deviation = model[5].weight.std(correction=0).item()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compand_(model)
    first, last = (model[i].parametrizations.weight[0] for i in (0, 5))
    assert first.log_a.exp().item() == pytest.approx(5.0 / 1.4)
    assert last.log_a.exp().item() == pytest.approx(2 * deviation)
    assert last.log_b.exp().item() == pytest.approx(deviation)


def test_relative_scales_are_in_standard_deviations():
    model = network()
    deviations = [model[i].weight.std(correction=0).item() for i in (0, 3, 5)]
    compand_(model, a=2.0, b=3.0, relative=True)
    for index, deviation in zip((0, 3, 5), deviations, strict=True):
        made = model[index].parametrizations.weight[0]
        assert made.log_a.exp().item() == pytest.approx(2 * deviation)
        assert made.log_b.exp().item() == pytest.approx(3 * deviation)


def test_it_leaves_alone_what_is_frozen_shared_or_no_layer():
    model = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3), nn.Embedding(3, 3), nn.Linear(3, 3)])
    model[0].weight.requires_grad_(False)
    model[1].weight = model[2].weight
    compand_(model, learnable=True)
    assert [parametrize.is_parametrized(m) for m in model] == [False, False, False, True]
    assert model[1].weight is model[2].weight
    with pytest.raises(InputError, match="no layer of Linear"):
        compand_(model)


def test_half_precision_weights_stay_and_scales_are_float32():
    layer = nn.Linear(64, 64).to(torch.bfloat16)
    before = layer.weight.detach().clone()
    compand_(layer, learnable=True)
    assert layer.weight.dtype == torch.bfloat16
    made = layer.parametrizations.weight
    assert made.original.dtype == torch.bfloat16
    assert made[0].log_a.dtype == torch.float32
    # Two roundings to 8 bits, of which the slope takes little away.
    torch.testing.assert_close(layer.weight, before, rtol=3e-2, atol=1e-4)


@pytest.mark.parametrize("learnable", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_converted_to_half_precision_keeps_its_scales(dtype, learnable):
    layer = nn.Linear(8, 8)
    compand_(layer, learnable=learnable)
    latents = layer.parametrizations.weight.original.detach().clone()
    compander = layer.parametrizations.weight[0]
    a, b = compander.log_a.item(), compander.log_b.item()
    layer.to(dtype)
    assert (compander.log_a.item(), compander.log_b.item()) == (a, b)
    assert layer.weight.dtype == dtype
    wanted = math.exp(a) * (latents.to(dtype).float() / math.exp(b)).arctan()
    torch.testing.assert_close(layer.weight, wanted.to(dtype))


def test_the_state_carries_the_scales_to_a_model_begun_elsewhere():
    x, model = torch.randn(4, 6), trained(compand_(network(), a=2.0, learnable=True)).eval()
    other = compand_(network(), learnable=True)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.eval()(x), model(x))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"a": 0}, "a is 0: give a finite number above 0"),
        ({"a": "big"}, "a is 'big'"),
        ({"b": -1.0}, "b is -1.0"),
        ({"a": float("inf")}, "a is inf"),
        ({"a": True}, "a is True"),
        ({"fn": "arctn"}, "did you mean 'arctan'"),
        ({"alpha": 1.0}, "option of 'weight-compander' 'alpha'"),
    ],
)
def test_bad_options_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        make_reparam("weight-compander", network(), **given)


def test_weights_that_are_all_equal_give_no_scale():
    layer = nn.Linear(3, 3)
    nn.init.zeros_(layer.weight)
    with pytest.raises(InputError, match="standard deviation 0"):
        compand_(layer)
    compand_(layer, a=0.1)
    assert torch.equal(layer.weight, torch.zeros(3, 3))


def test_a_model_that_is_refused_is_left_as_it_was():
    model = network()
    nn.init.zeros_(model[5].weight)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match="standard deviation 0"):
        compand_(model)
    assert not any(parametrize.is_parametrized(module) for module in model.modules())
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


SMALL = {"epochs": 2, "train_size": 60, "batch_size": 16, "pretrain": False, "measure": False}


def start(path, **values):
    return finetune(Recipe.from_flat({**SMALL, **values}), path, say=lambda text: None)


@pytest.mark.parametrize(
    "values",
    [
        {"reparam": "weight-compander", "objective": "elr", "perturb": "nso", "model": "cnn"},
        {"reparam": "weight-compander(learnable=true; fn=tanh)", "perturb": "sam", "keep": "ema"},
        {"reparam": "weight-compander(a=1; relative=true)", "precision": "bf16"},
    ],
)
@pytest.mark.filterwarnings("ignore:.*were clipped")
def test_killed_and_resumed_equals_never_stopped(whole_and_cut, values):
    whole_and_cut(**{**SMALL, **values})


def test_a_run_leaves_the_ordinary_model_and_is_opened_as_it(tmp_path):
    start(tmp_path / "a", reparam="weight-compander(a=0.2; learnable=true)", perturb="nso")
    last = load_file(tmp_path / "a/checkpoints/last/model.safetensors")
    baked = load_file(tmp_path / "a/checkpoints/baked/model.safetensors")
    assert sum(name.endswith("log_a") for name in last) == 3
    assert not any("parametrizations" in name for name in baked)
    found = open_target(str(tmp_path / "a"), {}, say=lambda text: None)
    found = found.prepared.built.model.state_dict()
    assert found.keys() == baked.keys()
    assert all(torch.equal(found[name], baked[name]) for name in baked)


def test_the_scales_are_spared_by_weight_decay(tmp_path):
    from flatminima.training.optimizers import base_optimizer
    from flatminima.training.specs import OptimizerSpec

    model = network()
    Companded(model, learnable=True)
    spec = OptimizerSpec(optimizer="sgd", lr=0.1, weight_decay=0.01)
    groups = base_optimizer(model, spec, 1).param_groups
    decayed = {name for g in groups if g["weight_decay"] for name in g["param_names"]}
    assert decayed == {f"{i}.parametrizations.weight.original" for i in (0, 3, 5)}
