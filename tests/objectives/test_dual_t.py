"""The Dual-T estimate of label noise, and the loss that it corrects."""

import pytest
import torch
from torch import nn

from flatminima.errors import InputError
from flatminima.objectives import BackwardCorrection, DualT, Setting
from flatminima.objectives.dual_t import dual_t
from flatminima.training.recipe import Recipe
from flatminima.training.run import finetune


def noisy_world(n=60_000, classes=4, rate=0.3):
    """Classes, their noisy labels, and the probabilities of a model that knows the classes."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(classes, (n,), generator=generator)
    flip = torch.rand(n, generator=generator) < rate
    other = (truth + torch.randint(1, classes, (n,), generator=generator)) % classes
    labels = torch.where(flip, other, truth)
    sure = 0.9 + 0.1 * torch.rand(n, generator=generator)
    probabilities = (1 - sure)[:, None].expand(n, classes) / (classes - 1)
    return truth, labels, probabilities.scatter(1, truth[:, None], sure[:, None])


def test_the_matrix_of_known_noise_is_found():
    _, labels, probabilities = noisy_world()
    found = dual_t(probabilities.double(), labels)
    wanted = torch.full((4, 4), 0.1).fill_diagonal_(0.7).double()
    # The anchors are not quite sure of themselves: 0.997 at the 97th percentile.
    torch.testing.assert_close(found, wanted, atol=0.015, rtol=0)
    torch.testing.assert_close(found.sum(1), torch.ones(4).double())


def test_it_is_the_slow_twin():
    generator = torch.Generator().manual_seed(1)
    p = torch.rand(50, 3, dtype=torch.float64, generator=generator)
    p /= p.sum(1, keepdim=True)
    labels = torch.randint(3, (50,), generator=generator)
    first, second = torch.zeros(3, 3).double(), torch.zeros(3, 3).double()
    for i in range(3):
        limit = torch.quantile(p[:, i], 0.97)
        below = [(p[s, i].item(), s) for s in range(50) if p[s, i] <= limit]
        first[i] = p[max(below)[1]]
        mine = [s for s in range(50) if p[s].argmax() == i]
        for s in mine:
            second[i, labels[s]] += 1 / len(mine)
    torch.testing.assert_close(dual_t(p, labels), first @ second)


def test_a_class_that_is_never_predicted_keeps_its_labels():
    p = torch.tensor([[0.6, 0.3, 0.1]] * 10 + [[0.2, 0.7, 0.1]] * 10).double()
    found = dual_t(p, torch.tensor([0] * 10 + [1] * 10))
    torch.testing.assert_close(found[2], p[0] if p[0, 2] >= p[10, 2] else p[10])


def test_a_model_is_not_given_the_index():
    class Wants(nn.Module):
        def forward(self, ids):
            return ids

    ids, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    objective = DualT(1)
    objective.begin(Setting(samples=6, outputs=3, steps=4, steps_per_epoch=1))
    loss = step(objective, Wants(), {"ids": ids, "labels": labels, "index": torch.arange(6)})
    assert torch.equal(loss, nn.functional.cross_entropy(ids, labels))
    with pytest.raises(InputError, match="are no classes"):
        objective(Wants(), {"ids": ids, "labels": labels.double(), "index": torch.arange(6)})


def step(objective, model, batch):
    loss = objective(model, batch)
    objective.after_step()
    return loss


def test_first_it_is_the_cross_entropy_and_then_corrected_by_what_it_found():
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    x, y = torch.randn(40, 5), torch.randint(3, (40,))
    batch = {"inputs": x, "targets": y, "index": torch.arange(40)}
    objective = DualT(start=2)
    objective.begin(Setting(samples=40, outputs=3, steps=4, steps_per_epoch=1))
    for _ in range(2):
        plain = nn.functional.cross_entropy(model(x), y)
        torch.testing.assert_close(step(objective, model, batch), plain)
    wanted = dual_t(model(x).softmax(1), y)
    torch.testing.assert_close(objective.transition, wanted)
    inverse = torch.linalg.pinv(wanted)
    torch.testing.assert_close(
        step(objective, model, batch), -(inverse[y] * model(x).log_softmax(1)).sum(1).mean()
    )
    model.eval()
    torch.testing.assert_close(objective(model, batch), nn.functional.cross_entropy(model(x), y))


def test_with_the_matrix_of_symmetric_noise_it_is_the_backward_correction():
    torch.manual_seed(0)
    model, x, y = nn.Linear(5, 4), torch.randn(9, 5), torch.randint(4, (9,))
    objective = DualT(start=1)
    objective.begin(Setting(samples=9, outputs=4, steps=3, steps_per_epoch=1))
    objective.set_extra_state({"steps": 1})
    objective.transition.fill_(0.1).fill_diagonal_(0.7)
    batch = {"inputs": x, "targets": y, "index": torch.arange(9)}
    torch.testing.assert_close(objective(model, batch), BackwardCorrection(0.3)(model, (x, y)))


def test_the_forward_correction_is_the_loss_of_the_noisy_prediction():
    torch.manual_seed(0)
    model, x, y = nn.Linear(5, 4), torch.randn(9, 5), torch.randint(4, (9,))
    objective = DualT(start=1, correction="forward")
    objective.begin(Setting(samples=9, outputs=4, steps=3, steps_per_epoch=1))
    objective.set_extra_state({"steps": 1})
    objective.transition.copy_(torch.rand(4, 4).softmax(1))
    noisy = model(x).softmax(1) @ objective.transition
    wanted = -noisy[torch.arange(9), y].log().mean()
    batch = {"inputs": x, "targets": y, "index": torch.arange(9)}
    torch.testing.assert_close(objective(model, batch), wanted)


def test_what_it_knows_is_in_its_state():
    one, other = DualT(start=1), DualT(start=1)
    for objective in (one, other):
        objective.begin(Setting(samples=6, outputs=2, steps=4, steps_per_epoch=1))
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    batch = {"inputs": torch.randn(6, 3), "targets": torch.tensor([0, 1] * 3)}
    batch["index"] = torch.arange(6)
    step(one, model, batch)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(model, batch), other(model, batch))


def test_a_run_leaves_the_matrix(tmp_path):
    asked = {"objective": "dual-t(start=2;correction=forward)", "epochs": 4, "measure": False}
    finetune(Recipe.from_flat(asked), tmp_path / "a", say=lambda text: None)
    assert (tmp_path / "a/transition.json").is_file()


@pytest.mark.parametrize("start", [0, 1.5, True])
def test_a_start_that_is_no_number_of_epochs_is_refused(start):
    with pytest.raises(InputError, match="give a whole number of epochs"):
        DualT(start=start)


def test_nothing_seen_gives_no_matrix():
    objective = DualT(1)
    objective.begin(Setting(samples=6, outputs=3, steps=4, steps_per_epoch=1))
    with pytest.raises(InputError, match="has seen no sample in the 1 epochs"):
        objective.after_step(taken=False)


def test_a_misspelt_correction_is_named():
    with pytest.raises(InputError, match="did you mean 'forward'"):
        DualT(start=1, correction="forwards")


def test_a_start_after_the_end_is_refused_before_training(tmp_path):
    asked = {"objective": "dual-t(start=9)", "epochs": 4, "measure": False}
    with pytest.raises(InputError, match="the run has 4: give a smaller start"):
        finetune(Recipe.from_flat(asked), tmp_path / "a")
    assert not (tmp_path / "a").exists()
