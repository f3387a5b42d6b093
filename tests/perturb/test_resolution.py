"""Displacements of 16-bit weights."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from flatminima.errors import InputError
from flatminima.perturb import NSO, RSAM, schedules

from .cases import batch, copies, sgd, smooth, train


def halves(dtype=torch.bfloat16):
    """A network whose weights are about 1, where bfloat16 is 2^-7 = 0.0078 coarse."""
    model = smooth(torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(1 + torch.rand_like(parameter))
    return model.to(dtype)


def take_a_step(model, **options):
    x, y = batch()
    optimizer = NSO(sgd(model.parameters()), **options)
    for _ in optimizer.passes():
        cross_entropy(model(x.to(model[0].weight.dtype)).float(), y).backward()
    optimizer.step()
    return optimizer


@pytest.mark.parametrize(("dtype", "sigma"), [(torch.bfloat16, 1e-3), (torch.float16, 1e-4)])
def test_noise_that_rounding_would_swallow_is_refused(dtype, sigma):
    model = halves(dtype)
    before = copies(model.parameters())
    with pytest.raises(InputError, match=r"sigma is too small for 16-bit.*float32.*autocast"):
        take_a_step(model, sigma=sigma)
    assert all(map(torch.equal, before, model.parameters()))


@pytest.mark.parametrize(("dtype", "sigma"), [(torch.bfloat16, 1e-2), (torch.float16, 1e-2)])
def test_noise_of_the_size_of_the_spacing_acts(dtype, sigma):
    assert take_a_step(halves(dtype), sigma=sigma).steps == 1


def test_float32_weights_take_any_sigma():
    model = smooth(torch.float32)
    train(NSO(sgd(model.parameters()), sigma=1e-6), model, [batch()])


def test_noise_must_survive_in_every_tensor():
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.LayerNorm(6)).bfloat16()
    options = {"sigma": 1e-3, "seed": 1}
    x = batch()[0].bfloat16()
    optimizer = NSO(sgd(model.parameters()), **options)
    with pytest.raises(InputError, match=r"in one of the tensors.*vectors=False"):
        next(iter(optimizer.passes()))
    kept = NSO(sgd(model.parameters()), vectors=False, **options)
    for _ in kept.passes():
        model(x).float().pow(2).sum().backward()
    kept.step()


def test_each_displacement_of_a_step_is_judged_by_itself():
    model = halves()
    x, y = batch()
    optimizer = RSAM(sgd(model.parameters()), rho=1e-4, sigma=0.05)
    passes = iter(optimizer.passes())
    next(passes)
    cross_entropy(model(x.bfloat16()).float(), y).backward()
    with pytest.raises(InputError, match="rho is too small"):
        next(passes)


def test_a_schedule_that_never_reaches_its_full_strength_is_warned_of():
    optimizer = NSO(sgd(halves().parameters()), sigma=1e-3, schedule=lambda step: 0.99)
    with pytest.warns(UserWarning, match="too small for 16-bit"):
        next(iter(optimizer.passes()))


@pytest.mark.filterwarnings("ignore:sigma is too small")
def test_a_schedule_that_starts_small_is_judged_at_its_full_strength():
    model = halves()
    x, y = batch()
    optimizer = NSO(sgd(model.parameters()), sigma=1e-3, schedule=schedules.linear(3))
    for _ in range(2):
        for _ in optimizer.passes():
            cross_entropy(model(x.bfloat16()).float(), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    with pytest.raises(InputError, match="too small for 16-bit"):
        next(iter(optimizer.passes()))
