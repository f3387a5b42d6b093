"""What docs/concepts/one-pass.md says of the gradient's variance, on quadratic losses."""

import itertools

import pytest
import torch

import flatminima

DIMENSION, SAMPLES, SIGMA = 5, 6, 0.3


class Quadratics(torch.nn.Module):
    """f_i(w) = w'A_i w / 2 + b_i'w: sample i has the Hessian A_i."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(DIMENSION, dtype=torch.float64))

    def forward(self, a, b):
        return ((a @ self.weight) @ self.weight / 2 + b @ self.weight).mean()


def setting():
    torch.manual_seed(0)
    model = Quadratics()
    a = torch.randn(SAMPLES, DIMENSION, DIMENSION, dtype=torch.float64)
    return model, (a + a.mT) / 2, torch.randn(SAMPLES, DIMENSION, dtype=torch.float64)


def gradients(model, a, b, draws, **options):
    """The gradient and the displacement of the first pass, `draws` times."""
    base = torch.optim.SGD(model.parameters(), lr=0.0)
    optimizer = flatminima.NSO(base, sigma=SIGMA, **options)
    home, found = model.weight.detach().clone(), []
    for _ in range(draws):
        moved = []
        for a_, b_ in optimizer.passes(a, b):
            moved.append(model.weight.detach() - home)
            model(a_, b_).backward()
        found.append((model.weight.grad.clone(), moved[0]))
        optimizer.step()
        optimizer.zero_grad()
    return found


def plain(model, a, b):
    return torch.autograd.grad(model(a, b), model.parameters())[0]


def test_split_signs_add_half_the_difference_of_the_halves_hessians():
    model, a, b = setting()
    half = SAMPLES // 2
    apart = a[:half].mean(0) - a[half:].mean(0)
    for gradient, u in gradients(model, a, b, 5, signs="split"):
        assert torch.allclose(gradient, plain(model, a, b) + apart @ u / 2, atol=1e-12)


def test_one_point_noise_adds_the_whole_hessian():
    model, a, b = setting()
    for gradient, u in gradients(model, a, b, 5, two_point=False):
        assert torch.allclose(gradient, plain(model, a, b) + a.mean(0) @ u, atol=1e-12)


def test_pairs_add_nothing():
    model, a, b = setting()
    for gradient, _ in gradients(model, a, b, 5):
        assert torch.allclose(gradient, plain(model, a, b), atol=1e-12)


@pytest.mark.parametrize("signs", ["split", "one-point"])
def test_the_variance_is_that_of_the_formula(signs):
    model, a, b = setting()
    half = SAMPLES // 2
    if signs == "split":
        options = {"signs": "split"}
        formula = SIGMA**2 / 4 * (a[:half].mean(0) - a[half:].mean(0)).square().sum()
    else:
        options, formula = {"two_point": False}, SIGMA**2 * a.mean(0).square().sum()
    clean = plain(model, a, b)
    squares = torch.stack(
        [(g - clean).square().sum() for g, _ in gradients(model, a, b, 3000, **options)]
    )
    stderr = squares.std() / len(squares) ** 0.5
    assert stderr < 0.04 * formula
    assert abs(squares.mean() - formula) < 3 * stderr


def test_over_random_halves_the_variance_falls_with_the_batch():
    _, a, _ = setting()
    half = SAMPLES // 2
    spread = (a - a.mean(0)).square().sum((1, 2)).mean()
    squares = []
    for chosen in itertools.combinations(range(SAMPLES), half):
        rest = [i for i in range(SAMPLES) if i not in chosen]
        squares.append((a[list(chosen)].mean(0) - a[rest].mean(0)).square().sum())
    assert torch.stack(squares).mean() / 4 == pytest.approx(spread.item() / (SAMPLES - 1))
