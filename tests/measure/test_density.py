import json
import math
import subprocess
import sys

import pytest
import torch

from flatminima.errors import InputError
from flatminima.measure import Dense, Hessian, LowRank, SpectralDensity, spectral_density

from .cases import DOUBLE, MODELS, cross_entropy, decaying, dense_hessian, symmetric


def integral(curve, log=False):
    at = curve.at.abs().log10() if log else curve.at
    return torch.trapezoid(curve.density, at).item()


@pytest.mark.parametrize("matrix", [symmetric(40), decaying(40, 0.7), torch.eye(40).to(DOUBLE)])
def test_it_integrates_to_one(matrix):
    density = spectral_density(Dense(matrix), probes=4, steps=15)
    for weights in density.weights:
        assert sum(weights) == pytest.approx(1, abs=1e-12)
    # The kernel beyond 5 standard deviations, and the grid.
    assert integral(density.curve()) == pytest.approx(1, abs=1e-4)


def test_both_signs_and_zero_add_up_to_one_on_the_log_axis():
    values = torch.tensor([10.0, 1.0, 0.1, -0.5, -0.01, 0, 0, 0], dtype=DOUBLE)
    density = spectral_density(LowRank(torch.eye(8, dtype=DOUBLE), values), probes=6, steps=8)
    positive = integral(density.curve("log"), log=True)
    negative = integral(density.curve("log", negative=True), log=True)
    assert positive + negative + density.part_at_zero == pytest.approx(1, abs=1e-4)
    assert min(positive, negative, density.part_at_zero) > 0.1
    assert density.curve("log", negative=True).at.max() < 0


@pytest.mark.parametrize("name", MODELS)
def test_moments_are_those_of_the_dense_hessian(name):
    model, batch = MODELS[name]()
    hessian = dense_hessian(model, batch)
    density = spectral_density(Hessian(model, cross_entropy, [batch]), probes=30, steps=5)
    power = torch.eye(len(hessian), dtype=DOUBLE)
    for p in range(1, 5):
        power = power @ hessian
        moment = density.moment(p)
        assert abs(moment.value - power.trace().item()) < 4 * moment.stderr
    assert density.moment(0).value == pytest.approx(len(hessian), rel=1e-12)
    assert density.hvps == 150


def test_each_probe_is_exact_up_to_degree_2m_minus_1():
    matrix = symmetric(20)
    density = spectral_density(Dense(matrix), probes=2, steps=4)
    longer = spectral_density(Dense(matrix), probes=2, steps=20)
    for p in range(8):
        assert density.moment(p).value == pytest.approx(longer.moment(p).value, rel=1e-9, abs=1e-9)
    assert density.moment(8).value != pytest.approx(longer.moment(8).value, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_as_many_steps_as_dimensions_find_every_eigenvalue(dtype):
    matrix = symmetric(12).to(dtype)
    density = spectral_density(Dense(matrix), probes=3, steps=50)
    spectrum = torch.linalg.eigvalsh(matrix.double())
    for nodes in density.nodes:
        assert torch.tensor(nodes).double() == pytest.approx(spectrum.numpy(), abs=1e-4)


@pytest.mark.parametrize("probes", [5, 10, 30])
def test_intervals_of_moments_cover_as_often_as_they_say(probes):
    matrix = decaying(40, 0.9)
    truth, covered = matrix.square().sum().item(), 0
    for seed in range(200):
        density = spectral_density(Dense(matrix), probes=probes, steps=3, seed=seed)
        low, high = density.moment(2).interval()
        covered += low <= truth <= high
    assert 180 <= covered <= 198


def test_the_band_that_is_drawn_is_students():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    stats = pytest.importorskip("scipy.stats")
    density = spectral_density(Dense(symmetric(20)), probes=5, steps=20)
    curve = density.curve()
    ax = density.plot(pyplot.figure().subplots())
    top = ax.collections[0].get_paths()[0].vertices[:, 1].max()
    pyplot.close("all")
    widest = (curve.density + stats.t.ppf(0.975, 4) * curve.stderr).max().item()
    assert top == pytest.approx(widest)


def test_the_band_covers_the_smoothed_spectrum():
    matrix, width = symmetric(60), 1.0
    spectrum = torch.linalg.eigvalsh(matrix)
    covered = []
    for seed in range(40):
        density = spectral_density(Dense(matrix), probes=30, steps=40, seed=seed)
        at, found, stderr = density.curve(width=width, points=40)
        kernel = torch.exp(-((at[:, None] - spectrum) / width).square() / 2)
        truth = kernel.mean(1) / (width * math.sqrt(2 * math.pi))
        inside = (found - truth).abs() <= 1.96 * stderr
        covered.append(inside[truth > 0.01].double().mean().item())
    # Neighbouring points are correlated, so this is 40 trials or a few more.
    assert 0.88 <= sum(covered) / 40 <= 0.99


def test_an_exhausted_space_has_no_stray_nodes():
    turn, _ = torch.linalg.qr(symmetric(30))
    operator = LowRank(turn[:, :1], torch.tensor([3.0], dtype=DOUBLE), shift=1.0)
    density = spectral_density(operator, probes=3, steps=10)
    for nodes, weights in zip(density.nodes, density.weights, strict=True):
        counted = [t for t, w in zip(nodes, weights, strict=True) if w > 1e-12]
        assert counted == pytest.approx([1.0, 4.0])


def test_effective_dimension():
    values = torch.tensor([9.0, 1.0, 1.0, 0, 0, -5.0], dtype=DOUBLE)
    operator = LowRank(torch.eye(6, dtype=DOUBLE), values)
    found = spectral_density(operator, probes=200, steps=6).effective_dimension(1.0)
    assert abs(found.value - (0.9 + 0.5 + 0.5)) < 4 * found.stderr
    assert found.stderr < 0.1
    with pytest.raises(InputError, match="c is 0"):
        spectral_density(operator).effective_dimension(0)


def test_groups_of_probes_do_not_change_the_result(monkeypatch):
    together = spectral_density(Dense(symmetric(30)), probes=7, steps=6)
    monkeypatch.setattr("flatminima.measure.density.BASIS_BYTES", 3 * 6 * 30 * 8)
    calls = []
    apart = spectral_density(
        Dense(symmetric(30)), probes=7, steps=6, progress=lambda *call: calls.append(call)
    )
    for one, other in zip(apart.nodes, together.nodes, strict=True):
        assert one == pytest.approx(other, rel=1e-9)
    assert calls[0] == ("density", 3, 42)
    assert calls[-1] == ("density", 42, 42)


class Interrupted(Dense):
    left = 0

    def matmat(self, vectors):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().matmat(vectors)


def test_an_interrupt_keeps_what_there_is(monkeypatch):
    operator = Interrupted(symmetric(30))
    operator.left = 4
    density = spectral_density(operator, probes=4, steps=9)
    assert density.stopped == "interrupted"
    assert [len(nodes) for nodes in density.nodes] == [4] * 4
    monkeypatch.setattr("flatminima.measure.density.BASIS_BYTES", 1)
    operator.left = 13
    density = spectral_density(operator, probes=4, steps=9)
    assert [len(nodes) for nodes in density.nodes] == [9, 9]
    for left, keep in ((0, True), (5, False)):
        operator.left = left
        with pytest.raises(KeyboardInterrupt):
            spectral_density(operator, keep_interrupted=keep)


def test_max_seconds_stops_with_what_there_is():
    density = spectral_density(Dense(symmetric(30)), max_seconds=1e-9)
    assert density.stopped == "max_seconds"
    assert [len(nodes) for nodes in density.nodes] == [1] * 10
    assert density.moment(1).stderr > 0


def test_it_survives_json_and_prints():
    density = spectral_density(Dense(symmetric(5)), probes=2, steps=3)
    data = json.loads(json.dumps(density.to_dict(), allow_nan=False))
    assert SpectralDensity.from_dict(data) == density
    assert str(density).startswith("5 eigenvalues within about [")


class Axes:
    """What `plot` may ask of a matplotlib Axes, and what it drew."""

    def __init__(self):
        self.lines, self.calls = [], []

    def plot(self, x, y, label=None):
        self.lines.append((x, y, label))

    def __getattr__(self, name):
        return lambda *args, **kwargs: self.calls.append((name, args))


def test_the_plot_draws_the_curve_and_a_band():
    density = spectral_density(Dense(symmetric(20)), steps=10)
    ax = Axes()
    assert density.plot(ax) is ax
    assert len(ax.lines) == 1
    assert "fill_between" in [name for name, _ in ax.calls]
    log = density.plot(Axes(), axis="log")
    assert [label for *_, label in log.lines] == ["positive", "negative"]
    assert ("set_xscale", ("log",)) in log.calls


def test_measuring_does_not_load_matplotlib():
    loads = "import sys, flatminima.measure; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", loads], check=False).returncode == 0


def test_the_plot_of_matplotlib(tmp_path):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    density = spectral_density(Dense(symmetric(20)), steps=10)
    for axis in ("linear", "log"):
        density.plot(axis=axis).figure.savefig(tmp_path / "density.png")
        pyplot.close()
    assert (tmp_path / "density.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"probes": 1}, "probes is 1"),
        ({"steps": 0}, "steps is 0"),
        ({"max_seconds": 0}, "max_seconds is 0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        spectral_density(Dense(symmetric(4)), **arguments)


def test_bad_curves_are_refused():
    density = spectral_density(Dense(torch.eye(3, dtype=DOUBLE)), probes=2)
    with pytest.raises(InputError, match="did you mean 'log'"):
        density.curve("logg")
    with pytest.raises(InputError, match="no eigenvalue is negative"):
        density.curve("log", negative=True)
    with pytest.raises(InputError, match="width is 0"):
        density.curve(width=0)
