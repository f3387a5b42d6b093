"""Trajectories of other people's implementations, where those are right."""

import pytest
import pytorch_optimizer
import torch
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel, update_bn

from flatminima.perturb import GSAM, SAM

from .cases import DOUBLE, batch, sgd, smooth, state_of, stateful, train

BATCHES = [batch(seed=s, dtype=DOUBLE) for s in range(20)]
# Their norms carry 1e-12 in other places.
CLOSE = {"rtol": 1e-6, "atol": 1e-8}


def test_sam_equals_pytorch_optimizer():
    ours, theirs = smooth(), smooth()
    train(SAM(sgd(ours.parameters()), rho=0.1), ours, BATCHES)
    peer = pytorch_optimizer.SAM(
        theirs.parameters(), torch.optim.SGD, rho=0.1, lr=0.1, momentum=0.9, weight_decay=0.01
    )
    for x, y in BATCHES:
        cross_entropy(theirs(x), y).backward()
        peer.first_step(zero_grad=True)
        cross_entropy(theirs(x), y).backward()
        peer.second_step(zero_grad=True)
    torch.testing.assert_close(state_of(ours), state_of(theirs), **CLOSE)


class Constant:
    """A schedule of rho that stays, in the form that their GSAM asks for."""

    def step(self):
        return 0.1


def test_gsam_equals_pytorch_optimizer():
    ours, theirs = smooth(), smooth()
    train(GSAM(sgd(ours.parameters()), rho=0.1, alpha=0.3), ours, BATCHES)
    peer = pytorch_optimizer.GSAM(
        theirs.parameters(), sgd(theirs.parameters()), theirs, Constant(), alpha=0.3
    )
    for x, y in BATCHES:
        peer.set_closure(cross_entropy, x, y)
        peer.step()
    torch.testing.assert_close(state_of(ours), state_of(theirs), **CLOSE)


@pytest.mark.filterwarnings("ignore:signs='split' gathered")
def test_torchs_averaging_composes_with_every_method(variant):
    batches = [batch(samples=16, seed=s) for s in range(6)]
    model = stateful()
    optimizer = variant.wrap(sgd(model.parameters()))
    average, seen = AveragedModel(model), []
    for data in batches:
        train(optimizer, model, [data])
        average.update_parameters(model)
        seen.append([p.detach().clone() for p in model.parameters()])
    update_bn(batches, average)
    twin = stateful()
    with torch.no_grad():
        for p, *steps in zip(twin.parameters(), *seen, strict=True):
            p.copy_(torch.stack(steps).mean(0))
        inputs = torch.cat([twin[0](x) for x, _ in batches])
    for ours, mean in zip(average.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, mean)
    torch.testing.assert_close(average.module[1].running_mean, inputs.mean(0))
