"""Activation checkpointing inside the passes."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from .cases import DOUBLE, batch, copies, sgd


class Network(nn.Module):
    """Two blocks with dropout that may be run again in backward."""

    def __init__(self, reentrant):
        super().__init__()
        torch.manual_seed(0)
        sizes = [(4, 6), (6, 6)]
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(*size), nn.Tanh(), nn.Dropout(0.3)) for size in sizes
        )
        self.head = nn.Linear(6, 3)
        self.reentrant = reentrant
        self.calls = 0
        self.blocks[0].register_forward_pre_hook(self.count)
        self.to(DOUBLE)

    def count(self, *_):
        self.calls += 1

    def forward(self, x):
        for block in self.blocks:
            if self.reentrant is None:
                x = block(x)
            else:
                x = checkpoint(block, x, use_reentrant=self.reentrant)
        return self.head(x)


def gradients(variant, reentrant, steps):
    """The gradients of each step, and how often the first block ran."""
    model, found = Network(reentrant), []
    optimizer = variant.wrap(sgd(model.parameters()))
    torch.manual_seed(1)
    for step in range(steps):
        x, y = batch(seed=step, dtype=DOUBLE)
        x.requires_grad_()  # what re-entrant checkpointing needs
        for x_, y_ in optimizer.passes(x, y):
            cross_entropy(model(x_), y_).backward()
        found += copies(p.grad for p in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
    return found, model.calls


@pytest.mark.parametrize("reentrant", [False, True])
def test_the_gradients_are_those_without_checkpointing(variant, reentrant):
    plain, calls = gradients(variant, None, steps=3)
    checkpointed, twice = gradients(variant, reentrant, steps=3)
    assert all(map(torch.equal, plain, checkpointed))
    assert twice == 2 * calls
