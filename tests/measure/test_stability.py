import functools
import json
import math

import pytest
import torch
from torch import nn

from flatminima.errors import InputError
from flatminima.measure import StabilityReport, dynamical_stability
from flatminima.objectives import Supervised

from .cases import DOUBLE, MODELS, cross_entropy, dense_hessian, mlp, split


def half_square(outputs, targets):
    return (outputs - targets).square().flatten(1).sum(1).mean() / 2


squared = Supervised(half_square)


class Diagonal(nn.Module):
    """f(x) = (a.a - b.b).x, whose trace is 4 (|a|^2 + |b|^2) for white inputs."""

    def __init__(self, d):
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.ones(d, dtype=DOUBLE)) for _ in range(2))

    def forward(self, x):
        return x @ (self.a.square() - self.b.square())


def line():
    """Half squared error, fitted, whose per-sample gradients are the inputs."""
    torch.manual_seed(0)
    model = nn.Linear(8, 1, bias=False).to(DOUBLE)
    x = torch.randn(6, 8, dtype=DOUBLE)
    return model, (x, model(x).detach())


def test_of_a_fitted_linear_model_all_is_known():
    model, batch = line()
    found = dynamical_stability(model, squared, split(batch, 2, 4), lr=0.1, batch_size=1)
    h = batch[0].T @ batch[0] / 6
    assert found.lambda_max == pytest.approx(torch.linalg.eigvalsh(h)[-1].item())
    assert found.trace == pytest.approx(h.trace().item())
    assert found.trace_bound == pytest.approx(2 / h.trace().item())
    assert found.mean_threshold == pytest.approx(2 / found.lambda_max)
    assert found.threshold < found.frobenius_bound < found.trace_bound
    assert (found.samples, found.outputs) == (6, 1)
    assert max(found.residual, found.loss) < 1e-12
    whole = dynamical_stability(model, squared, [batch], lr=0.1, batch_size=6)
    assert whole.threshold == pytest.approx(whole.mean_threshold, rel=1e-5)
    assert whole.trace_bound == math.inf


def test_the_factors_of_the_loss_count():
    model, batch = line()
    half, whole = (
        dynamical_stability(model, objective, [batch], lr=0.1, batch_size=2)
        for objective in (squared, Supervised(nn.MSELoss()))
    )
    assert whole.threshold == pytest.approx(half.threshold / 2)


@pytest.mark.parametrize("name", MODELS)
def test_the_gauss_newton_matrix_is_the_hessian_where_the_model_is_linear(name):
    model, batch = MODELS[name]()
    last = list(model.parameters())[-2:]
    found = dynamical_stability(model, cross_entropy, [batch], lr=0.1, batch_size=2, params=last)
    size = sum(p.numel() for p in last)
    block = dense_hessian(model, batch)[-size:, -size:]
    assert found.trace == pytest.approx(block.trace().item(), rel=1e-8)
    assert found.lambda_max == pytest.approx(torch.linalg.eigvalsh(block)[-1].item(), rel=1e-8)
    assert found.frobenius == pytest.approx(block.norm().item(), rel=1e-8)
    # Three classes: the probabilities add up to 1, so two directions are curved.
    assert found.outputs == 2


def sgd(model, x, y, lr, steps, generator):
    """Plain SGD, one sample a step, on half the squared error; None where it diverged."""
    a, b = model.a.detach().clone(), model.b.detach().clone()
    for i in torch.randint(len(x), (steps,), generator=generator).tolist():
        slope = 2 * lr * ((a * a - b * b) @ x[i] - y[i]) * x[i]
        a, b = a - slope * a, b + slope * b
    if not (a.isfinite().all() and b.isfinite().all()):
        return None
    moved = Diagonal(len(a))
    with torch.no_grad():
        moved.a.copy_(a)
        moved.b.copy_(b)
    return moved


@pytest.fixture(scope="module")
def minimum():
    """A minimum of the diagonal linear net that gradient descent found, and its samples."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 40, dtype=DOUBLE, generator=generator)
    beta = torch.zeros(40, dtype=DOUBLE)
    beta[:3] = 1.0
    y = x @ beta
    model = Diagonal(40)
    a, b = model.a.detach().clone(), model.b.detach().clone()
    for _ in range(4000):
        slope = 2 * 4e-3 * x.T @ (x @ (a * a - b * b) - y) / 20
        a, b = a - slope * a, b + slope * b
    with torch.no_grad():
        model.a.copy_(a)
        model.b.copy_(b)
    return model, (x, y)


def test_sgd_returns_below_the_threshold_and_leaves_above_for_a_flatter_minimum(minimum):
    model, (x, y) = minimum
    batches = [(x, y[:, None])]

    def wide(model):
        return nn.Sequential(model, nn.Unflatten(0, (-1, 1)))

    found = dynamical_stability(wide(model), squared, batches, lr=1.0, batch_size=1)
    assert found.residual < 1e-8
    assert found.threshold < found.mean_threshold / 5
    for factor, stays in ((0.5, True), (0.9, True), (1.5, False)):
        lr = factor * found.threshold
        shaken = Diagonal(40)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for p, q in zip(shaken.parameters(), model.parameters(), strict=True):
                p.copy_(q + 1e-4 * torch.randn(40, dtype=DOUBLE, generator=generator))
        after = sgd(shaken, x, y, lr, 15_000, generator)
        there = dynamical_stability(wide(after), squared, batches, lr=lr, batch_size=1)
        assert (abs(there.trace / found.trace - 1) < 0.01) == stays
        if not stays:
            assert there.trace < 0.95 * found.trace
            assert there.trace <= 2 / lr


def test_a_ramp_of_the_learning_rate_presses_the_trace_below_its_bound(minimum):
    model, (x, y) = minimum
    steps, top = 20_000, 8e-3
    a, b = (torch.ones(40, dtype=DOUBLE) for _ in range(2))
    generator = torch.Generator().manual_seed(2)
    for step, i in enumerate(torch.randint(20, (steps,), generator=generator).tolist()):
        lr = 1e-3 + (top - 1e-3) * min(1.0, step / (0.8 * steps))
        slope = 2 * lr * ((a * a - b * b) @ x[i] - y[i]) * x[i]
        a, b = a - slope * a, b + slope * b
    ours = Diagonal(40)
    with torch.no_grad():
        ours.a.copy_(a)
        ours.b.copy_(b)
    trace = 4 * ((x.square() @ (a * a + b * b)).mean()).item()
    before = [p.detach().square() for p in model.parameters()]
    by_gd = 4 * ((x.square() @ (before[0] + before[1])).mean()).item()
    assert (x @ (a * a - b * b) - y).abs().max() < 1e-3
    assert trace < 2 / top < by_gd


def test_the_verdict_is_a_sentence():
    model, batch = line()
    report = dynamical_stability(model, squared, [batch], lr=1e-3, batch_size=2)
    assert report.stable_sgd
    assert report.stable_gd
    assert report.verdict.startswith("SGD with batches of 2 at learning rate 0.001 can stay")
    assert f"{report.margin:.3g} times as much" in report.verdict
    between = (report.threshold + report.mean_threshold) / 2
    unstable = dynamical_stability(model, squared, [batch], lr=between, batch_size=2)
    assert not unstable.stable_sgd
    assert "cannot stay at this minimum" in unstable.verdict
    assert "gradient descent would stay" in unstable.verdict
    wild = dynamical_stability(model, squared, [batch], lr=100.0, batch_size=2)
    assert "gradient descent would leave too" in wild.verdict
    assert str(report).endswith(report.verdict)


def test_it_serializes_and_reports_progress():
    model, batch = line()
    calls = []
    found = dynamical_stability(
        model,
        squared,
        split(batch, 2, 4),
        lr=0.1,
        batch_size=6,
        progress=lambda *call: calls.append(call),
    )
    assert calls == [("stability", 2, 2), ("stability", 6, 6)]
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert StabilityReport.from_dict(data) == found
    assert data["verdict"] == found.verdict


def test_the_model_is_left_as_it_was():
    model, batch = MODELS["cnn"]()
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    dynamical_stability(model, cross_entropy, [batch], lr=0.1, batch_size=1)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def summed(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets, reduction="sum")


def hollow(outputs, targets):
    return -outputs.square().mean()


@pytest.mark.parametrize(
    ("objective", "arguments", "message"),
    [
        (cross_entropy, {"lr": 0.0}, "lr is 0.0"),
        (cross_entropy, {"batch_size": 0}, "batch_size is 0"),
        (cross_entropy, {"batch_size": 25}, "the batches have 24 samples"),
        (lambda m, b: 0.0, {}, "the objective is a function"),
        (Supervised(summed), {}, "a mean over samples"),
        (Supervised(hollow), {}, "not convex"),
    ],
)
def test_bad_arguments_are_refused(objective, arguments, message):
    model, batch = mlp()
    with pytest.raises(InputError, match=message):
        dynamical_stability(model, objective, [batch], **{"lr": 0.1, "batch_size": 1, **arguments})


def test_a_jacobian_that_cannot_be_held_is_refused(monkeypatch):
    model, batch = mlp()
    monkeypatch.setattr("flatminima.measure.stability.MOST_BYTES", 10_000)
    with pytest.raises(InputError, match="give fewer samples"):
        dynamical_stability(model, cross_entropy, [batch], lr=0.1, batch_size=1)


def test_a_criterion_with_buffers_of_float32_is_computed_in_double_too():
    model, (x, y) = mlp()
    model, x = model.float(), x.float()
    same = nn.CrossEntropyLoss(weight=torch.full((3,), 2.0))
    settings = {"lr": 0.1, "batch_size": 4}
    found = dynamical_stability(model, Supervised(same), [(x, y)], **settings)
    plain = dynamical_stability(model, cross_entropy, [(x, y)], **settings)
    assert found.threshold == pytest.approx(plain.threshold, rel=1e-5)
    assert same.weight.dtype == torch.float32


def test_class_weights_make_no_mean_over_samples_and_are_refused():
    model, (x, y) = mlp()
    model, x, weight = model.float(), x.float(), torch.tensor([1.0, 2.0, 5.0])
    for criterion in (
        nn.CrossEntropyLoss(weight=weight),
        functools.partial(nn.functional.cross_entropy, weight=weight),
    ):
        with pytest.raises(InputError, match="mean over samples"):
            dynamical_stability(model, Supervised(criterion), [(x, y)], lr=0.1, batch_size=4)


def test_a_function_that_keeps_its_own_float32_tensors_is_refused_in_words():
    model, (x, y) = mlp()
    criterion = functools.partial(nn.functional.cross_entropy, weight=torch.ones(3))
    with pytest.raises(InputError, match="does not take outputs of float64"):
        dynamical_stability(
            model.float(), Supervised(criterion), [(x.float(), y)], lr=0.1, batch_size=4
        )
