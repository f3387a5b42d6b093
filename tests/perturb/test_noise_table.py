"""The noise table against what it stands for: a Gaussian, independent from weight to weight."""

import math

import pytest
import torch
from torch import nn

from flatminima.perturb import DISTRIBUTIONS, NSO, Stream
from flatminima.perturb.noise_table import WIDTH, _table

CPU = torch.device("cpu")
TABLE = DISTRIBUTIONS["table"]


def draw(length, *counters, dtype=torch.float32):
    generator = Stream(0).generator(CPU, *(counters or (0,)))
    return TABLE.sample(torch.empty(length, dtype=dtype), generator)


def test_the_table_has_mean_0_and_covariance_1_exactly():
    rows = _table(CPU, torch.float64)
    assert rows.shape == (1 << 16, WIDTH)
    assert torch.equal(rows[: len(rows) // 2], -rows[len(rows) // 2 :])
    torch.testing.assert_close(
        rows.T @ rows / len(rows), torch.eye(WIDTH, dtype=torch.float64), rtol=0, atol=1e-12
    )


def test_the_table_is_near_a_gaussian_in_its_fourth_moments_and_tails():
    rows = _table(CPU, torch.float64)
    squares = rows.square()
    fourth = squares.T @ squares / len(rows)
    expected = 1 + 2 * torch.eye(WIDTH, dtype=torch.float64)
    # Half the rows are drawn: 5 standard errors of z^4 (variance 96) and of z^2 w^2 (variance 8).
    bound = 5 * torch.where(expected == 3, math.sqrt(96), math.sqrt(8)) / math.sqrt(len(rows) / 2)
    assert ((fourth - expected).abs() < bound).all()
    assert squares.square().mean().item() == pytest.approx(TABLE.fourth_moment, rel=0.01)
    for size in (1, 2, 3):
        beyond, expected = (rows.abs() > size).sum().item(), math.erfc(size / math.sqrt(2))
        drawn = expected * rows.numel() / 2
        assert beyond / rows.numel() == pytest.approx(expected, rel=5 / math.sqrt(drawn))


def test_every_row_is_drawn_equally_often():
    chosen = torch.bincount(_which(draw(1 << 24, dtype=torch.float64)), minlength=1 << 16).double()
    mean = chosen.mean()
    chi2 = ((chosen - mean).square() / mean).sum().item()
    degrees = len(chosen) - 1
    assert abs(chi2 - degrees) < 5 * math.sqrt(2 * degrees)


def test_neighbouring_rows_are_chosen_independently():
    which = _which(draw(1 << 24, dtype=torch.float64))
    for lag in (1, 2, 3, 4, 5):
        pairs = (which[:-lag] >> 8) * 256 + (which[lag:] >> 8)
        counts = torch.bincount(pairs, minlength=1 << 16).double()
        chi2 = ((counts - counts.mean()).square() / counts.mean()).sum().item()
        assert abs(chi2 - len(counts)) < 5 * math.sqrt(2 * len(counts)), lag


def _which(z):
    """The row that each 16 numbers are, told by its first."""
    first = _table(CPU, torch.float64)[:, 0].contiguous()
    values, order = first.sort()
    assert len(values.unique()) == len(values)
    return order[torch.searchsorted(values, z.view(-1, WIDTH)[:, 0].contiguous())]


@pytest.mark.parametrize(
    "other", [(0, 1), (1, 0), (2, 7)], ids=["next step", "next layer", "both elsewhere"]
)
def test_steps_and_layers_are_uncorrelated_at_any_shift(other):
    n = 1 << 18
    a, b = draw(n, 0, 0), draw(n, *other)
    cross = torch.fft.irfft(torch.fft.rfft(a.double()) * torch.fft.rfft(b.double()).conj(), n=n)
    # Of n shifts the largest of n Gaussians of standard error sqrt(n): below 6.5 of them.
    assert cross.abs().max().item() < 6.5 * math.sqrt(n)


def test_a_draw_is_uncorrelated_with_itself_at_any_shift():
    n = 1 << 18
    spectrum = torch.fft.rfft(draw(n).double())
    auto = torch.fft.irfft(spectrum * spectrum.conj(), n=n)[1:]
    assert auto.abs().max().item() < 6.5 * math.sqrt(n)


def test_the_regularizer_of_a_quadratic_is_exact_in_the_mean():
    """E U'HU / 2 = sigma^2 / 2 Tr H, within 5 standard errors, also with H dense within a row."""
    torch.manual_seed(0)
    a = torch.randn(48, 48, dtype=torch.float64)
    h = a @ a.T
    z = torch.stack([draw(48, step).double() for step in range(20_000)])
    values = torch.einsum("ni,ij,nj->n", z, h, z) / 2
    error = values.std() / math.sqrt(len(values))
    assert abs(values.mean() - h.trace() / 2) < 5 * error
    # The variance is a Gaussian's, ||H||^2 / 2, within a few percent.
    assert values.var().item() == pytest.approx(h.square().sum().item() / 2, rel=0.06)


def test_it_is_the_same_for_one_address_and_moves_weights_by_sigma():
    w, found = nn.Parameter(torch.zeros(1000, 50)), []
    for seed in (3, 3, 4):
        passes = NSO(torch.optim.SGD([w]), sigma=0.1, noise="table", seed=seed).passes()
        next(passes)
        found.append(w.detach().clone())
        passes.close()
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert found[0].std().item() == pytest.approx(0.1, rel=5 / math.sqrt(2 * w.numel()))


@pytest.mark.parametrize("noise", ["table", "normal"])
def test_noise_is_drawn_where_the_weights_are_whatever_the_default_device(noise):
    import torch
    from torch import nn

    from flatminima.perturb import NSO

    weight = nn.Parameter(torch.zeros(100, 50))
    optimizer = NSO(torch.optim.SGD([weight], lr=0.0), sigma=0.1, noise=noise)
    try:
        torch.set_default_device("meta")
        passes = optimizer.passes()
        next(passes)
    finally:
        torch.set_default_device(None)
    assert 0.09 < weight.std() < 0.11
    passes.close()
