"""What a loss with a memory does of calls that went wrong."""

import pytest
import torch

from flatminima.errors import InputError
from flatminima.objectives import ELRLoss


def call(loss, seed, logits=None):
    generator = torch.Generator().manual_seed(seed)
    given = torch.randn(4, 3, generator=generator) if logits is None else logits
    return loss(given, torch.tensor([0, 1, 2, 0]), torch.arange(4))


def test_a_batch_that_is_not_finite_is_not_remembered():
    loss, twin = ELRLoss(4, 3), ELRLoss(4, 3)
    call(loss, 0, torch.full((4, 3), torch.nan))
    for one in (loss, twin):
        call(one, 1)
    assert torch.equal(loss.memory.rows, twin.memory.rows)
    assert call(loss, 2).isfinite()


def test_what_a_failed_call_saw_is_forgotten():
    loss, twin = ELRLoss(4, 3), ELRLoss(4, 3)
    with pytest.raises(IndexError):
        loss(torch.randn(4, 3), torch.tensor([0, 1, 9, 0]), torch.arange(4))
    for one in (loss, twin):
        call(one, 1)
    assert torch.equal(loss.memory.rows, twin.memory.rows)


@pytest.mark.parametrize("index", [None, [0, 1, 2, 3]])
def test_a_missing_index_is_named(index):
    with pytest.raises(InputError, match="place in the training set"):
        ELRLoss(4, 3)(torch.randn(4, 3), torch.tensor([0, 1, 2, 0]), index)


def test_numbers_for_labels_are_named():
    with pytest.raises(InputError, match="give class indices"):
        ELRLoss(4, 3)(torch.randn(4, 3), torch.rand(4), torch.arange(4))
