"""Early-learning regularization against its equations, computed another way."""

import copy
import io
from collections import UserDict

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, one_hot

from flatminima import NSO
from flatminima.errors import InputError
from flatminima.objectives import ELR, ELRLoss, PSKDLoss, Setting, make_objective

from .remembered import C, N, model_and_batch, rows_of_steps, some


def double(beta=0.7, lam=3.0):
    return ELRLoss(N, C, beta, lam, dtype="float64")


def slow(z, y, index, memory, beta, lam):
    """The update and the loss, a sample and a class at a time."""
    total = 0.0
    for row, label, i in zip(z, y.tolist(), index.tolist(), strict=True):
        e = [value.exp() for value in row]
        p = [value / sum(e) for value in e]
        p = [
            value if 1e-4 < value < 1 - 1e-4 else value.detach().clamp(1e-4, 1 - 1e-4)
            for value in p
        ]
        q = [value.detach() / sum(p).detach() for value in p]
        memory[i] = [beta * t + (1 - beta) * v for t, v in zip(memory[i], q, strict=True)]
        agreement = sum(t * v for t, v in zip(memory[i], p, strict=True))
        total = total - (e[label] / sum(e)).log() + lam * (1 - agreement).log()
    return total / len(y)


@pytest.mark.parametrize("scale", [1.0, 6.0])
def test_loss_gradient_and_memory_are_those_of_a_loop_over_samples(scale):
    loss, memory = double(0.8, 2.5), [[0.0] * C for _ in range(N)]
    for seed in range(5):
        z, y, index = some(scale=scale, seed=seed)
        own = z.detach().clone().requires_grad_()
        found, expected = loss(z, y, index), slow(own, y, index, memory, 0.8, 2.5)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(
            torch.autograd.grad(found, z), torch.autograd.grad(expected, own)
        )
        for kept, row in zip(loss.memory.rows, memory, strict=True):
            torch.testing.assert_close(kept, torch.tensor([float(t) for t in row]).to(kept))


def test_without_its_term_it_is_the_cross_entropy():
    z, y, index = some()
    assert torch.equal(double(lam=0.0)(z, y, index), cross_entropy(z, y))


def test_the_gradient_is_its_closed_form_at_a_fixed_memory():
    loss, (z, y, index) = double(beta=0.0, lam=2.0), some()
    t = torch.rand(N, C, dtype=torch.float64).softmax(1)
    # At beta = 1 the memory would be fixed; the term alone takes any rows.
    from flatminima.objectives.elr import clamped_softmax, regularizer

    value = cross_entropy(z, y) + loss.lam * regularizer(t[index], clamped_softmax(z)).mean()
    (found,) = torch.autograd.grad(value, z)
    p, rows = z.detach().softmax(1), t[index]
    s = (rows * p).sum(1, keepdim=True)
    expected = p - one_hot(y, C) + 2.0 * p * (s - rows) / (1 - s)
    torch.testing.assert_close(found, expected / len(y), rtol=0, atol=1e-15)


@pytest.mark.parametrize("visits", [1, 2, 7])
def test_after_identical_visits_the_memory_has_no_bias_correction(visits):
    loss, (z, y, index) = double(0.9), some()
    for _ in range(visits):
        loss(z, y, index)
    q = z.detach().softmax(1)
    torch.testing.assert_close(loss.memory.rows[index], (1 - 0.9**visits) * q)
    rest = torch.ones(N, dtype=torch.bool)
    rest[index] = False
    assert not loss.memory.rows[rest].any()


def test_at_a_memory_of_zeros_the_term_is_zero_in_value_and_gradient():
    from flatminima.objectives.elr import clamped_softmax, regularizer

    z, _, index = some()
    term = regularizer(double().memory.read(index), clamped_softmax(z)).sum()
    assert term == 0
    assert not torch.autograd.grad(term, z)[0].any()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("seen_in", [torch.float32, torch.bfloat16, torch.float16])
def test_the_loss_is_finite_for_logits_of_ten_thousand(dtype, seen_in):
    loss = ELRLoss(N, C, 0.5, 7.0, dtype=dtype)
    z = torch.tensor([[1e4, -1e4, 0, 0], [-1e4, 1e4, 1e4, 0]]).to(seen_in).requires_grad_()
    for _ in range(30):
        found = loss(z, torch.tensor([0, 3]), torch.tensor([1, 2]))
        assert found.dtype in (torch.float32, loss.memory.rows.dtype)
        assert found.isfinite()
        assert torch.autograd.grad(found, z)[0].isfinite().all()
    assert loss.memory.rows.isfinite().all()


def test_the_term_is_bounded_by_the_logarithm_of_the_clamp():
    loss = ELRLoss(N, C, 0.0, 1.0)
    z = torch.tensor([[80.0, 0, 0, 0]])
    term = loss(z, torch.tensor([0]), torch.tensor([0])) - cross_entropy(z, torch.tensor([0]))
    assert -9.22 < term < -7.8


def test_autocast_does_not_reach_the_loss():
    loss, other, (z, y, index) = ELRLoss(N, C), ELRLoss(N, C), some()
    z = z.detach().float()
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(z, y, index)
    assert torch.equal(found, other(z, y, index))


def test_in_evaluation_mode_it_is_the_cross_entropy_and_nothing_is_remembered():
    loss, (z, y, index) = double().eval(), some()
    assert torch.equal(loss(z, y, index), cross_entropy(z, y))
    assert not loss.memory.rows.any()


def test_a_sample_twice_in_a_batch_moves_its_row_once_by_the_mean():
    loss, (z, y, _) = double(0.6), some(2)
    loss(z, y, torch.tensor([5, 5]))
    torch.testing.assert_close(loss.memory.rows[5], 0.4 * z.detach().softmax(1).mean(0))


def test_the_calls_of_one_step_do_not_see_each_other():
    loss, (z, y, index), (w, _, _) = double(), some(), some(seed=9)
    loss(z, y, index)
    before = copy.deepcopy(loss)
    with loss.one_step():
        first = loss(z, y, index)
        second = loss(w, y, index)
        assert torch.equal(loss.memory.rows, before.memory.rows)
    assert torch.equal(first, copy.deepcopy(before)(z, y, index))
    assert torch.equal(second, copy.deepcopy(before)(w, y, index))
    q = (z.detach().softmax(1) + w.detach().softmax(1)) / 2
    expected = 0.7 * before.memory.rows[index] + 0.3 * q
    torch.testing.assert_close(loss.memory.rows[index], expected)


def test_of_a_step_that_breaks_off_nothing_is_remembered():
    loss, (z, y, index) = double(), some()
    with pytest.raises(InputError), loss.one_step():
        _ = loss(z, y, index), loss(z, y, index[:5])
    assert not loss.memory.rows.any()
    loss(z, y, index)
    assert loss.memory.rows.any()


def test_suspects_are_those_remembered_as_another_class():
    loss = ELRLoss(4, 3)
    loss.memory.rows[:3] = torch.tensor([[0.1, 0.6, 0.2], [0.5, 0.1, 0.1], [0.0, 0.0, 0.3]])
    assert loss.suspects(torch.tensor([1, 2, 0, 2])).tolist() == [1, 2]


def test_saved_and_loaded_it_goes_on_as_it_would_have():
    loss, (z, y, index) = double(), some()
    loss(z, y, index)
    file = io.BytesIO()
    torch.save(loss.state_dict(), file)
    file.seek(0)
    again = double()
    again.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(loss(z, y, index), again(z, y, index))
    assert torch.equal(loss.memory.rows, again.memory.rows)


def begun(**given):
    objective = ELR(dtype="float64", **given)
    objective.begin(Setting(samples=N, outputs=C, steps=10, steps_per_epoch=5))
    return objective


def test_one_plain_pass_is_the_papers_rule():
    model, batch = model_and_batch()
    objective, loss = begun(), double()
    for _ in range(3):
        found = objective(model, batch)
        objective.after_step()
        assert torch.equal(found, loss(model(batch["inputs"]), batch["targets"], batch["index"]))
        assert torch.equal(objective.kept.memory.rows, loss.memory.rows)


@pytest.mark.parametrize("method", ["plain", "nso", "sam", "nso-one-pass", "m-sam", "friendly-sam"])
def test_the_passes_of_a_step_move_the_memory_once_by_their_mean(method):
    for before, q, after in rows_of_steps(begun(beta=0.6), method, steps=2):
        torch.testing.assert_close(after, 0.6 * before + 0.4 * q, atol=1e-12, rtol=0)


def test_of_a_skipped_step_nothing_is_remembered():
    model, batch = model_and_batch()
    objective = begun()
    objective(model, batch)
    objective.after_step(False)
    objective.after_step()
    assert not objective.kept.memory.rows.any()


def test_nothing_is_remembered_of_a_model_in_evaluation_mode():
    model, batch = model_and_batch()
    objective = begun()
    assert objective(model.eval(), batch) == cross_entropy(model(batch["inputs"]), batch["targets"])
    objective.after_step()
    assert not objective.kept.memory.rows.any()


def test_batches_of_transformers_carry_the_index_too():
    class Logits(nn.Module):
        def forward(self, ids):
            return ids[:, :C]

    ids = torch.randn(3, 6)
    objective, batch = begun(), {"ids": ids, "labels": torch.tensor([0, 1, 2])}
    found = objective(Logits(), {**batch, "index": torch.tensor([1, 2, 3])})
    expected = double()(ids[:, :C], batch["labels"], torch.tensor([1, 2, 3]))
    torch.testing.assert_close(found, expected.to(found))


def test_nso_trains_in_a_plain_loop_with_the_module():
    model, batch = model_and_batch()
    loss = double()
    optimizer = NSO(torch.optim.SGD(model.parameters(), lr=0.2), sigma=0.01)
    for _ in range(20):
        with loss.one_step():
            for _ in optimizer.passes():
                loss(model(batch["inputs"]), batch["targets"], batch["index"]).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.allclose(
        loss.memory.rows[batch["index"]].sum(1), torch.tensor(1 - 0.7**20).double()
    )
    assert cross_entropy(model(batch["inputs"]), batch["targets"]) < 1.2


@pytest.mark.parametrize(
    ("make_it", "words"),
    [
        (lambda: ELR(beta=1), r"beta is 1: give a finite number in \[0, 1\)"),
        (lambda: ELR(beta=-0.1), "beta is -0.1"),
        (lambda: ELR(lam=-1), "lam is -1"),
        (lambda: ELR(lam=float("inf")), "lam is inf"),
        (lambda: ELR(lam=float("nan")), "lam is nan"),
        (lambda: ELR(beta="much"), "beta is 'much'"),
        (lambda: ELR(dtype="float61"), "did you mean 'float64'"),
        (lambda: ELRLoss(-3, 4), "num_examples is -3"),
        (lambda: make_objective("elr", lamda=3), "did you mean 'lam'"),
        (lambda: ELR().after_step(), "call begin"),
    ],
)
def test_what_cannot_be_is_refused(make_it, words):
    with pytest.raises(InputError, match=words):
        make_it()


def test_batches_that_do_not_say_which_samples_they_hold_are_refused():
    model, batch = model_and_batch()
    pair = batch["inputs"], batch["targets"]
    with pytest.raises(InputError, match="does not say which ones"):
        begun()(model, pair)
    with pytest.raises(InputError, match="does not say which ones"):
        begun()(model, {"inputs": pair[0], "targets": pair[1]})
    with pytest.raises(InputError, match="call begin"):
        ELR()(model, batch)


@pytest.mark.parametrize("make_it", [lambda: ELRLoss(N, C), lambda: PSKDLoss(N, C, total_epochs=2)])
def test_a_loss_without_an_index_is_refused_but_in_evaluation(make_it):
    (z, y, index), loss = some(), make_it()
    with pytest.raises(InputError, match="the index is not given: say which samples"):
        loss(z, y)
    with pytest.raises(InputError, match="the index is a list"):
        loss(z, y, index.tolist())
    assert torch.equal(loss.eval()(z, y), cross_entropy(z, y))
    with pytest.raises(InputError, match="which are no classes"):
        loss(z, y.double())


def test_a_mapping_of_any_kind_says_which_samples_it_holds():
    model, batch = model_and_batch()
    assert torch.equal(begun()(model, UserDict(batch)), begun()(model, batch))


def test_shapes_that_do_not_fit_are_refused():
    z, y, index = some()
    with pytest.raises(InputError, match="4 classes are remembered"):
        double()(z[:, :3], y, index)
    with pytest.raises(InputError, match="6 rows of logits, 6 labels and 5 indices"):
        double()(z, y, index[:5])
    with pytest.raises(InputError, match=r"labels of shape \(6,\) for 9 samples"):
        double().suspects(y)
