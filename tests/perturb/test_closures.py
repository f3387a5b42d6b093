"""Closures that would lose gradients, or use scaled ones, without a word."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from flatminima.errors import InputError
from flatminima.perturb import NSO, SAM

from .cases import DOUBLE, assert_same_bits, batch, sgd, smooth, state_of

WRAPS = {
    "nso": lambda base: NSO(base, sigma=0.1),
    "sam": lambda base: SAM(base, rho=0.1),
    "sigma-0": lambda base: NSO(base, sigma=0.0),
}


@pytest.fixture(params=WRAPS.values(), ids=WRAPS)
def wrap(request):
    return request.param


class Loop:
    """A model, its optimizer, and a closure that begins as told."""

    def __init__(self, wrap, begin=lambda loop: None):
        self.model, (self.x, self.y) = smooth(), batch(dtype=DOUBLE)
        self.optimizer = wrap(sgd(self.model.parameters()))
        self.begin = begin

    def backward(self):
        loss = cross_entropy(self.model(self.x), self.y)
        loss.backward()
        return loss

    def closure(self):
        self.begin(self)
        return self.backward()


EMPTYINGS = {
    "by the optimizer": lambda loop: loop.optimizer.zero_grad(),
    "in place": lambda loop: loop.optimizer.zero_grad(set_to_none=False),
    "by the base": lambda loop: loop.optimizer.base.zero_grad(),
    "by the model": lambda loop: loop.model.zero_grad(),
    "by hand": lambda loop: [setattr(p, "grad", None) for p in loop.model.parameters()],
}


@pytest.mark.parametrize("begin", EMPTYINGS.values(), ids=EMPTYINGS)
def test_a_closure_that_zeroes_may_find_gradients(wrap, begin):
    loop, expected = Loop(wrap, begin), Loop(wrap)
    for _ in range(2):
        loop.optimizer.zero_grad()
        loop.backward()
        loop.optimizer.step(loop.closure)
        expected.optimizer.zero_grad()
        expected.optimizer.step(expected.closure)
    assert_same_bits(state_of(loop.model), state_of(expected.model))


@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_closure_that_does_not_zero_is_fine_where_the_loop_does(wrap, set_to_none):
    loop, expected = Loop(wrap), Loop(wrap, EMPTYINGS["by the optimizer"])
    for _ in range(3):
        loop.optimizer.step(loop.closure)
        loop.optimizer.zero_grad(set_to_none)
        expected.optimizer.step(expected.closure)
    assert_same_bits(state_of(loop.model), state_of(expected.model))


def test_a_closure_that_would_lose_gradients_is_refused_with_the_mend(wrap):
    loop = Loop(wrap)
    loop.optimizer.step(loop.closure)
    for _ in range(2):
        loop.optimizer.zero_grad()
        loop.backward()
        before = state_of(loop.model)
        with pytest.raises(InputError, match=r"optimizer\.zero_grad\(\) first, or, to accumulate"):
            loop.optimizer.step(loop.closure)
        assert_same_bits(state_of(loop.model), before)


def test_a_closure_that_zeroes_too_late_loses_what_it_gathered(wrap):
    """As with any optimizer of torch."""
    loop = Loop(wrap)

    def closure():
        loss = loop.backward()
        loop.optimizer.zero_grad()
        return loss

    momentum_only = state_of(loop.model)
    loop.optimizer.step(closure)
    assert_same_bits(state_of(loop.model), momentum_only)


def test_after_passes_a_closure_may_only_look(wrap):
    loop, expected, calls = Loop(wrap), Loop(wrap), []
    for each in (loop, expected):
        for _ in each.optimizer.passes():
            each.backward()
    loop.optimizer.step(lambda: calls.append(loop.optimizer.steps))
    expected.optimizer.step()
    assert calls == [0]
    assert_same_bits(state_of(loop.model), state_of(expected.model))
    for _ in loop.optimizer.passes():
        loop.backward()
    with pytest.raises(InputError, match="use passes\\(\\) and step\\(\\), or step\\(closure\\)"):
        loop.optimizer.step(loop.closure)


@pytest.mark.parametrize("enabled", [True, False])
def test_a_closure_inside_a_gradient_scaler_is_refused_unless_that_is_off(enabled):
    w = nn.Parameter(torch.ones(2))
    optimizer = NSO(torch.optim.SGD([w], lr=0.1), sigma=0.1)
    scaler = torch.amp.GradScaler("cpu", enabled=enabled)

    def closure():
        optimizer.zero_grad()
        loss = (w**2).sum()
        scaler.scale(loss).backward()
        return loss

    closure()
    if enabled:
        with pytest.raises(InputError, match=r"scaler\.scale\(loss_fn\(model\(x\), y\)\)"):
            scaler.step(optimizer, closure)
        assert torch.equal(w, torch.ones(2))
        assert optimizer.steps == 0
    else:
        scaler.step(optimizer, closure)
        assert optimizer.steps == 1
