"""Two networks and two memories, against the equations step by step."""

import copy
import io
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, one_hot

from flatminima import NSO
from flatminima.errors import InputError
from flatminima.objectives import ELRPlus
from flatminima.objectives.elr_plus import ramp

N, C = 9, 4


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, C)).double()


def pair(**given):
    return ELRPlus(network(0), network(1), N, C, **{"dtype": "float64", **given})


def batch():
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(6, 5, dtype=torch.float64, generator=generator)
    return x, torch.arange(6) % C, torch.arange(6) + 2


def drawn(alpha):
    share = torch.distributions.Beta(alpha, alpha).sample().item()
    return max(share, 1 - share), torch.randperm(6)


@pytest.mark.parametrize("reweight", [False, True])
@pytest.mark.parametrize("which", [0, 1])
def test_the_loss_is_its_equation(which, reweight):
    found, (x, y, index) = pair(ramp_steps=10, lam=2.0, reweight=reweight), batch()
    memory = torch.zeros(N, C, dtype=torch.float64)
    own, other = found.networks[which], found.averages[1 - which]
    for step in range(3):
        torch.manual_seed(step)
        share, order = drawn(1.0)
        with torch.no_grad():
            memory[index] = 0.7 * memory[index] + 0.3 * other(x).softmax(1)
        q = share * memory[index] + (1 - share) * memory[index][order]
        label = share * one_hot(y, C) + (1 - share) * one_hot(y, C)[order]
        if reweight:
            label = label * q / (label * q).sum(1, keepdim=True)
        logits = own(share * x + (1 - share) * x[order])
        p = logits.softmax(1).clamp(1e-4, 1 - 1e-4)
        term = math.exp(-5 * (1 - step / 10) ** 2) * 2.0 * (1 - (q * p).sum(1)).log().mean()
        torch.manual_seed(step)
        torch.testing.assert_close(
            found.loss(which, x, y, index), -(label * logits.log_softmax(1)).sum(1).mean() + term
        )
        found.after_step(which)
        torch.testing.assert_close(found.memories[which].rows, memory)
    assert not found.memories[1 - which].rows.any()


def test_the_averages_follow_the_parameters():
    found, kept = pair(ema_decay=0.75), None
    for step in range(8):
        with torch.no_grad():
            for p in found.networks[0].parameters():
                p += torch.rand_like(p)
        own = [p.detach().clone() for p in found.networks[0].parameters()]
        decay = min(1 - 1 / (step + 1), 0.75)
        kept = (
            own
            if kept is None
            else [decay * k + (1 - decay) * p for k, p in zip(kept, own, strict=True)]
        )
        found.after_step(0)
        for average, expected in zip(found.averages[0].parameters(), kept, strict=True):
            torch.testing.assert_close(average, expected)
    for average, own in zip(
        found.averages[1].parameters(), found.networks[1].parameters(), strict=True
    ):
        assert torch.equal(average, own)


def test_the_average_may_come_in_by_a_ramp():
    found = pair(ema_decay=0.9, ema_ramp=4)
    start = [p.detach().clone() for p in found.averages[0].parameters()]
    with torch.no_grad():
        for p in found.networks[0].parameters():
            p += 1
    found.after_step(0)
    decay = 0.9 * math.exp(-5 * (1 - 1 / 4) ** 2)
    for average, before in zip(found.averages[0].parameters(), start, strict=True):
        torch.testing.assert_close(average, before + (1 - decay))


def test_buffers_of_an_average_are_its_own():
    first, second = (nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, C)).double() for _ in range(2))
    found, (x, y, index) = ELRPlus(first, second, N, C), batch()
    found.loss(0, x + 5, y, index).backward()
    found.after_step(0)
    mean = 0.1 * (x + 5).mean(0)
    torch.testing.assert_close(found.averages[1][0].running_mean, mean)
    assert not found.averages[0][0].running_mean.any()


def test_a_ramp_ends_at_1():
    assert ramp(0, 0) == ramp(10, 10) == ramp(20, 10) == 1
    assert ramp(0, 10) == pytest.approx(math.exp(-5))


def test_it_predicts_the_mean_of_both():
    found, (x, _, _) = pair(), batch()
    first, second = found.networks
    torch.testing.assert_close(found(x), (first(x) + second(x)) / 2)


def test_without_mixing_and_term_it_is_the_cross_entropy():
    found, (x, y, index) = pair(mixup=0.0, lam=0.0), batch()
    torch.testing.assert_close(
        found.loss(1, x, y, index), cross_entropy(found.networks[1](x), y), rtol=0, atol=1e-15
    )


def test_in_evaluation_mode_it_is_the_cross_entropy_and_nothing_is_remembered():
    found, (x, y, index) = pair().eval(), batch()
    assert torch.equal(found.loss(0, x, y, index), cross_entropy(found.networks[0](x), y))
    found.after_step(0)
    assert not found.memories[0].rows.any()


def test_gradients_reach_only_the_network_that_is_trained():
    found, (x, y, index) = pair(), batch()
    for which in (0, 1, 0):
        found.zero_grad()
        found.loss(which, x, y, index).backward()
        found.after_step(which)
        assert all(p.grad is not None for p in found.networks[which].parameters())
        rest = (*found.networks[1 - which].parameters(), *found.averages.parameters())
        assert all(p.grad is None for p in rest)


def test_the_passes_of_nso_move_memory_and_average_once():
    found, (x, y, index) = pair(), batch()
    optimizer = NSO(torch.optim.SGD(found.networks[0].parameters(), lr=0.1), sigma=0.05)
    for _ in optimizer.passes():
        found.loss(0, x, y, index).backward()
        assert not found.memories[0].rows.any()
    expected = found.averages[1](x).softmax(1)
    optimizer.step()
    found.after_step(0)
    torch.testing.assert_close(found.memories[0].rows[index], 0.3 * expected.detach())
    assert found.steps == [1, 0]


def test_of_a_skipped_step_nothing_is_remembered():
    found, (x, y, index) = pair(), batch()
    found.loss(0, x, y, index)
    found.after_step(0, taken=False)
    assert found.steps == [0, 0]
    assert not found.memories[0].rows.any()


def trained(found, optimizers, steps):
    x, y, index = batch()
    for step in steps:
        torch.manual_seed(step)
        for which, optimizer in enumerate(optimizers):
            found.loss(which, x, y, index).backward()
            optimizer.step()
            optimizer.zero_grad()
            found.after_step(which)


def optimizers_of(found):
    return [torch.optim.SGD(own.parameters(), lr=0.1, momentum=0.9) for own in found.networks]


def test_saved_and_loaded_it_goes_on_as_if_never_stopped():
    whole, cut, again = pair(), pair(), pair()
    for found, steps in ((whole, range(6)), (cut, range(3))):
        optimizers = optimizers_of(found)
        trained(found, optimizers, steps)
    file = io.BytesIO()
    torch.save([cut.state_dict(), *(o.state_dict() for o in optimizers)], file)
    file.seek(0)
    state, *own = torch.load(file, weights_only=True)
    again.load_state_dict(state)
    resumed = optimizers_of(again)
    for optimizer, its in zip(resumed, own, strict=True):
        optimizer.load_state_dict(its)
    trained(again, resumed, range(3, 6))
    for name, tensor in whole.state_dict().items():
        other = again.state_dict()[name]
        assert tensor == other if name == "_extra_state" else torch.equal(tensor, other), name


def test_mixed_precision_evaluates_the_loss_in_single():
    torch.manual_seed(0)
    nets = nn.Linear(5, C), nn.Linear(5, C)
    found, (x, y, index) = ELRPlus(*nets, N, C), batch()
    with torch.autocast("cpu", torch.bfloat16):
        loss = found.loss(0, x.float() * 1e4, y, index)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()


def test_suspects_are_those_both_memories_say():
    found = pair()
    found.memories[0].rows[:3, 1] = 0.5
    found.memories[1].rows[:3, 2] = 0.2
    labels = torch.tensor([1, 2, 1, 0, 0, 0, 0, 0, 0])
    assert found.suspects(labels).tolist() == [1]


def twice():
    own = network(0)
    return ELRPlus(own, own, N, C)


@pytest.mark.parametrize(
    ("make_it", "words"),
    [
        (twice, "are one network"),
        (lambda: pair(beta=1.0), "beta is 1.0"),
        (lambda: pair(mixup=-1), "mixup is -1"),
        (lambda: pair(ema_decay=1.0), "ema_decay is 1.0"),
        (lambda: pair(ramp_steps=-1), "ramp_steps is -1"),
        (lambda: pair().loss(0, batch()[0], batch()[1][:5], batch()[2]), "and 5 labels for 6"),
        (lambda: pair().loss(0, *batch()[:2]), "the index is not given"),
        (lambda: pair().loss(0, batch()[0], batch()[1].float(), batch()[2]), "are no classes"),
        (lambda: pair().loss(0, *batch()[:2], batch()[2] + 5), "goes from 7 to 12"),
        (lambda: pair().loss(2, *batch()), "there is no network 2: ELR\\+ trains two in turn"),
        (lambda: pair().loss(-1, *batch()), "there is no network -1"),
        (lambda: pair().eval().loss(2, *batch()), "there is no network 2"),
        (lambda: pair().after_step(2), "there is no network 2"),
    ],
)
def test_what_cannot_be_is_refused(make_it, words):
    with pytest.raises(InputError, match=words):
        make_it()


def test_whole_numbers_cannot_be_mixed():
    found, (_, y, index) = ELRPlus(nn.Embedding(9, C), nn.Embedding(9, C), N, C), batch()
    with pytest.raises(InputError, match="whole numbers"):
        found.loss(0, torch.arange(6), y, index)


def test_a_copy_does_not_share_a_memory():
    found = pair()
    other = copy.deepcopy(found)
    other.memories[0].rows += 1
    assert not found.memories[0].rows.any()
