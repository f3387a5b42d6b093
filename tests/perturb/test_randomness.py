"""Dropout masks: one set a step, and plain training's random numbers after it."""

import pytest
import torch
from torch import nn

from flatminima.perturb import NSO, SAM

METHODS = [
    pytest.param(lambda base, **o: NSO(base, sigma=0.1, num_perturbations=2, **o), id="nso"),
    pytest.param(lambda base, **o: NSO(base, sigma=0.1, clean_weight=0.3, **o), id="clean"),
    pytest.param(lambda base, **o: SAM(base, rho=0.1, **o), id="sam"),
]


def masks_of_steps(wrap, steps=2, **options):
    """The dropout masks of each pass, step by step."""
    w = nn.Parameter(torch.ones(100))
    optimizer = wrap(torch.optim.SGD([w], lr=0.0), **options)
    found = []
    for _ in range(steps):
        found.append([])
        for _ in optimizer.passes():
            mask = nn.functional.dropout(torch.ones(100))
            found[-1].append(mask)
            (w * mask).sum().backward()
        optimizer.step()
    return found


@pytest.mark.parametrize("wrap", METHODS)
def test_masks_are_shared_in_a_step_and_differ_between_steps(wrap):
    first, second = masks_of_steps(wrap)
    for step in (first, second):
        assert len(step) > 1
        assert all(torch.equal(step[0], mask) for mask in step)
    assert not torch.equal(first[0], second[0])


@pytest.mark.parametrize("wrap", METHODS)
def test_the_random_state_after_a_step_is_that_of_plain_training(wrap):
    torch.manual_seed(3)
    masks = [step[0] for step in masks_of_steps(wrap)]
    after = torch.get_rng_state()
    torch.manual_seed(3)
    plain = [nn.functional.dropout(torch.ones(100)) for _ in range(2)]
    assert all(map(torch.equal, masks, plain))
    assert torch.equal(after, torch.get_rng_state())


@pytest.mark.parametrize("wrap", METHODS)
def test_masks_differ_between_passes_where_that_is_asked_for(wrap):
    (step,) = masks_of_steps(wrap, steps=1, share_masks=False)
    assert not torch.equal(step[0], step[1])


def test_halves_of_a_split_batch_draw_masks_of_their_own():
    w = nn.Parameter(torch.ones(100))
    optimizer = NSO(torch.optim.SGD([w]), sigma=0.1, signs="split")
    masks = [nn.functional.dropout(torch.ones(100)) for _ in optimizer.passes(torch.ones(4))]
    assert not torch.equal(*masks)


@pytest.mark.parametrize("wrap", METHODS)
def test_the_noise_leaves_the_global_random_state_alone(wrap):
    before = torch.get_rng_state()
    w = nn.Parameter(torch.ones(100))
    for _ in wrap(torch.optim.SGD([w])).passes():
        w.sum().backward()
    assert torch.equal(before, torch.get_rng_state())
