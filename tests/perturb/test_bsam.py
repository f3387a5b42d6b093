"""Bayesian SAM and its base optimizer against their equations, written out by hand."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from flatminima.errors import InputError
from flatminima.optim import VariationalAdam
from flatminima.perturb import BSAM, make

from .cases import DOUBLE, batch, copies, sgd, smooth, state_of

RATE, BETAS, DELTA, GAMMA, N, START = 0.05, (0.8, 0.9), 0.03, 0.1, 50, 2.0
EXACT = {"rtol": 1e-9, "atol": 1e-11}


def posterior(model, **options):
    chosen = {
        "num_samples": N,
        "betas": BETAS,
        "prior_precision": DELTA,
        "damping": GAMMA,
        "initial_precision": START,
    }
    return VariationalAdam(model.parameters(), **{"lr": RATE, **chosen, **options})


def gradients(model, x, y):
    return torch.autograd.grad(cross_entropy(model(x), y), list(model.parameters()))


def at(model, offsets, x, y):
    """The gradient at W + offsets."""
    home = copies(model.parameters())
    with torch.no_grad():
        for p, offset in zip(model.parameters(), offsets, strict=True):
            p.add_(offset)
    found = gradients(model, x, y)
    with torch.no_grad():
        for p, h in zip(model.parameters(), home, strict=True):
            p.copy_(h)
    return found


class Twin:
    """The three lines of the paper, for lists of tensors."""

    def __init__(self, model):
        self.model = model
        self.m = [torch.zeros_like(p) for p in model.parameters()]
        self.s = [torch.full_like(p, START) for p in model.parameters()]

    @torch.no_grad()
    def step(self, g, h):
        for i, p in enumerate(self.model.parameters()):
            self.m[i] = BETAS[0] * self.m[i] + (1 - BETAS[0]) * (g[i] + DELTA * p)
            scale = self.s[i].sqrt() * h[i].abs() + DELTA + GAMMA
            self.s[i] = BETAS[1] * self.s[i] + (1 - BETAS[1]) * scale
            p.sub_(RATE * self.m[i] / self.s[i])


def test_six_steps_of_bsam_are_those_of_the_paper_with_the_noise_it_draws():
    ours, theirs = smooth(), smooth()
    optimizer, twin = BSAM(posterior(ours), rho=0.2, seed=3), Twin(theirs)
    for seed in range(6):
        x, y = batch(dtype=DOUBLE, seed=seed)
        home, moves = copies(ours.parameters()), []
        for _ in optimizer.passes():
            moves.append([p.detach() - h for p, h in zip(ours.parameters(), home, strict=True)])
            cross_entropy(ours(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        z, e = moves
        h = at(theirs, z, x, y)
        step_up = [0.2 * a / s for a, s in zip(h, twin.s, strict=True)]
        for made, wanted in zip(e, step_up, strict=True):
            torch.testing.assert_close(made, wanted, **EXACT)
        twin.step(at(theirs, step_up, x, y), h)
        torch.testing.assert_close(state_of(ours), state_of(theirs), **EXACT)


def test_the_noise_is_as_wide_as_the_posterior():
    weight = torch.nn.Parameter(torch.zeros(2, 50_000, dtype=DOUBLE))
    base = VariationalAdam([weight], lr=0.0, num_samples=100)
    base.precision(weight).copy_(torch.tensor([[1.0], [4.0]], dtype=DOUBLE).expand(2, 50_000))
    optimizer = BSAM(base, rho=1e-9)
    passes = iter(optimizer.passes())
    next(passes)
    # 50 000 draws a row: a relative standard error of 0.3 %.
    assert weight.detach().std(dim=1).tolist() == pytest.approx([0.1, 0.05], rel=0.02)
    passes.close()


def test_the_base_optimizer_alone_takes_its_own_gradient_for_the_scale():
    ours, theirs = smooth(), smooth()
    base, twin = posterior(ours), Twin(theirs)
    for seed in range(4):
        x, y = batch(dtype=DOUBLE, seed=seed)
        cross_entropy(ours(x), y).backward()
        base.step()
        base.zero_grad()
        g = gradients(theirs, x, y)
        twin.step(g, g)
    torch.testing.assert_close(state_of(ours), state_of(theirs), **EXACT)


def test_micro_batches_call_by_call_set_the_scale_of_their_sum():
    x, y = batch(8, DOUBLE)
    scales = []
    for pieces in (1, 2):
        model = smooth()
        base = posterior(model)
        optimizer = BSAM(base, rho=1e-12)
        for x_, y_ in zip(x.chunk(pieces), y.chunk(pieces), strict=True):
            for _ in optimizer.passes():
                (cross_entropy(model(x_), y_) / pieces).backward()
        optimizer.step()
        scales.append([base.precision(p) for p in model.parameters()])
    for whole, cut in zip(*scales, strict=True):
        torch.testing.assert_close(whole, cut, **EXACT)


def test_a_skipped_step_leaves_the_posterior():
    x, y = batch(dtype=DOUBLE)
    model = smooth()
    base = posterior(model)
    optimizer = BSAM(base, rho=0.1)
    for scale in (float("inf"), 1.0):
        for _ in optimizer.passes():
            (scale * cross_entropy(model(x), y)).backward()
        if scale == 1.0:
            optimizer.step()
        optimizer.zero_grad()
    assert all(torch.isfinite(base.precision(p)).all() for p in model.parameters())


def test_another_base_optimizer_is_refused():
    with pytest.raises(InputError, match=r"SGD does not keep.*VariationalAdam\(params"):
        make("bsam", sgd(smooth().parameters()), rho=0.1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_samples": 0}, "num_samples must be finite and above 0"),
        ({"initial_precision": -1.0}, "initial_precision must be finite and above 0"),
        ({"damping": float("nan")}, "damping must be finite and at least 0"),
        ({"betas": (0.9, 1.0)}, r"betas must be two numbers in \[0, 1\)"),
        ({"betas": (0.9,)}, r"betas must be two numbers"),
        ({"num_samples": 10.5}, "num_samples must be whole"),
        ({"lr": "fast"}, "lr must be a number"),
        ({"damping": 0.0, "prior_precision": 0.0}, "damping and prior_precision are both 0"),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(InputError, match=words):
        posterior(smooth(), **options)


def test_a_group_cannot_have_its_own_number_of_samples():
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "num_samples": 7}]
    with pytest.raises(InputError, match="num_samples is of the whole optimizer"):
        VariationalAdam(groups, num_samples=8)
