import math

import pytest
import torch
from torch import nn

from flatminima.errors import InputError
from flatminima.measure import StartSigma, perturbation_gap, start_sigma

from .cases import DOUBLE, Quadratic, cross_entropy, mlp, quadratic_loss, split, symmetric

ONE = [torch.zeros(1)]


def above(height):
    return lambda model, batch: quadratic_loss(model, batch) + height


def after_an_epoch():
    """A network that has learned a little, so that noise raises its loss."""
    model, (x, y) = mlp(200)
    x[:, 0] += 2.0 * y
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(30):
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, [(x, y)]


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("fraction", [1e-3, 0.1, 3.0])
def test_signs_on_a_diagonal_quadratic_give_the_closed_form(scale, fraction):
    diagonal = scale * torch.tensor([3.0, 0.5, 0.0, 1.5], dtype=DOUBLE)
    model = Quadratic(diagonal.diag(), torch.ones(4, dtype=DOUBLE))
    found = start_sigma(model, above(0.7), ONE, fraction=fraction, noise="rademacher")
    assert found.value == pytest.approx(math.sqrt(2 * fraction * 0.7 / (5 * scale)), rel=1e-6)
    assert found.gap == pytest.approx(fraction * 0.7, rel=1e-6)
    assert found.loss == pytest.approx(0.7)
    assert found.stderr < 1e-6 * found.value


def test_a_quadratic_with_normal_noise_is_right_within_its_error():
    hessian = symmetric(8).matrix_exp()
    exact = math.sqrt(2 * 0.1 * 2.0 / hessian.trace().item())
    errors = []
    for seed in range(40):
        found = start_sigma(Quadratic(hessian), above(2.0), ONE, draws=20, seed=seed)
        errors.append((found.value - exact) / found.stderr)
    # A ratio by 20 draws is Student's t with 19 degrees, a little skewed by the root.
    assert abs(sum(errors) / 40) < 0.6
    assert 0.6 < math.sqrt(sum(error**2 for error in errors) / 40) < 1.6


def test_a_quadratic_takes_as_many_trials_as_the_way_there_is_long():
    model = Quadratic(torch.eye(3, dtype=DOUBLE))
    near = start_sigma(model, above(1e-3), ONE, noise="rademacher")
    assert near.trials == 2
    assert near.forwards == 1 + 2 * 5 * near.trials
    assert start_sigma(model, above(1.0), ONE, noise="rademacher").trials <= 4


@pytest.mark.parametrize("fraction", [0.02, 0.1, 1.0])
def test_the_gap_at_the_value_is_the_one_asked_for(fraction):
    model, batches = after_an_epoch()
    found = start_sigma(model, cross_entropy, batches, fraction=fraction, draws=6, seed=3)
    gap = perturbation_gap(model, cross_entropy, batches, sigma=found.value, draws=6, seed=3)
    assert found.gap == pytest.approx(gap.value, rel=1e-9)
    assert found.gap_stderr == pytest.approx(gap.stderr, rel=1e-6)
    assert gap.value == pytest.approx(fraction * found.loss, rel=0.011)
    assert found.trials <= 10


def test_the_error_is_that_of_the_gap_by_its_slope():
    model, batches = after_an_epoch()
    values = [start_sigma(model, cross_entropy, batches, draws=20, seed=seed) for seed in range(30)]
    spread = torch.tensor([found.value for found in values]).std().item()
    typical = torch.tensor([found.stderr for found in values]).square().mean().sqrt().item()
    assert typical == pytest.approx(spread, rel=0.4)


def test_more_of_the_loss_takes_more_noise():
    model, batches = after_an_epoch()
    values = [
        start_sigma(model, cross_entropy, batches, fraction=fraction).value
        for fraction in (0.01, 0.1, 1.0)
    ]
    assert values == sorted(values)


def test_float32_agrees_with_float64_down_to_the_least_fraction():
    model, batches = after_an_epoch()
    fine = start_sigma(model, cross_entropy, batches, fraction=2e-4, draws=50)
    (x, y) = batches[0]
    coarse = start_sigma(model.float(), cross_entropy, [(x.float(), y)], fraction=2e-4, draws=50)
    assert coarse.dtype == "float32"
    assert abs(coarse.value - fine.value) < 4 * math.hypot(coarse.stderr, fine.stderr)
    with pytest.raises(InputError, match=r"at least 0.00012, which is what float32 resolves"):
        start_sigma(model, cross_entropy, [(x.float(), y)], fraction=1e-4)


def test_batches_and_the_whole_set_agree():
    model, batches = after_an_epoch()
    whole = start_sigma(model, cross_entropy, batches)
    parts = start_sigma(model, cross_entropy, split(batches[0], 50, 149, 1))
    assert parts.value == pytest.approx(whole.value, rel=1e-9)


def test_a_loss_that_overflows_on_the_way_is_too_far():
    def wall(model, batch):
        square = model.weight.square().sum()
        return 1.0 + square if square < 0.3 else square * float("inf")

    found = start_sigma(
        Quadratic(torch.eye(2, dtype=DOUBLE)), wall, ONE, fraction=0.2, noise="rademacher"
    )
    assert found.value == pytest.approx(math.sqrt(0.1), rel=1e-2)


def falling(model, batch):
    return 1.0 + (-model.weight.square().sum()).exp()


@pytest.mark.parametrize(
    ("objective", "settings", "message"),
    [
        (above(0.0), {}, "the loss at W is 0.0"),
        (above(-1.0), {}, "the loss at W is -1.0"),
        (above(float("nan")), {}, r"batch 0 \(counting from 0\) is nan"),
        (falling, {}, "noise does not raise the loss so far: .* epoch of plain training"),
        (lambda m, b: (m.weight.abs().sum() > 0) + 1.0, {}, "smallest noise raises the loss"),
        (
            lambda m, b: 1.0 + (m.weight.norm() > 3).double() + 0 * m.weight.sum(),
            {"noise": "rademacher"},
            "the gap jumps",
        ),
        (
            lambda m, b: 1.0 + m.weight[0] * m.weight[1] * 100,
            {"draws": 4, "seed": 2},
            "cannot be told from 0: give more draws than 4",
        ),
        (above(1.0), {"fraction": 0.0}, "fraction is 0.0"),
        (above(1.0), {"fraction": -0.1}, "fraction is -0.1"),
        (above(1.0), {"fraction": math.nan}, "fraction is nan"),
        (above(1.0), {"fraction": math.inf}, "fraction is inf"),
        (above(1.0), {"draws": 1}, "draws is 1: give at least 2"),
        (above(1.0), {"noise": "cauchy"}, "no variance"),
    ],
)
def test_what_cannot_be_found_is_refused_in_one_line(objective, settings, message):
    model = Quadratic(torch.eye(2, dtype=DOUBLE))
    with pytest.raises(InputError, match=message) as caught:
        start_sigma(model, objective, ONE, **settings)
    assert "\n" not in str(caught.value)
    assert torch.equal(model.weight, torch.zeros(2, dtype=DOUBLE))


def test_it_says_what_it_is_and_survives_json():
    model, batches = after_an_epoch()
    found = start_sigma(model, cross_entropy, batches, seed=7)
    assert "of it; 5 draws" in str(found)
    assert found.method == "two-point normal noise, gap 0.1 of the loss"
    assert (found.seed, found.samples, found.dtype) == (7, 5, "float64")
    assert StartSigma.from_dict(found.to_dict()) == found
