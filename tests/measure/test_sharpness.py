import json
import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from flatminima.errors import InputError
from flatminima.measure import (
    GaussNewton,
    Hessian,
    Sharpness,
    average_sharpness,
    dynamical_stability,
    hessian_trace,
    start_sigma,
    worst_case_sharpness,
)
from flatminima.perturb import ASAM, SAM

from .cases import (
    DOUBLE,
    MODELS,
    Quadratic,
    cross_entropy,
    mlp,
    quadratic_loss,
    split,
    symmetric,
)

ONE = [torch.zeros(1)]


def worst(hessian, slope=None, at=None, **settings):
    model = Quadratic(hessian, slope)
    if at is not None:
        model.weight.data.copy_(at)
    return worst_case_sharpness(model, quadratic_loss, ONE, **settings)


@pytest.mark.parametrize("seed", range(5))
def test_at_a_minimum_it_is_half_rho_squared_times_the_top_eigenvalue(seed):
    hessian = symmetric(8, seed) @ symmetric(8, seed)
    found = worst(hessian, rho=0.3, steps=400)
    top = torch.linalg.eigvalsh(hessian)[-1].item()
    assert found.value == pytest.approx(0.3**2 / 2 * top, rel=1e-6)
    assert found.rises[0] == (0.0,)


@pytest.mark.parametrize("seed", range(5))
def test_negative_curvature_does_not_mislead_the_ascent(seed):
    spectrum = torch.tensor([-10.0, -8.0, 0.5, 1.0], dtype=DOUBLE)
    turn, _ = torch.linalg.qr(symmetric(4, seed))
    found = worst(turn @ spectrum.diag() @ turn.T, rho=1.0, steps=200, seed=seed)
    assert found.value == pytest.approx(0.5, rel=1e-3)


def test_with_a_slope_it_is_the_maximum_over_the_circle():
    hessian, slope = symmetric(2), torch.tensor([0.3, -0.2], dtype=DOUBLE)
    angles = torch.linspace(0, 2 * math.pi, 20_001, dtype=DOUBLE)
    circle = 0.7 * torch.stack([angles.cos(), angles.sin()], 1)
    exact = ((circle @ hessian * circle).sum(1) / 2 + circle @ slope).max().item()
    found = worst(hessian, slope, rho=0.7, steps=100, starts=5)
    assert found.value == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize(("method", "adaptive"), [(SAM, False), (ASAM, True)])
def test_the_first_step_is_the_methods_own(method, adaptive):
    model, batch = mlp()
    found = worst_case_sharpness(
        model, cross_entropy, split(batch, 20, 4), rho=0.2, adaptive=adaptive, steps=1, starts=1
    )
    optimizer = method(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.2)
    losses = []
    for _ in optimizer.passes():
        losses.append(cross_entropy(model, batch))
        losses[-1].backward()
    assert found.loss == pytest.approx(losses[0].item(), rel=1e-12)
    assert found.rises[0] == (0.0, pytest.approx(losses[1].item() - losses[0].item(), rel=1e-9))
    assert found.gradients == 2


def test_it_lies_between_the_first_step_and_brute_force_and_grows_with_steps_and_radius():
    model, batch = mlp()
    by_steps = [
        worst_case_sharpness(model, cross_entropy, [batch], rho=0.5, steps=n, starts=3).value
        for n in (1, 5, 20)
    ]
    assert by_steps == sorted(by_steps)
    by_rho = [
        worst_case_sharpness(model, cross_entropy, [batch], rho=rho).value for rho in (0.1, 0.5, 2)
    ]
    assert by_rho == sorted(by_rho)
    mean = average_sharpness(model, cross_entropy, [batch], rho=0.5, draws=200)
    assert by_steps[-1] > mean.value + 4 * mean.stderr


def test_rescaling_weights_and_their_balls_together_changes_nothing():
    def scaled(factor):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 6, bias=False), nn.ReLU(), nn.Linear(6, 3)).to(DOUBLE)
        with torch.no_grad():
            model[0].weight.mul_(factor)
            model[2].weight.div_(factor)
        return model

    batch = mlp()[1]
    settings = {"rho": 0.3, "adaptive": True, "eta": 0.0, "starts": 1}
    one, other = (
        worst_case_sharpness(scaled(factor), cross_entropy, [batch], **settings)
        for factor in (1.0, 8.0)
    )
    assert other.value == pytest.approx(one.value, rel=1e-9)
    plain, moved = (
        worst_case_sharpness(scaled(factor), cross_entropy, [batch], rho=0.3, starts=1)
        for factor in (1.0, 8.0)
    )
    assert abs(moved.value / plain.value - 1) > 0.1


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("measure", [worst_case_sharpness, average_sharpness])
def test_the_model_is_left_as_it_was_also_after_an_error(name, measure):
    model, batch = MODELS[name]()
    model.train()
    model.requires_grad_(True)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    random = torch.get_rng_state()
    measure(model, cross_entropy, [batch], rho=0.3)

    def breaking(model, batch):
        if any(not torch.equal(p, before[key]) for key, p in model.named_parameters()):
            raise RuntimeError("broken")
        return cross_entropy(model, batch)

    with pytest.raises(RuntimeError, match="broken"):
        measure(model, breaking, [batch], rho=0.3)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random)


def test_frozen_and_unused_parameters_stay_out():
    model, batch = mlp()
    whole = worst_case_sharpness(model, cross_entropy, [batch], rho=0.3)
    head = worst_case_sharpness(
        model, cross_entropy, [batch], rho=0.3, params=model[2].parameters()
    )
    assert head.value < whole.value
    model[0].requires_grad_(False)
    model.register_parameter("unused", nn.Parameter(torch.ones(3, dtype=DOUBLE)))
    unused = worst_case_sharpness(model, cross_entropy, [batch], rho=0.3, starts=1)
    assert unused.value == pytest.approx(head.value, rel=1e-3)


def test_the_average_is_the_trace_over_the_number_of_weights():
    hessian = symmetric(6) + 2 * torch.eye(6, dtype=DOUBLE)
    model = Quadratic(hessian, torch.full((6,), 5.0, dtype=DOUBLE))
    found = average_sharpness(model, quadratic_loss, ONE, rho=0.4, draws=2000)
    exact = 0.4**2 / 12 * hessian.trace().item()
    assert abs(found.value - exact) < 4 * found.stderr
    assert found.stderr < 0.02 * exact
    sphere = Quadratic(torch.eye(6, dtype=DOUBLE))
    found = average_sharpness(sphere, quadratic_loss, ONE, rho=0.4, draws=3)
    assert found.value == pytest.approx(0.08)
    assert found.stderr < 1e-15


def test_the_adaptive_average_is_the_trace_of_the_scaled_hessian():
    hessian = symmetric(6) + 2 * torch.eye(6, dtype=DOUBLE)
    model = Quadratic(hessian)
    model.weight.data.copy_(torch.linspace(-3, 2, 6))
    found = average_sharpness(model, quadratic_loss, ONE, rho=0.4, adaptive=True, draws=3000)
    axes = model.weight.detach().abs() + 0.01
    exact = 0.4**2 / 12 * (axes.square() * hessian.diagonal()).sum().item()
    assert abs(found.value - exact) < 4 * found.stderr
    assert found.stderr < 0.05 * exact


def test_unequal_batches_equal_the_whole_set():
    model, batch = mlp()
    for measure in (worst_case_sharpness, average_sharpness):
        whole = measure(model, cross_entropy, [batch], rho=0.3)
        parts = measure(model, cross_entropy, split(batch, 21, 1, 2), rho=0.3)
        assert parts.value == pytest.approx(whole.value, rel=1e-8)


def test_it_prints_serializes_and_reports_progress():
    model, batch = mlp()
    calls = []
    found = worst_case_sharpness(
        model, cross_entropy, [batch], rho=0.3, steps=4, progress=lambda *call: calls.append(call)
    )
    assert found.gradients == 10
    assert calls[0] == ("sharpness", 1, 10)
    assert calls[-1] == ("sharpness", 10, 10)
    assert [len(rises) for rises in found.rises] == [5, 5]
    assert found.value == max(map(max, found.rises))
    assert found.spread >= 0
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert Sharpness.from_dict(data) == found
    assert str(found).startswith("at least ")
    assert "2 ascents, 10 gradients" in str(found)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rho": 0.0}, "rho is 0.0"),
        ({"rho": math.inf}, "rho is inf"),
        ({"rho": 0.1, "eta": -1.0}, "eta is -1"),
        ({"rho": 0.1, "steps": 0}, "steps is 0"),
        ({"rho": 0.1, "starts": 0}, "starts is 0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        worst(symmetric(2), **arguments)


def test_a_loss_without_parameters_and_one_that_explodes_are_refused():
    model, batch = mlp()
    with pytest.raises(InputError, match="does not depend on the parameters"):
        worst_case_sharpness(model, lambda m, b: b[0].mean(), [batch], rho=0.1)

    def explodes(model, batch):
        return (1e300 * model.weight).exp().sum() if model.weight.any() else model.weight.sum()

    with pytest.raises(InputError, match="take a smaller rho"):
        worst_case_sharpness(Quadratic(symmetric(3)), explodes, ONE, rho=0.1)
    with pytest.raises(InputError, match="draws is 0"):
        average_sharpness(model, cross_entropy, [batch], rho=0.1, draws=0)


def loader(batch, **settings):
    return DataLoader(TensorDataset(*batch), batch_size=10, **settings)


def test_a_loader_that_shuffles_and_drops_gives_each_gradient_the_same_samples():
    model, batch = mlp()
    torch.manual_seed(5)
    shuffled = loader(batch, shuffle=True, drop_last=True)
    found = worst_case_sharpness(model, cross_entropy, shuffled, rho=1e-4, steps=5)
    # The first pass, from the same random state, is what all of them saw.
    torch.manual_seed(5)
    kept = list(shuffled)
    fixed = worst_case_sharpness(model, cross_entropy, kept, rho=1e-4, steps=5)
    assert found.samples == 20
    for rises, same in zip(found.rises, fixed.rises, strict=True):
        assert rises == pytest.approx(same, rel=1e-9)
    assert found.value < 1e-3


def test_a_loader_whose_samples_change_by_a_generator_of_its_own_is_refused():
    model, batch = mlp()
    own = torch.Generator().manual_seed(0)
    changing = loader(batch, shuffle=True, drop_last=True, generator=own)
    refused = "hold other samples, so give ones that stay the same"
    with pytest.raises(InputError, match=refused):
        worst_case_sharpness(model, cross_entropy, changing, rho=1e-4, steps=5)
    with pytest.raises(InputError, match=refused):
        start_sigma(model, cross_entropy, changing)
    # The same samples in another order are no reason.
    whole = loader(batch, shuffle=True, generator=own)
    assert worst_case_sharpness(model, cross_entropy, whole, rho=1e-4, steps=2).samples == 24


def test_where_gradients_are_not_recorded_the_reason_is_said():
    model, batch = mlp()
    measures = {
        "Hessian": lambda: hessian_trace(Hessian(model, cross_entropy, [batch])),
        "differences": lambda: hessian_trace(
            Hessian(model, cross_entropy, [batch], backend="differences")
        ),
        "Gauss-Newton": lambda: hessian_trace(GaussNewton(model, cross_entropy, [batch])),
        "sharpness": lambda: worst_case_sharpness(model, cross_entropy, [batch], rho=0.1),
        "stability": lambda: dynamical_stability(
            model, cross_entropy, [batch], lr=0.1, batch_size=4
        ),
    }
    for measure in measures.values():
        with torch.inference_mode(), pytest.raises(InputError, match="inference_mode is on"):
            measure()
