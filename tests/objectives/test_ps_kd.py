"""Progressive self-distillation against its equations, computed another way."""

import copy
import io
import warnings

import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot

from flatminima.errors import InputError
from flatminima.objectives import PSKD, PSKDLoss, Setting, make_objective

from .remembered import C, N, model_and_batch, rows_of_steps, some

EPOCHS = 5


def double(alpha=0.8, epoch=3, **given):
    loss = PSKDLoss(N, C, alpha, EPOCHS, dtype="float64", **given)
    loss.memory.rows.copy_(torch.randn(N, C, dtype=torch.float64).softmax(1))
    loss.set_epoch(epoch)
    return loss


def test_loss_and_memory_are_those_of_a_dictionary_over_epochs_and_orders():
    torch.manual_seed(0)
    loss, memory = PSKDLoss(N, C, 0.6, EPOCHS, dtype="float64"), {}
    labels = torch.randint(C, (N,))
    for epoch in range(EPOCHS):
        loss.set_epoch(epoch)
        alpha = 0.6 * (epoch + 1) / EPOCHS
        for index in torch.randperm(N).split(4):
            z = torch.randn(len(index), C, dtype=torch.float64)
            expected = 0.0
            for row, i in zip(z, index.tolist(), strict=True):
                target = one_hot(labels[i], C).double()
                if epoch > 0:
                    target = (1 - alpha) * target + alpha * memory[i]
                expected -= (target * (row.exp() / row.exp().sum()).log()).sum()
                memory[i] = row.softmax(0)
            found = loss(z, labels[index], index)
            torch.testing.assert_close(found, expected / len(index))
    torch.testing.assert_close(loss.memory.rows, torch.stack([memory[i] for i in range(N)]))


@pytest.mark.parametrize("given", [{"alpha": 0.0}, {"epoch": 0}])
def test_at_alpha_0_and_in_the_first_epoch_it_is_the_cross_entropy(given):
    z, y, index = some()
    torch.testing.assert_close(double(**given)(z, y, index), cross_entropy(z, y))


def test_of_a_sample_not_met_before_the_target_is_the_label():
    loss = PSKDLoss(N, C, 0.8, EPOCHS)
    loss.set_epoch(4)
    z, y, index = some()
    assert torch.equal(loss.soft_targets(y, index), one_hot(y, C).float())
    torch.testing.assert_close(loss(z, y, index), cross_entropy(z, y))


def test_at_a_memory_of_its_own_prediction_the_gradient_only_shrinks():
    loss, (z, y, index) = double(), some()
    loss.memory.rows[index] = z.detach().softmax(1)
    (found,) = torch.autograd.grad(loss(z, y, index), z)
    (plain,) = torch.autograd.grad(cross_entropy(z, y), z)
    torch.testing.assert_close(found, (1 - loss.alpha) * plain, rtol=0, atol=1e-16)


def test_the_gradient_is_prediction_minus_target():
    loss, (z, y, index) = double(), some()
    targets = loss.soft_targets(y, index)
    (found,) = torch.autograd.grad(loss(z, y, index), z)
    torch.testing.assert_close(found, (z.detach().softmax(1) - targets) / 6, rtol=0, atol=1e-16)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_targets_sum_to_1_and_have_no_gradient(dtype):
    loss = PSKDLoss(N, C, 0.8, EPOCHS, dtype=dtype)
    z, y, index = some()
    loss(z, y, index)
    loss.set_epoch(2)
    found = loss.soft_targets(y, index)
    torch.testing.assert_close(found.sum(1), torch.ones(6).to(found))
    assert not found.requires_grad


def test_alpha_grows_by_equal_parts_and_ends_at_its_value():
    loss, found = double(0.7), []
    for epoch in range(EPOCHS):
        loss.set_epoch(epoch)
        found.append(loss.alpha)
    assert found == pytest.approx([0.14, 0.28, 0.42, 0.56, 0.7])
    assert found[-1] == 0.7


def test_a_temperature_softens_what_is_remembered_alone():
    hot, cold, (z, y, index) = double(temperature=3.0), double(), some()
    hot.memory.rows.copy_(cold.memory.rows)
    assert torch.equal(hot(z, y, index), cold(z, y, index))
    torch.testing.assert_close(hot.memory.rows[index], (z.detach() / 3).softmax(1))


def test_half_precision_remembers_to_three_digits():
    half, full = (PSKDLoss(N, C, 0.8, EPOCHS, dtype=d) for d in ("float16", "float32"))
    z, y, index = some()
    for loss in (half, full):
        loss(z, y, index)
        loss.set_epoch(3)
    assert half.memory.bytes == full.memory.bytes / 2
    found, expected = half(z, y, index), full(z, y, index)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert found != expected


def test_on_disk_it_is_the_same_to_the_bit(tmp_path):
    losses = [PSKDLoss(N, C, 0.8, EPOCHS), None]
    losses[1] = PSKDLoss(N, C, 0.8, EPOCHS, place="disk", folder=str(tmp_path))
    for epoch in range(EPOCHS):
        z, y, index = some(seed=epoch)
        for loss in losses:
            loss.set_epoch(epoch)
        assert losses[0](z, y, index) == losses[1](z, y, index)
    assert torch.equal(losses[0].memory.rows, losses[1].memory.rows)


def test_autocast_does_not_reach_the_loss():
    loss, other = PSKDLoss(N, C), PSKDLoss(N, C)
    z, y, index = some()
    z = z.detach().float()
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(z, y, index)
    assert torch.equal(found, other(z, y, index))
    assert torch.equal(loss.memory.rows, other.memory.rows)


def test_half_precision_logits_give_a_loss_in_single_precision():
    z, y, index = some()
    assert PSKDLoss(N, C)(z.bfloat16(), y, index).dtype == torch.float32


def test_in_evaluation_mode_it_is_the_cross_entropy_and_nothing_is_remembered():
    loss, (z, y, index) = double().eval(), some()
    before = loss.memory.rows.clone()
    assert torch.equal(loss(z, y, index), cross_entropy(z, y))
    assert torch.equal(loss.memory.rows, before)


def test_saved_and_loaded_it_goes_on_in_its_epoch():
    loss, (z, y, index) = double(epoch=2), some()
    file = io.BytesIO()
    torch.save(loss.state_dict(), file)
    file.seek(0)
    again = PSKDLoss(N, C, 0.8, EPOCHS, dtype="float64")
    again.load_state_dict(torch.load(file, weights_only=True))
    assert again.epoch == 2
    assert torch.equal(loss(z, y, index), again(z, y, index))


def begun(steps=10, per_epoch=2, **given):
    objective = PSKD(dtype="float64", **given)
    objective.begin(Setting(samples=N, outputs=C, steps=steps, steps_per_epoch=per_epoch))
    return objective


def test_in_a_run_the_epoch_is_counted_by_steps_also_by_skipped_ones():
    objective, epochs = begun(steps=7, per_epoch=2), []
    model, batch = model_and_batch()
    for step in range(7):
        epochs.append(objective.kept.epoch)
        objective(model, batch)
        objective.after_step(step != 3)
    assert epochs == [0, 0, 1, 1, 2, 2, 3]
    assert objective.kept.total_epochs == 4
    assert objective.kept.alpha == 0.8


def test_one_plain_pass_is_the_papers_rule():
    model, batch = model_and_batch()
    objective, loss = begun(), PSKDLoss(N, C, 0.8, 5, dtype="float64")
    for step in range(6):
        loss.set_epoch(step // 2)
        found = objective(model, batch)
        objective.after_step()
        assert torch.equal(found, loss(model(batch["inputs"]), batch["targets"], batch["index"]))
        with torch.no_grad():
            model[0].weight += 0.1
    assert torch.equal(objective.kept.memory.rows, loss.memory.rows)


@pytest.mark.parametrize("method", ["nso", "sam", "nso-one-pass"])
def test_the_passes_of_a_step_are_remembered_once_by_their_mean(method):
    for _, q, after in rows_of_steps(begun(), method, steps=4):
        torch.testing.assert_close(after, q)


def test_a_skipped_step_leaves_the_prediction_before_it():
    model, batch = model_and_batch()
    objective = begun()
    objective(model, batch)
    objective.after_step()
    before = copy.deepcopy(objective.kept.memory.rows)
    with torch.no_grad():
        model[0].weight += 1
    objective(model, batch)
    objective.after_step(False)
    assert torch.equal(objective.kept.memory.rows, before)


def test_the_state_of_a_run_is_its_memory_and_its_steps():
    model, batch = model_and_batch()
    objective, again = begun(), begun()
    for _ in range(3):
        objective(model, batch)
        objective.after_step()
    again.load_state_dict(copy.deepcopy(objective.state_dict()))
    assert again.kept.epoch == 1
    assert torch.equal(again(model, batch), objective(model, batch))
    for one in (again, objective):
        one.after_step()
        assert one.kept.epoch == 2


@pytest.mark.parametrize(
    ("make_it", "words"),
    [
        (lambda: PSKD(alpha_T=1), r"alpha_T is 1: give a finite number in \[0, 1\)"),
        (lambda: PSKD(alpha_T=-0.1), "alpha_T is -0.1"),
        (lambda: PSKD(alpha_T="x"), "alpha_T is 'x'"),
        (lambda: PSKD(temperature=0), "temperature is 0: give a number from 0.01 to 100"),
        (lambda: PSKD(temperature=float("nan")), "temperature is nan"),
        (lambda: PSKD(place="disc"), "did you mean 'disk'"),
        (lambda: PSKD(folder="/tmp"), "set place=disk"),
        (lambda: PSKDLoss(N, C, 0.8, 0), "total_epochs is 0"),
        (lambda: PSKDLoss(N, C, 0.8, EPOCHS).set_epoch(5), "epoch 5 is none of the 5"),
        (lambda: PSKDLoss(N, C, 0.8, EPOCHS).set_epoch(-1), "epoch is -1"),
        (lambda: PSKDLoss(N, C, 0.8, EPOCHS).set_epoch(0.5), "epoch is 0.5: give a whole number"),
        (lambda: PSKDLoss(N, C, 0.8, EPOCHS).set_epoch("1"), "epoch is '1'"),
        (lambda: make_objective("ps-kd", alpha=0.8), "did you mean 'alpha_T'"),
        (lambda: make_objective("pskd"), "did you mean 'ps-kd'"),
    ],
)
def test_what_cannot_be_is_refused(make_it, words):
    with pytest.raises(InputError, match=words):
        make_it()


def test_batches_that_do_not_say_which_samples_they_hold_are_refused():
    model, batch = model_and_batch()
    with pytest.raises(InputError, match="does not say which ones"):
        begun()(model, (batch["inputs"], batch["targets"]))


def test_a_loop_that_never_sets_the_epoch_is_warned_once():
    (z, y, index), told = some(), PSKDLoss(N, C, 0.8, EPOCHS)
    told.set_epoch(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PSKDLoss(N, C, 0.8, EPOCHS)(z, y, index)
        for _ in range(2):
            told(z, y, index)
    loss = PSKDLoss(N, C, 0.8, EPOCHS)
    loss(z, y, index)
    with pytest.warns(UserWarning, match="set_epoch was never called"):
        loss(z, y, index)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(z, y, index)
