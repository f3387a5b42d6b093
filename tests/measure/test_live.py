import copy
import gc
import math
import weakref

import pytest
import torch
from torch import nn

from flatminima.errors import InputError
from flatminima.measure import LiveTrace, smoothed_curvature
from flatminima.measure.along import SMALL
from flatminima.measure.moving import MovingMean
from flatminima.perturb import NSO, SAM
from flatminima.perturb.weights import Weights

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


def watch(optimizer, **settings):
    return LiveTrace(optimizer, **{"every": 1, **settings})


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
    meter = watch(optimizer)
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
    meter = watch(optimizer, memory=1e9)
    run(optimizer, lambda: quadratic_loss(model, None), 600)
    found = meter.estimate()
    assert found.samples == (300 if "signs" in settings else 600)
    assert abs(found.value - hessian.trace().item()) < 4 * found.stderr
    assert found.stderr < 0.08 * hessian.trace().item()


def test_the_error_of_a_pair_is_that_of_hutchinsons_estimate():
    hessian = symmetric(6)
    model = Quadratic(hessian, torch.full((6,), 100.0, dtype=DOUBLE))
    optimizer = sgd(model)
    meter = watch(optimizer, memory=1e9)
    run(optimizer, lambda: quadratic_loss(model, None), 800)
    exact = math.sqrt(2 * hessian.square().sum().item() / 800)
    assert meter.estimate().stderr == pytest.approx(exact, rel=0.2)
    alternating = sgd(model, signs="alternate")
    other = watch(alternating, memory=1e9)
    run(alternating, lambda: quadratic_loss(model, None), 800)
    assert other.estimate().stderr == pytest.approx(exact * math.sqrt(2), rel=0.2)
    one_sided = sgd(model, two_point=False)
    other = watch(one_sided, memory=1e9)
    run(one_sided, lambda: quadratic_loss(model, None), 100)
    assert other.estimate().stderr > 1000 * exact


def samples(model, batch, step, **settings):
    """One step's samples of both curvatures at fixed weights; `step` takes it."""
    model = copy.deepcopy(model)
    optimizer = sgd(model, **settings)
    meter = watch(optimizer)
    step(optimizer, model, batch)
    losses = meter.smoothed_curvature().value if meter.compares_losses else math.nan
    return meter.last(), losses


def back(optimizer, loss):
    loss.backward()
    optimizer.watcher.saw(loss)


def by_passes(optimizer, model, batch):
    for _ in optimizer.passes():
        back(optimizer, cross_entropy(model, batch))
    optimizer.step()


def by_closure(optimizer, model, batch):
    def closure():
        optimizer.zero_grad()
        loss = cross_entropy(model, batch)
        loss.backward()
        return loss

    optimizer.step(closure)


def by_a_closure_that_tells_its_loss(optimizer, model, batch):
    def closure():
        optimizer.zero_grad()
        loss = cross_entropy(model, batch)
        back(optimizer, loss)
        return loss.item()

    optimizer.step(closure)


def by_micro_batches_inside(optimizer, model, batch):
    for _ in optimizer.passes():
        for part in split(batch, 12, 12):
            back(optimizer, cross_entropy(model, part) / 2)
    optimizer.step()


def by_micro_batches_outside(optimizer, model, batch):
    for part in split(batch, 12, 12):
        for _ in optimizer.passes():
            back(optimizer, cross_entropy(model, part) / 2)
    optimizer.step()


def by_emptying_inside(optimizer, model, batch):
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    for i, _ in enumerate(optimizer.passes()):
        if i == 0:
            optimizer.zero_grad()
        back(optimizer, cross_entropy(model, batch))
    optimizer.step()


def on_top_of_a_gradient(optimizer, model, batch):
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    by_passes(optimizer, model, batch)


def after_a_step_that_was_broken_off(optimizer, model, batch):
    passes = optimizer.passes()
    for _ in range(2):
        next(passes)
        back(optimizer, cross_entropy(model, batch))
    passes.close()
    optimizer.zero_grad()
    by_passes(optimizer, model, batch)


@pytest.mark.parametrize(
    "step",
    [
        by_closure,
        by_a_closure_that_tells_its_loss,
        by_micro_batches_inside,
        by_micro_batches_outside,
        by_emptying_inside,
        on_top_of_a_gradient,
        after_a_step_that_was_broken_off,
    ],
)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_perturbations": 2, "clean_weight": 0.3},
        {"running_statistics": "clean", "two_point": False},
    ],
)
def test_however_the_step_is_taken_the_samples_are_the_same(step, settings):
    model, batch = mlp()
    expected = samples(model, batch, by_passes, **settings)
    found = samples(model, batch, step, **settings)
    assert found == pytest.approx(expected, rel=1e-6, nan_ok=True)


@pytest.mark.parametrize("small", [0, 20, SMALL])
@pytest.mark.parametrize("together", [1, 2, 16])
def test_tensors_laid_end_to_end_tell_what_single_ones_do(monkeypatch, small, together):
    model, batch = mlp()
    expected = samples(model, batch, by_passes)
    monkeypatch.setattr("flatminima.measure.along.SMALL", small)
    monkeypatch.setattr("flatminima.measure.along.TOGETHER", together)
    assert samples(model, batch, by_passes)[0] == pytest.approx(expected[0], rel=1e-9)


def test_sparse_gradients_tell_what_dense_ones_do():
    tokens = torch.tensor([[1, 2], [3, 2]])
    found = []
    for sparse in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.EmbeddingBag(9, 4, sparse=sparse), nn.Linear(4, 3)).to(DOUBLE)
        found.append(samples(model, (tokens, torch.tensor([0, 2])), by_passes)[0])
    assert found[1] == pytest.approx(found[0], rel=1e-9)


def test_autocast_around_the_passes_leaves_the_sums_in_full_precision():
    model, batch = mlp()
    expected = samples(model, batch, by_passes)

    def under_autocast(optimizer, model, batch):
        with torch.autocast("cpu", torch.bfloat16):
            for _ in optimizer.passes():
                with torch.autocast("cpu", enabled=False):
                    back(optimizer, cross_entropy(model, batch))
            optimizer.step()

    assert samples(model, batch, under_autocast)[0] == pytest.approx(expected[0], rel=1e-9)


def test_no_copy_of_the_weights_outlives_the_step():
    model, batch = mlp()
    optimizer = sgd(model)
    watch(optimizer)
    for _ in optimizer.passes():
        cross_entropy(model, batch).backward()
        weights = weakref.ref(optimizer._running.weights)
    optimizer.step()
    gc.collect()
    assert weights() is None


def test_with_signs_on_a_diagonal_quadratic_the_losses_tell_the_trace_exactly():
    model = Quadratic(torch.tensor([3.0, -1.0, 0.5, 7.0], dtype=DOUBLE).diag())
    model.weight.data.normal_()
    for settings in ({"clean_weight": 0.25}, {"running_statistics": "clean"}):
        optimizer = sgd(model, sigma=0.3, noise="rademacher", num_perturbations=2, **settings)
        meter = watch(optimizer)
        assert meter.compares_losses
        assert math.isnan(meter.smoothed_curvature().value)
        for _ in range(3):
            for _ in optimizer.passes():
                back(optimizer, quadratic_loss(model, None))
            optimizer.step()
            assert meter.smoothed_curvature().value == pytest.approx(9.5, rel=1e-8)
        assert meter.smoothed_curvature().stderr < 1e-9


def test_the_losses_of_halves_tell_it_on_average():
    model, (x, y) = mlp()
    optimizer = sgd(model, sigma=0.15, signs="split", running_statistics="clean")
    meter = watch(optimizer, memory=1e9)
    for _ in range(500):
        for batch in optimizer.passes(x, y):
            back(optimizer, cross_entropy(model, batch))
        optimizer.step()
        optimizer.zero_grad()
    exact = smoothed_curvature(model, cross_entropy, [(x, y)], sigma=0.15, draws=500)
    found = meter.smoothed_curvature()
    assert abs(found.value - exact.value) < 4 * math.hypot(found.stderr, exact.stderr)
    assert found.stderr < 0.15 * found.value


def test_where_the_losses_cannot_tell_it_the_reason_is_given():
    model, batch = mlp()
    optimizer = sgd(model)
    meter = watch(optimizer)
    by_passes(optimizer, model, batch)
    assert not meter.compares_losses
    with pytest.raises(InputError, match="no pass of this optimizer runs at W"):
        meter.smoothed_curvature()
    groups = [{"params": model[0].parameters(), "sigma": 0.1}, {"params": model[2].parameters()}]
    several = NSO(torch.optim.SGD(groups, lr=0.0), sigma=0.2, clean_weight=0.5)
    with pytest.raises(InputError, match=r"sigmas 0.1, 0.2"):
        watch(several).smoothed_curvature()
    clean = sgd(model, clean_weight=0.5)
    meter = watch(clean)
    run(clean, lambda: cross_entropy(model, batch), 1)
    with pytest.raises(InputError, match=r"call meter.saw\(loss\)"):
        meter.smoothed_curvature()
    by_passes(clean, model, batch)
    assert math.isfinite(meter.smoothed_curvature().value)


def test_only_each_nth_noisy_step_is_looked_at_and_memory_counts_all_of_them():
    model, batch = mlp()
    for settings, looked in (({}, 4), ({"interval": 2}, 2), ({"signs": "alternate"}, 2)):
        optimizer = sgd(model, **settings)
        meter = watch(optimizer, every=3, memory=1e9)
        run(optimizer, lambda: cross_entropy(model, batch), 10)
        assert meter.estimate().samples == looked
    whole, thinned = (watch(sgd(model), memory=30, every=every) for every in (1, 3))
    assert thinned._trace.decay == pytest.approx(whole._trace.decay**3)


def test_more_samples_may_wait_than_are_read_at_once(monkeypatch):
    monkeypatch.setattr("flatminima.measure.moving.MOST_WAITING", 3)
    model, batch = mlp()
    optimizer = sgd(model)
    meter = watch(optimizer, memory=1e9)
    run(optimizer, lambda: cross_entropy(model, batch), 8)
    assert len(meter._trace._waiting) == 2
    assert meter.estimate().samples == 8


def test_of_odd_halves_each_counts_by_its_samples():
    model, batch = mlp()
    batch = (batch[0][:7], batch[1][:7])
    optimizer = sgd(model, sigma=0.1, signs="split")
    meter = watch(optimizer)
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
    meter = watch(optimizer)
    run(optimizer, lambda: model.weight.square().sum() / 2, 30)
    found = meter.estimate()
    # The gradient of w.w/2 is w: rounded to 8 bits, in noise of 3 digits.
    assert found.value == pytest.approx(4000, rel=0.02)


def test_complex_weights_have_two_coordinates_each():
    weight = nn.Parameter(torch.zeros(50, dtype=torch.complex128))
    optimizer = NSO(torch.optim.SGD([weight], lr=0.0), sigma=0.1, seed=0, noise="rademacher")
    meter = watch(optimizer)
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
    meter = watch(optimizer, memory=1e9)
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
            watch(optimizer)
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
    meter = watch(optimizer, memory=40)
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


def test_the_biases_are_of_second_order_and_named():
    """For f = -cos(w) at 0 the trace is 1, and F is exp(-sigma^2 / 2) f."""

    class Wave(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(20, dtype=DOUBLE))

    for sigma in (0.1, 1.0):
        model = Wave()
        optimizer = sgd(model, sigma=sigma, clean_weight=0.1)
        meter = watch(optimizer, memory=1e9)
        for _ in range(800):
            for _ in optimizer.passes():
                back(optimizer, -model.weight.cos().sum())
            optimizer.step()
            optimizer.zero_grad()
        smoothed = math.exp(-(sigma**2) / 2)
        for found, exact in (
            (meter.estimate(), 20 * smoothed),
            (meter.smoothed_curvature(), 20 * 2 * (1 - smoothed) / sigma**2),
            (meter.corrected(), 20 * (4 * (1 - smoothed) / sigma**2 - smoothed)),
        ):
            assert abs(found.value - exact) < 4 * found.stderr
            assert found.stderr < 0.02 * found.value


def test_of_the_fourth_power_nothing_is_left_in_the_corrected_trace():
    """For f = a w.w / 2 + sum w^4 at 0 each draw tells a z.z, whatever the noise."""
    for noise in ("normal", "laplace", "rademacher"):
        weight = nn.Parameter(torch.zeros(5, dtype=DOUBLE))
        optimizer = NSO(
            torch.optim.SGD([weight], lr=0.0), sigma=0.5, seed=0, noise=noise, clean_weight=0.5
        )
        meter = watch(optimizer)
        for draw in optimizer.passes():
            if not draw.at_home and draw.move is not Weights.reflect:
                z = weight.detach() / 0.5
            back(optimizer, 3 * weight.square().sum() / 2 + weight.pow(4).sum())
        optimizer.step()
        assert meter.corrected().value == pytest.approx(3 * z.square().sum().item(), rel=1e-9)
        assert meter.last() > 1.05 * meter.corrected().value


def test_a_scaler_is_undone_and_overflowing_steps_do_not_count():
    model, batch = mlp()
    expected = samples(model, batch, by_passes)[0]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizer = NSO(torch.optim.SGD(model.parameters(), lr=0.0), sigma=1e-3, seed=0, scaler=scaler)
    meter = watch(optimizer)

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
    meter = watch(optimizer)
    run(optimizer, lambda: cross_entropy(model, batch), 7)
    assert meter.estimate().samples == 3


def test_the_weighted_mean_and_its_error_are_those_of_their_definitions():
    draws = torch.randn(50, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    weighted = MovingMean(0.9, "in words")
    for draw in draws:
        weighted.add([(2.0, draw / 4), (1.0, draw.item() / 2)])
    found = weighted.estimate()
    w = 0.9 ** torch.arange(49, -1, -1, dtype=DOUBLE)
    mean = (w @ draws) / w.sum()
    variance = (w @ (draws - mean).square()) / (w.sum() - w.square().sum() / w.sum())
    assert found.value == pytest.approx(mean.item())
    error = (variance * w.square().sum()).sqrt() / w.sum()
    assert found.stderr == pytest.approx(error.item())
    assert found.samples == round((w.sum() ** 2 / w.square().sum()).item())


def test_before_the_first_step_there_is_no_number():
    model, batch = mlp()
    optimizer = sgd(model)
    meter = watch(optimizer)
    assert math.isnan(meter.estimate().value)
    run(optimizer, lambda: cross_entropy(model, batch), 1)
    assert math.isfinite(meter.estimate().value)
    assert math.isnan(meter.estimate().stderr)


@pytest.mark.parametrize("stop", [1, 5, 6])
@pytest.mark.parametrize("settings", [{"clean_weight": 0.3}, {"signs": "alternate"}])
def test_a_resumed_meter_goes_on_as_if_it_had_never_stopped(settings, stop, tmp_path):
    def started():
        model, batch = mlp()
        optimizer = sgd(model, lr=0.1, **settings)
        return model, batch, optimizer, watch(optimizer, every=2)

    def train(model, batch, optimizer, steps):
        for _ in range(steps):
            by_passes(optimizer, model, batch)
            optimizer.zero_grad()

    def told(meter):
        losses = meter.compares_losses
        return meter.estimate(), losses and (meter.smoothed_curvature(), meter.corrected())

    model, batch, optimizer, whole = started()
    train(model, batch, optimizer, stop)
    parts = [x.state_dict() for x in (model, optimizer, whole)]
    torch.save(parts, tmp_path / "state.pt")
    train(model, batch, optimizer, 12)

    model, batch, optimizer, resumed = started()
    parts = torch.load(tmp_path / "state.pt", weights_only=True)
    for part, state in zip((model, optimizer, resumed), parts, strict=True):
        part.load_state_dict(state)
    train(model, batch, optimizer, 12)
    assert told(resumed) == told(whole)


def test_a_detached_meter_keeps_what_it_saw_and_makes_room_for_another():
    model, batch = mlp()
    optimizer = sgd(model)
    meter = watch(optimizer)
    run(optimizer, lambda: cross_entropy(model, batch), 2)
    before = meter.estimate()
    meter.detach()
    for _ in range(2):
        meter.saw(torch.ones(()))
    run(optimizer, lambda: cross_entropy(model, batch), 2)
    assert meter.estimate() == before
    assert math.isnan(watch(optimizer).last())


def test_what_cannot_be_watched_is_refused():
    model, _ = mlp()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(InputError, match="the optimizer is SAM"):
        LiveTrace(SAM(base, rho=0.1))
    with pytest.raises(InputError, match="scale='layer'"):
        LiveTrace(NSO(base, sigma=0.1, scale="layer"))
    with pytest.raises(InputError, match="memory is 0"):
        LiveTrace(NSO(base, sigma=0.1), memory=0)
    for every in (0, 1.5):
        with pytest.raises(InputError, match=f"every is {every}"):
            LiveTrace(NSO(base, sigma=0.1), every=every)
    optimizer = NSO(base, sigma=0.1)
    LiveTrace(optimizer)
    with pytest.raises(InputError, match="has a meter already"):
        LiveTrace(optimizer)
