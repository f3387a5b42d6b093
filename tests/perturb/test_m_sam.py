"""m-SAM, and SAM over processes and micro-batches."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from flatminima.errors import InputError
from flatminima.perturb import MSAM, NSO, SAM

from .cases import DOUBLE, batch, sgd, smooth, state_of, stateful, train


def sam_by_parts(model, x, y, sizes, rho):
    """The mean of SAM's gradients on parts, by hand."""
    parameters = list(model.parameters())
    total = [torch.zeros_like(p) for p in parameters]
    for x_, y_ in zip(x.split(sizes), y.split(sizes), strict=True):
        g = torch.autograd.grad(cross_entropy(model(x_), y_), parameters)
        norm = torch.cat([a.flatten() for a in g]).norm()
        moved = {
            name: p + rho * a / norm
            for (name, p), a in zip(model.named_parameters(), g, strict=True)
        }
        loss = cross_entropy(torch.func.functional_call(model, moved, (x_,)), y_)
        for into, a in zip(total, torch.autograd.grad(loss, parameters), strict=True):
            into += a * len(x_) / len(x)
    return total


@pytest.mark.parametrize(("samples", "sizes"), [(8, [3, 3, 2]), (9, [3, 3, 3]), (2, [2])])
def test_the_gradient_is_the_mean_of_sam_on_parts_of_m_samples(samples, sizes):
    x, y = batch(samples, DOUBLE)
    model = smooth()
    optimizer = MSAM(sgd(model.parameters()), rho=0.2, m=3)
    seen = []
    for x_, y_ in optimizer.passes(x, y):
        seen.append(len(x_))
        cross_entropy(model(x_), y_).backward()
    # Parts are nearly equal: 8 samples in 3 parts are 2, 3 and 3.
    parts = seen[::2]
    assert sorted(parts) == sorted(sizes)
    assert optimizer.gradients_per_step(samples) == pytest.approx(2)
    wanted = sam_by_parts(model, x, y, parts, 0.2)
    for p, g in zip(model.parameters(), wanted, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-9, atol=1e-12)


def test_with_the_whole_batch_as_one_part_it_is_sam():
    batches = [batch(dtype=DOUBLE, seed=s) for s in range(4)]
    ours, theirs = smooth(), smooth()
    train(MSAM(sgd(ours.parameters()), rho=0.2, m=8), ours, batches)
    train(SAM(sgd(theirs.parameters()), rho=0.2), theirs, batches)
    torch.testing.assert_close(state_of(ours), state_of(theirs), rtol=1e-12, atol=1e-14)


def test_it_equals_sam_called_once_for_each_micro_batch():
    x, y = batch(8, DOUBLE)
    ours, theirs = smooth(), smooth()
    train(MSAM(sgd(ours.parameters()), rho=0.2, m=4), ours, [(x, y)])
    optimizer = SAM(sgd(theirs.parameters()), rho=0.2)
    for x_, y_ in zip(x.chunk(2), y.chunk(2), strict=True):
        for _ in optimizer.passes():
            (cross_entropy(theirs(x_), y_) / 2).backward()
    optimizer.step()
    torch.testing.assert_close(state_of(ours), state_of(theirs), rtol=1e-12, atol=1e-14)


def test_buffers_are_the_mean_over_the_parts_at_home():
    x, y = batch(8)
    model, plain = stateful(), stateful()
    optimizer = MSAM(sgd(model.parameters(), lr=0.0), rho=0.2, m=4)
    for x_, y_ in optimizer.passes(x, y):
        cross_entropy(model(x_), y_).backward()
    optimizer.step()
    found = []
    for part in x.chunk(2):
        twin = stateful()
        twin(part)
        found.append(twin[1].running_mean)
    torch.testing.assert_close(model[1].running_mean, (found[0] + found[1]) / 2)
    assert int(model[1].num_batches_tracked) == int(plain[1].num_batches_tracked) + 1


def test_a_closure_is_refused_and_a_step_without_parts_warned_of():
    model = smooth()
    optimizer = MSAM(sgd(model.parameters()), rho=0.2)
    with pytest.raises(InputError, match=r"passes\(x, y\)"):
        optimizer.step(lambda: torch.zeros(()))
    x, y = batch(dtype=DOUBLE)
    for _ in optimizer.passes():
        cross_entropy(model(x), y).backward()
    with pytest.warns(UserWarning, match="plain SAM's"):
        optimizer.step()


@pytest.mark.parametrize("signs", ["paired", "split", "alternate"])
def test_noise_may_be_fresh_for_each_micro_batch(signs):
    model, moves = nn.Linear(3, 3, bias=False).double(), {}
    home = model.weight.detach().clone()
    for fresh in (False, True):
        optimizer = NSO(
            sgd(model.parameters(), lr=0.0),
            sigma=0.1,
            signs=signs,
            noise_per_micro_batch=fresh,
            seed=1,
        )
        moves[fresh] = []
        for _ in range(4):
            for _ in optimizer.passes():
                moves[fresh].append((model.weight - home).detach().abs())
                model(torch.ones(2, 3, dtype=DOUBLE)).sum().backward()
        optimizer.step()
    # Signs aside: one draw for the step, or one for each micro-batch (each pair, where split).
    distinct = {fresh: _distinct(found) for fresh, found in moves.items()}
    assert distinct == {False: 1, True: 2 if signs == "split" else 4}
    assert torch.allclose(moves[False][0], moves[True][0])


def _distinct(tensors):
    kept = []
    for tensor in tensors:
        if not any(torch.allclose(tensor, other, atol=1e-12) for other in kept):
            kept.append(tensor)
    return len(kept)


def test_fresh_noise_takes_no_closure():
    optimizer = NSO(sgd(smooth().parameters()), sigma=0.1, noise_per_micro_batch=True)
    with pytest.raises(InputError, match="passes"):
        optimizer.step(lambda: torch.zeros(()))


@pytest.mark.parametrize("name", ["sam", "usam", "asam", "gsam", "looksam", "m-sam"])
def test_split_signs_of_sam_are_refused_with_what_works_instead(name):
    from flatminima.perturb import make

    with pytest.raises(InputError, match=r"'signs'.*NSO\(signs='split'\).*LookSAM"):
        make(name, sgd(smooth().parameters()), rho=0.1, signs="split")
    with pytest.raises(InputError, match=r"'signs'.*NSO\(signs='split'\)"):
        SAM(sgd(smooth().parameters()), rho=0.1, signs="split")
