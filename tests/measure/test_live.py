import copy
import math

import pytest
import torch
from torch import nn

from flatminima.errors import InputError
from flatminima.measure import LiveTrace
from flatminima.measure.live import _Weighted
from flatminima.perturb import NSO, SAM

from .cases import (
    DOUBLE,
    Quadratic,
    cross_entropy,
    dense_hessian,
    mlp,
    quadratic_loss,
    split,
    symmetric,
)


def sgd(model, lr=0.0, **settings):
    base = torch.optim.SGD(model.parameters(), lr=lr)
    return NSO(base, **{"sigma": 1e-3, "seed": 0, **settings})


def run(optimizer, loss, steps):
    for _ in range(steps):
        for _ in optimizer.passes():
            loss().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_with_signs_on_a_diagonal_quadratic_each_step_is_exact():
    model = Quadratic(torch.tensor([3.0, -1.0, 0.5, 7.0], dtype=DOUBLE).diag())
    model.weight.data.normal_()
    optimizer = sgd(model, sigma=0.3, noise="rademacher", num_perturbations=2, clean_weight=0.25)
    meter = LiveTrace(optimizer)
    for _ in range(3):
        run(optimizer, lambda: quadratic_loss(model, None), 1)
        assert meter.last() == pytest.approx(9.5, rel=1e-10)
    assert meter.estimate().stderr < 1e-9


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_perturbations": 3, "clean_weight": 0.5},
        {"running_statistics": "clean"},
        {"noise": "laplace"},
        {"two_point": False},
        {"signs": "alternate"},
    ],
)
def test_the_mean_over_steps_is_the_trace(settings):
    hessian = symmetric(6) + 2 * torch.eye(6, dtype=DOUBLE)
    model = Quadratic(hessian, torch.full((6,), 0.01, dtype=DOUBLE))
    optimizer = sgd(model, sigma=0.1, **settings)
    meter = LiveTrace(optimizer, memory=1e9)
    run(optimizer, lambda: quadratic_loss(model, None), 600)
    found = meter.estimate()
    assert found.samples == 600
    assert abs(found.value - hessian.trace().item()) < 4 * found.stderr
    assert found.stderr < 0.08 * hessian.trace().item()


def test_the_error_of_a_pair_is_that_of_hutchinsons_estimate():
    hessian = symmetric(6)
    model = Quadratic(hessian, torch.full((6,), 100.0, dtype=DOUBLE))
    optimizer = sgd(model)
    meter = LiveTrace(optimizer, memory=1e9)
    run(optimizer, lambda: quadratic_loss(model, None), 800)
    exact = math.sqrt(2 * hessian.square().sum().item() / 800)
    assert meter.estimate().stderr == pytest.approx(exact, rel=0.2)
    one_sided = sgd(model, two_point=False)
    other = LiveTrace(one_sided, memory=1e9)
    run(one_sided, lambda: quadratic_loss(model, None), 100)
    assert other.estimate().stderr > 1000 * exact


def samples(model, batch, step, **settings):
    """One step's sample at fixed weights; `step` takes it."""
    model = copy.deepcopy(model)
    optimizer = sgd(model, **settings)
    meter = LiveTrace(optimizer)
    step(optimizer, model, batch)
    return meter.last()


def by_passes(optimizer, model, batch):
    for _ in optimizer.passes():
        cross_entropy(model, batch).backward()
    optimizer.step()


def by_closure(optimizer, model, batch):
    def closure():
        optimizer.zero_grad()
        loss = cross_entropy(model, batch)
        loss.backward()
        return loss

    optimizer.step(closure)


def by_micro_batches_inside(optimizer, model, batch):
    for _ in optimizer.passes():
        for part in split(batch, 12, 12):
            (cross_entropy(model, part) / 2).backward()
    optimizer.step()


def by_micro_batches_outside(optimizer, model, batch):
    for part in split(batch, 12, 12):
        for _ in optimizer.passes():
            (cross_entropy(model, part) / 2).backward()
    optimizer.step()


def by_emptying_inside(optimizer, model, batch):
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    for i, _ in enumerate(optimizer.passes()):
        if i == 0:
            optimizer.zero_grad()
        cross_entropy(model, batch).backward()
    optimizer.step()


def after_a_step_that_was_broken_off(optimizer, model, batch):
    passes = optimizer.passes()
    for _ in range(2):
        next(passes)
        cross_entropy(model, batch).backward()
    passes.close()
    optimizer.zero_grad()
    by_passes(optimizer, model, batch)


@pytest.mark.parametrize(
    "step",
    [
        by_closure,
        by_micro_batches_inside,
        by_micro_batches_outside,
        by_emptying_inside,
        after_a_step_that_was_broken_off,
    ],
)
@pytest.mark.parametrize("settings", [{}, {"num_perturbations": 2, "clean_weight": 0.3}])
def test_however_the_step_is_taken_the_sample_is_the_same(step, settings):
    model, batch = mlp()
    expected = samples(model, batch, by_passes, **settings)
    assert samples(model, batch, step, **settings) == pytest.approx(expected, rel=1e-6)


def test_of_odd_halves_each_counts_by_its_samples():
    model, batch = mlp()
    batch = (batch[0][:7], batch[1][:7])
    optimizer = sgd(model, sigma=0.1, signs="split")
    meter = LiveTrace(optimizer)
    home = [p.detach().clone() for p in model.parameters()]
    expected = 0.0
    for part in optimizer.passes(*batch):
        loss = cross_entropy(model, part)
        offsets = [p.detach() - q for p, q in zip(model.parameters(), home, strict=True)]
        slopes = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        along = sum((u * g).sum() for u, g in zip(offsets, slopes, strict=True))
        expected += len(part[1]) / 7 * along.item() / 0.1**2
        loss.backward()
    optimizer.step()
    assert meter.last() == pytest.approx(expected, rel=1e-9)


def test_16_bit_weights_are_measured_by_the_displacements_that_rounding_left():
    model = Quadratic(torch.eye(4000, dtype=torch.bfloat16))
    model.weight.data.fill_(0.01)
    optimizer = sgd(model, sigma=0.1)
    meter = LiveTrace(optimizer)
    run(optimizer, lambda: model.weight.square().sum() / 2, 30)
    found = meter.estimate()
    # The gradient of w.w/2 is w: rounded to 8 bits, in noise of 3 digits.
    assert found.value == pytest.approx(4000, rel=0.02)


def test_complex_weights_have_two_coordinates_each():
    weight = nn.Parameter(torch.zeros(50, dtype=torch.complex128))
    optimizer = NSO(torch.optim.SGD([weight], lr=0.0), sigma=0.1, seed=0, noise="rademacher")
    meter = LiveTrace(optimizer)
    run(optimizer, lambda: 1.5 * weight.abs().square().sum(), 2)
    assert meter.last() == pytest.approx(300.0)


def test_groups_have_their_own_sigma_and_frozen_ones_none():
    model, batch = mlp()
    groups = [
        {"params": model[0].parameters(), "sigma": 1e-3},
        {"params": [model[2].weight], "sigma": 2e-3},
        {"params": [model[2].bias], "sigma": 0.0},
    ]
    optimizer = NSO(torch.optim.SGD(groups, lr=0.0), sigma=1.0, seed=0)
    meter = LiveTrace(optimizer, memory=1e9)
    run(optimizer, lambda: cross_entropy(model, batch), 600)
    exact = dense_hessian(model, batch).diagonal()[:-3].sum().item()
    found = meter.estimate()
    assert abs(found.value - exact) < 4 * found.stderr
    assert found.stderr < 0.1 * exact


def test_watching_changes_no_weight():
    runs = []
    for watched in (False, True):
        model, batch = mlp()
        optimizer = sgd(model, lr=0.1, num_perturbations=2, clean_weight=0.5)
        if watched:
            LiveTrace(optimizer)
        run(optimizer, lambda m=model, b=batch: cross_entropy(m, b), 5)
        runs.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(p, q) for p, q in zip(*runs, strict=True))


@pytest.mark.parametrize("signs", ["paired", "split"])
def test_along_a_run_it_follows_the_exact_trace(signs):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3)).to(DOUBLE)
    with torch.no_grad():
        model[2].weight.mul_(8)
    x = torch.randn(96, 5, dtype=DOUBLE)
    batch = (x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long())
    optimizer = sgd(model, lr=0.2, sigma=0.02, signs=signs)
    meter = LiveTrace(optimizer, memory=40)
    inside, exact, errors = 0, [], []
    for _ in range(12):
        traces = []
        for step in range(50):
            if step % 5 == 0:
                traces.append(dense_hessian(model, batch).trace().item())
            order = torch.randperm(96)
            for x_, y_ in optimizer.passes(x[order], batch[1][order]):
                cross_entropy(model, (x_, y_)).backward()
            optimizer.step()
            optimizer.zero_grad()
        ages = torch.arange(45, -1, -5, dtype=DOUBLE)
        weights = (1 - 1 / 40) ** ages
        exact.append((weights @ torch.tensor(traces, dtype=DOUBLE) / weights.sum()).item())
        found = meter.estimate()
        errors.append(found.stderr)
        # The trace moves within the mean's reach, hence a tenth of it besides.
        inside += abs(found.value - exact[-1]) < 2 * found.stderr + 0.1 * exact[-1]
    assert inside >= 10
    assert max(exact) > 1.5 * min(exact)
    if signs == "paired":
        assert max(errors) < 0.15 * max(exact)


def test_the_bias_is_of_second_order_and_named():
    """For f = a cos(w) the trace of the smoothed loss is exp(-sigma^2 / 2) times that of f."""

    class Wave(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(20, dtype=DOUBLE))

    for sigma in (0.1, 1.0):
        model = Wave()
        optimizer = sgd(model, sigma=sigma)
        meter = LiveTrace(optimizer, memory=1e9)
        run(optimizer, lambda m=model: -m.weight.cos().sum(), 800)
        found = meter.estimate()
        assert abs(found.value - 20 * math.exp(-(sigma**2) / 2)) < 4 * found.stderr
        assert found.stderr < 0.02 * found.value


def test_a_scaler_is_undone_and_overflowing_steps_do_not_count():
    model, batch = mlp()
    expected = samples(model, batch, by_passes)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizer = NSO(torch.optim.SGD(model.parameters(), lr=0.0), sigma=1e-3, seed=0, scaler=scaler)
    meter = LiveTrace(optimizer)

    def step(factor):
        for _ in optimizer.passes():
            scaler.scale(cross_entropy(model, batch) * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    step(math.inf)
    assert math.isnan(meter.last())
    step(1.0)
    assert meter.last() == pytest.approx(expected, rel=1e-6)
    assert meter.estimate().samples == 1


def test_plain_steps_between_give_no_sample():
    model, batch = mlp()
    optimizer = sgd(model, interval=3)
    meter = LiveTrace(optimizer)
    run(optimizer, lambda: cross_entropy(model, batch), 7)
    assert meter.estimate().samples == 3


def test_the_weighted_mean_and_its_error_are_those_of_their_definitions():
    draws = torch.randn(50, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    weighted = _Weighted(0.9)
    for draw in draws.tolist():
        weighted.add(draw)
    w = 0.9 ** torch.arange(49, -1, -1, dtype=DOUBLE)
    mean = (w @ draws) / w.sum()
    variance = (w @ (draws - mean).square()) / (w.sum() - w.square().sum() / w.sum())
    assert weighted.value == pytest.approx(mean.item())
    error = (variance * w.square().sum()).sqrt() / w.sum()
    assert weighted.stderr == pytest.approx(error.item())
    assert weighted.effective == pytest.approx((w.sum() ** 2 / w.square().sum()).item())


def test_before_the_first_step_there_is_no_number_and_a_resumed_meter_goes_on():
    model, batch = mlp()
    optimizer = sgd(model)
    meter = LiveTrace(optimizer)
    assert math.isnan(meter.estimate().value)
    run(optimizer, lambda: cross_entropy(model, batch), 1)
    assert math.isnan(meter.estimate().stderr)
    run(optimizer, lambda: cross_entropy(model, batch), 4)
    state = copy.deepcopy(meter.state_dict())
    meter.detach()
    other = LiveTrace(optimizer)
    other.load_state_dict(state)
    assert other.estimate() == meter.estimate()
    run(optimizer, lambda: cross_entropy(model, batch), 1)
    assert other.estimate() != meter.estimate()


def test_what_cannot_be_watched_is_refused():
    model, _ = mlp()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(InputError, match="the optimizer is SAM"):
        LiveTrace(SAM(base, rho=0.1))
    with pytest.raises(InputError, match="scale='layer'"):
        LiveTrace(NSO(base, sigma=0.1, scale="layer"))
    with pytest.raises(InputError, match="memory is 0"):
        LiveTrace(NSO(base, sigma=0.1), memory=0)
    optimizer = NSO(base, sigma=0.1)
    LiveTrace(optimizer)
    with pytest.raises(InputError, match="has a meter already"):
        LiveTrace(optimizer)
