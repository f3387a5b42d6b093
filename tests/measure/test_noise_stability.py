import json
import math

import pytest
import torch
from torch import nn

from flatminima.errors import InputError
from flatminima.measure import (
    Estimate,
    Hessian,
    NoiseStability,
    hessian_trace,
    noise_stability,
    perturbation_gap,
    smoothed_curvature,
)

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

ONE = [torch.zeros(1)]


class Corner(nn.Module):
    """f(w) = sum of max(w, 0), at w = 0."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, dtype=DOUBLE))


def corner_loss(model, batch):
    return model.weight.relu().sum()


class Recorder:
    """Axes that remember what was drawn in them."""

    def __init__(self):
        self.curves, self.settings = {}, {}

    def errorbar(self, x, y, errors, label, **_):
        self.curves[label] = (x, y, errors)

    def plot(self, x, y, style, label):
        self.curves[label] = (x, y)

    def set(self, **settings):
        self.settings = settings

    def legend(self):
        self.settings["legend"] = True


def test_each_sigma_is_the_perturbation_gap_there():
    model, batch = mlp()
    batches = split(batch, 20, 4)
    found = noise_stability(model, cross_entropy, batches, sigmas=[0.3, 0.05], draws=5, seed=3)
    for point in found.points:
        settings = {"sigma": point.sigma, "draws": 5, "seed": 3}
        pairs = perturbation_gap(model, cross_entropy, batches, **settings)
        single = perturbation_gap(model, cross_entropy, batches, two_point=False, **settings)
        assert point.two_sided.value == pytest.approx(pairs.value, rel=1e-10)
        assert point.two_sided.stderr == pytest.approx(pairs.stderr, rel=1e-10)
        assert point.one_sided.value == pytest.approx(single.value, rel=1e-10)
        assert point.one_sided.stderr == pytest.approx(single.stderr, rel=1e-10)
    assert [point.sigma for point in found.points] == [0.3, 0.05]
    assert found.loss == pytest.approx(cross_entropy(model, batch).item(), rel=1e-12)
    assert found.samples == 24


def test_each_place_costs_one_forward_pass_and_the_weights_come_home():
    model, batch = mlp()
    before = [p.detach().clone() for p in model.parameters()]
    calls = []

    def counting(model, batch):
        calls.append(1)
        return cross_entropy(model, batch)

    noise_stability(model, counting, [batch], sigmas=[0.1, 0.2, 0.4], draws=4)
    assert len(calls) == 1 + 3 * 2 * 4
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_a_quadratic_has_one_curvature_at_every_sigma():
    hessian = symmetric(6) + 3 * torch.eye(6, dtype=DOUBLE)
    model = Quadratic(hessian, torch.ones(6, dtype=DOUBLE))
    found = noise_stability(model, quadratic_loss, ONE, sigmas=[1e-3, 0.1, 10.0], draws=400)
    values = [point.smoothed_curvature.value for point in found.points]
    assert values == pytest.approx([values[0]] * 3, rel=1e-6)
    error = found.points[0].smoothed_curvature.stderr
    assert abs(values[0] - hessian.trace().item()) < 4 * error


def test_pairs_are_exact_where_single_points_are_swamped_by_the_slope():
    slope = torch.full((6,), 100.0, dtype=DOUBLE)
    model = Quadratic(torch.eye(6, dtype=DOUBLE), slope)
    found = noise_stability(model, quadratic_loss, ONE, sigmas=[1e-3], draws=200)
    point = found.points[0]
    assert point.one_sided.stderr > 1000 * point.two_sided.stderr
    assert abs(point.one_sided.value - 3e-6) < 4 * point.one_sided.stderr
    assert abs(point.two_sided.value - 3e-6) < 4 * point.two_sided.stderr


def test_a_smooth_network_agrees_with_its_trace_and_leaves_it_at_large_sigma():
    model, batch = mlp()
    trace = dense_hessian(model, batch).trace().item()
    exact = Estimate(trace, 0.0, 1, method="dense")
    settings = {"sigmas": [1e-3, 1e-2, 1.0], "draws": 400, "trace": exact}
    small, middle, large = noise_stability(model, cross_entropy, [batch], **settings).points
    for point in (small, middle):
        gap = point.smoothed_curvature
        assert abs(gap.value - trace) < 4 * gap.stderr
        assert gap.stderr < 0.1 * trace
        assert point.predicted.value == pytest.approx(point.sigma**2 / 2 * trace)
    assert abs(large.smoothed_curvature.value - trace) > 4 * large.smoothed_curvature.stderr


def test_a_corner_has_no_hessian_and_a_smoothed_curvature_that_grows():
    trace = hessian_trace(Hessian(Corner(), corner_loss, ONE), probes=2)
    assert (trace.value, trace.stderr) == (0.0, 0.0)
    for sigma in (1e-4, 1e-2, 1.0):
        found = smoothed_curvature(Corner(), corner_loss, ONE, sigma=sigma, draws=2000)
        assert abs(found.value - 4 * math.sqrt(2 / math.pi) / sigma) < 4 * found.stderr
        assert found.stderr < 0.05 * found.value


def test_the_two_curvatures_agree_for_gelu_and_differ_for_relu():
    torch.manual_seed(0)
    x = torch.randn(500, 4, dtype=DOUBLE)
    batch = (x, (x.abs().sum(1) > 3.2).long())
    far = {}
    for kind in (nn.GELU, nn.ReLU):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(4, 16), kind(), nn.Linear(16, 2)).to(DOUBLE)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        for _ in range(150):
            optimizer.zero_grad()
            cross_entropy(model, batch).backward()
            optimizer.step()
        trace = dense_hessian(model, batch).trace().item()
        found = smoothed_curvature(model, cross_entropy, [batch], sigma=0.02, draws=300)
        far[kind] = abs(found.value - trace) / found.stderr
    assert far[nn.GELU] < 4
    assert far[nn.ReLU] > 6


def test_rounding_is_marked():
    model, batch = mlp()
    model, batch = model.float(), (batch[0].float(), batch[1])
    found = noise_stability(model, cross_entropy, [batch], sigmas=[1e-4, 0.1], draws=3)
    assert [point.resolved for point in found.points] == [False, True]
    fine, coarse = str(found).splitlines()[2], str(found).splitlines()[1]
    assert " *" in coarse
    assert " *" not in fine
    assert "rounding in float32" in str(found)


def test_it_prints_serializes_and_plots():
    model, batch = mlp()
    trace = hessian_trace(Hessian(model, cross_entropy, [batch]), probes=10)
    stages = []
    found = noise_stability(
        model,
        cross_entropy,
        split(batch, 20, 4),
        sigmas=[0.01, 0.1],
        draws=3,
        trace=trace,
        progress=lambda *call: stages.append(call),
    )
    assert stages[-1] == ("noise stability", 2, 2)
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert NoiseStability.from_dict(data) == found
    lines = str(found).splitlines()
    assert lines[0].split()[0] == "sigma"
    assert str(found.points[1].two_sided) in lines[2]
    assert str(found.points[1].predicted) in lines[2]
    axes = Recorder()
    assert found.plot(axes) is axes
    sigmas, gaps, errors = axes.curves["two-sided"]
    assert sigmas == [0.01, 0.1]
    assert gaps == [point.two_sided.value for point in found.points]
    assert errors == [point.two_sided.stderr for point in found.points]
    assert len(axes.curves) == 3
    assert axes.settings["xscale"] == "log"


def test_it_draws_with_matplotlib():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    model, batch = mlp()
    found = noise_stability(model, cross_entropy, [batch], sigmas=[0.01, 0.1], draws=3)
    axes = found.plot()
    assert len(axes.get_legend().get_texts()) == 2


def test_without_a_trace_there_is_no_prediction():
    model, batch = mlp()
    found = noise_stability(model, cross_entropy, [batch], sigmas=[0.1], draws=2)
    assert found.points[0].predicted is None
    assert "Tr H" not in str(found)
    assert NoiseStability.from_dict(found.to_dict()) == found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sigmas": []}, "sigmas is empty"),
        ({"sigmas": [0.1, 0.0]}, "sigmas has 0.0"),
        ({"sigmas": [math.nan]}, "sigmas has nan"),
        ({"sigmas": [0.1], "draws": 0}, "draws is 0"),
        ({"sigmas": [0.1], "noise": "cauchy"}, "no variance"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        noise_stability(Quadratic(symmetric(2)), quadratic_loss, ONE, **arguments)
    with pytest.raises(InputError, match="sigma is 0"):
        smoothed_curvature(Quadratic(symmetric(2)), quadratic_loss, ONE, sigma=0)
