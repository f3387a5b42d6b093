"""Hard Patches Mining against its equations, written out pair by pair and patch by patch."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flatminima.errors import InputError
from flatminima.objectives import (
    HardPatchesMining,
    HardPatchMasker,
    PatchOutput,
    Setting,
    make_objective,
    relative_loss,
)
from flatminima.objectives.hard_patches import (
    absolute_loss,
    complementary_masks,
    fold_scores,
    patch_losses,
    ranking_agreement,
)
from flatminima.perturb import make

QUICK = settings(max_examples=40, deadline=None)


def some(n=3, m=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    predicted = torch.randn(n, m, dtype=torch.float64, generator=generator)
    # Whole numbers, so that some losses of an image are equal.
    losses = torch.randint(4, (n, m), generator=generator).double()
    return predicted, losses


class Tiny(nn.Module):
    """Patches are the numbers of a row; a masked one is guessed from the mean of those seen."""

    def __init__(self, patches=8, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.patch_count = patches
        self.guess = nn.Parameter(torch.randn(patches))
        self.harder = nn.Parameter(torch.randn(patches))
        self.seen = []

    def forward(self, images, mask=None):
        hidden = torch.zeros_like(images, dtype=torch.bool) if mask is None else mask
        self.seen.append(hidden)
        mean = (images * ~hidden).sum(1, keepdim=True) / (~hidden).sum(1, keepdim=True)
        rebuilt = torch.where(hidden, self.guess + mean, images)
        predicted = self.harder * mean + hidden.to(images.dtype)
        return PatchOutput(rebuilt[..., None], predicted, images[..., None])

    def predict(self, images, mask=None):
        return self(images, mask).predicted


def begun(steps=8, per_epoch=2, model=None, **given):
    model = Tiny() if model is None else model
    objective = HardPatchesMining(**given)
    objective.begin(Setting(16, 1, steps, per_epoch, model))
    return objective, model


def test_the_relative_loss_is_the_sum_over_ordered_pairs():
    predicted, losses = some()
    predicted.requires_grad_()
    total, pairs = 0.0, 0
    for p, l in zip(predicted, losses, strict=True):  # noqa: E741
        for i in range(5):
            for j in range(5):
                sigma = 1 / (1 + torch.exp(-(p[j] - p[i])))
                if l[j] > l[i]:
                    total, pairs = total - torch.log(sigma), pairs + 1
                elif l[j] < l[i]:
                    total, pairs = total - torch.log(1 - sigma), pairs + 1
    assert 0 < pairs < 60
    found = relative_loss(predicted, losses)
    torch.testing.assert_close(found, total / pairs)
    gradients = [torch.autograd.grad(x, predicted)[0] for x in (found, total / pairs)]
    torch.testing.assert_close(*gradients)


@QUICK
@given(st.integers(0, 1000), st.floats(-50, 50), st.integers(1, 6))
def test_of_constant_predictions_it_is_log_2_and_shifts_do_not_matter(seed, shift, n):
    predicted, losses = some(n, seed=seed)
    losses[:, 0] = 9.0
    constant = torch.full_like(predicted, shift)
    assert relative_loss(constant, losses).item() == pytest.approx(math.log(2))
    torch.testing.assert_close(
        relative_loss(predicted + shift, losses), relative_loss(predicted, losses)
    )


@QUICK
@given(st.integers(0, 1000))
def test_only_the_order_of_the_losses_counts(seed):
    predicted, losses = some(seed=seed)
    for change in (torch.exp, lambda x: x**3 - 7, lambda x: 1e-6 * x):
        torch.testing.assert_close(
            relative_loss(predicted, change(losses)), relative_loss(predicted, losses)
        )


def test_it_goes_to_0_for_orders_that_are_right_and_far_apart():
    _, losses = some()
    assert relative_loss(100 * losses, losses) < 1e-40
    assert relative_loss(-100 * losses, losses) >= 100


def test_images_whose_losses_are_all_equal_say_nothing():
    predicted, losses = some()
    predicted.requires_grad_()
    found = relative_loss(predicted, torch.ones_like(losses))
    assert found == 0
    assert not torch.autograd.grad(found, predicted)[0].any()
    flat = losses.clone()
    flat[1] = 2.0
    kept = [0, 2]
    torch.testing.assert_close(
        relative_loss(predicted, flat), relative_loss(predicted[kept], losses[kept])
    )


def test_confident_mistakes_are_not_cut_off_and_stay_finite():
    predicted = torch.tensor([[1e4, 0.0]], requires_grad=True)
    found = relative_loss(predicted, torch.tensor([[0.0, 1.0]]))
    assert found.item() == pytest.approx(1e4)
    assert torch.autograd.grad(found, predicted)[0].tolist() == [[1.0, -1.0]]


def test_the_absolute_loss_is_the_error_against_standardized_losses():
    predicted, losses = some()
    expected = torch.zeros((), dtype=torch.float64)
    for p, l in zip(predicted, losses, strict=True):  # noqa: E741
        variance = ((l - l.mean()) ** 2).sum() / 4
        expected += ((p - (l - l.mean()) / math.sqrt(variance + 1e-6)) ** 2).sum() / 15
    torch.testing.assert_close(absolute_loss(predicted, losses), expected)


def test_agreement_counts_pairs_and_halves_ties():
    right, pairs = ranking_agreement(
        torch.tensor([[1.0, 2.0, 2.0, 0.0]]), torch.tensor([[0.0, 1.0, 3.0, 3.0]])
    )
    # (0,1) (0,2) right, (1,2) tied, (0,3) (1,3) wrong; 2 and 3 are equal.
    assert (right.item(), pairs.item()) == (2.5, 5)


def test_patch_losses_are_those_of_a_loop():
    torch.manual_seed(0)
    guess, patches = torch.randn(2, 2, 3, 7, dtype=torch.float64)
    for i in range(2):
        for j in range(3):
            expected = ((guess[i, j] - patches[i, j]) ** 2).sum() / 7
            torch.testing.assert_close(patch_losses(guess, patches)[i, j], expected)


@QUICK
@given(
    st.integers(2, 40),
    st.floats(0.05, 0.95),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(0, 99),
)
def test_a_mask_hides_m_patches_and_the_k_hardest_among_them(patches, ratio, alpha, t, seed):
    masker = HardPatchMasker(ratio, alpha)
    masked = patches - math.floor(patches * (1 - ratio) + 1e-9)
    if masked == patches:
        with pytest.raises(InputError, match="would be masked"):
            masker.counts(patches)
        return
    hard = math.floor(masked * alpha * t + 1e-9)
    assert masker.counts(patches, t) == (masked, hard)
    torch.manual_seed(seed)
    hardness = torch.randn(6, patches)
    mask = masker(hardness, t)
    assert mask.dtype == torch.bool
    assert mask.sum(1).tolist() == [masked] * 6
    assert mask.gather(1, hardness.argsort(1, descending=True)[:, :hard]).all()


def test_counts_are_not_lost_to_rounding():
    assert HardPatchMasker(0.9).counts(10) == (9, 4)
    assert HardPatchMasker(0.75).counts(196) == (147, 73)
    assert HardPatchMasker(0.8, 1.0).counts(5, 0.75) == (4, 3)


@pytest.mark.parametrize(("progress", "hard"), [(0.0, 0), (1.0, 6)])
def test_what_is_not_chosen_by_hardness_is_uniform(progress, hard):
    draws = 4000
    hardness = torch.arange(16.0).repeat(draws, 1)
    generator = torch.Generator().manual_seed(0)
    rates = HardPatchMasker(0.75, 0.5)(hardness, progress, generator).double().mean(0)
    expected = (12 - hard) / (16 - hard)
    error = 4.5 * math.sqrt(expected * (1 - expected) / draws)
    assert (rates[: 16 - hard] - expected).abs().max() < error
    assert (rates[16 - hard :] == 1).all()


@QUICK
@given(st.integers(3, 30), st.floats(0.1, 0.9), st.integers(0, 99))
def test_complementary_masks_hide_each_patch_once_at_least(patches, ratio, seed):
    like = torch.zeros(4, patches)
    masked = patches - math.floor(patches * (1 - ratio) + 1e-9)
    if masked == patches:
        return
    masks = complementary_masks(like, ratio, torch.Generator().manual_seed(seed))
    assert (masks.sum(2) == masked).all()
    assert masks.any(0).all()


def test_at_three_quarters_four_masks_show_each_patch_once():
    masks = complementary_masks(torch.zeros(5, 16), 0.75)
    assert masks.shape == (4, 5, 16)
    assert ((~masks).sum(0) == 1).all()
    assert not torch.equal(masks[:, 0], masks[:, 1])


def test_fold_scores_are_the_means_over_folds_that_hide_a_patch():
    model, images = Tiny(), torch.randn(3, 8)
    found = fold_scores(model, images, 0.75, torch.Generator().manual_seed(1))
    masks = complementary_masks(torch.zeros(3, 8), 0.75, torch.Generator().manual_seed(1))
    for i in range(3):
        for patch in range(8):
            values = [
                model(images[i : i + 1], mask[i : i + 1]).predicted[0, patch]
                for mask in masks
                if mask[i, patch]
            ]
            torch.testing.assert_close(found[i, patch], torch.stack(values).mean())


def test_the_loss_is_that_of_the_masked_patches_alone():
    objective, model = begun(weight=0.3)
    images = torch.randn(4, 8)
    torch.manual_seed(5)
    loss = objective(model, {"inputs": images})
    mask = model.seen[-1]
    found = model(images, mask)
    expected, ranking = 0.0, []
    for i in range(4):
        l = ((found.reconstruction[i, :, 0] - images[i]) ** 2)[mask[i]]  # noqa: E741
        expected += l.sum() / (4 * 6)
        ranking.append((found.predicted[i][mask[i]], l.detach()))
    ranked = relative_loss(*(torch.stack(part) for part in zip(*ranking, strict=True)))
    torch.testing.assert_close(loss, expected + 0.3 * ranked)


def test_the_predicted_losses_learn_but_the_losses_do_not_learn_from_them():
    objective, model = begun(weight=1.0)
    images = torch.randn(4, 8)

    def gradients(weight):
        objective.weight = weight
        torch.manual_seed(0)
        return torch.autograd.grad(
            objective(model, images), [model.guess, model.harder], allow_unused=True
        )

    with_weight, without = gradients(1.0), gradients(0.0)
    torch.testing.assert_close(with_weight[0], without[0])
    assert with_weight[1].abs().max() > 0
    assert without[1] is None or not without[1].any()


@pytest.mark.parametrize("score", ["full", "folds"])
def test_more_is_chosen_by_hardness_from_epoch_to_epoch(score):
    objective, _ = begun(steps=8, per_epoch=2, score=score)
    images = torch.randn(64, 8)
    chosen = []
    for step in range(8):
        assert objective.progress == (step // 2 + 1) / 4
        generator = torch.Generator().manual_seed(step)
        mask = objective.masks(images, generator)
        hardness = objective.hardness(
            objective.teacher.module, images, torch.Generator().manual_seed(step)
        )
        assert mask.sum(1).tolist() == [6] * 64
        order = hardness.argsort(1, descending=True)
        # How many of the hardest, one after the other, are hidden in every image.
        always = mask.gather(1, order).all(0).long()
        chosen.append(int(always.cumprod(0).sum()))
        objective.after_step()
    assert chosen == [0, 0, 1, 1, 2, 2, 3, 3]


def test_without_hardness_the_teacher_is_not_asked():
    objective, model = begun(alpha=0.0)
    for _ in range(3):
        objective(model, torch.randn(4, 8))
        objective.after_step()
    assert not objective.teacher.module.seen


def test_the_teacher_is_the_moving_average_of_the_model():
    objective, model = begun(decay=0.3, last_decay=0.5, steps=400, per_epoch=2)
    assert torch.equal(objective.teacher.module.guess, model.guess)
    expected = None
    for step in range(12):
        with torch.no_grad():
            model.guess.add_(torch.randn(8))
        epoch = step // 2
        decay = min(0.3 + 0.2 * epoch / 100, (1 + step) / (10 + step))
        assert objective.decay == pytest.approx(decay)
        before = expected
        objective.after_step(taken=step != 5)
        now = model.guess.detach()
        if step == 0:
            expected = now.clone()
        elif step != 5:
            expected = decay * before + (1 - decay) * now
        torch.testing.assert_close(objective.teacher.module.guess.detach(), expected)
    assert not any(p.requires_grad for p in objective.teacher.parameters())


def test_the_teachers_decay_ends_at_the_papers():
    objective, _ = begun(steps=100_000, per_epoch=100)
    objective.load_state_dict({**objective.state_dict(), "steps": torch.tensor(50_000)})
    assert objective.decay == pytest.approx(1 - 9 / 50_010)
    objective.load_state_dict({**objective.state_dict(), "steps": torch.tensor(99_000)})
    assert objective.decay == 0.9999
    objective.load_state_dict({**objective.state_dict(), "steps": torch.tensor(9_999)})
    assert objective.decay == pytest.approx(min(0.999 + 0.99 * 0.0009, 10_000 / 10_009))


def test_both_passes_of_a_step_see_one_mask():
    objective, model = begun()
    optimizer = make("nso", torch.optim.SGD(model.parameters(), lr=0.1), sigma=0.5)
    images, masks = torch.randn(4, 8), []
    for _ in optimizer.passes():
        objective(model, images).backward()
        masks.append(model.seen[-1])
    optimizer.step()
    assert len(masks) == 2
    assert torch.equal(*masks)


def test_a_saved_objective_goes_on_as_it_was():
    objective, model = begun()
    for _ in range(3):
        with torch.no_grad():
            model.harder.add_(1.0)
        objective.after_step()
    state = copy.deepcopy(objective.state_dict())
    again, _ = begun(model=copy.deepcopy(model))
    again.load_state_dict(state)
    assert (again.progress, again.decay) == (objective.progress, objective.decay)
    images = torch.randn(4, 8)
    masks = [o.masks(images, torch.Generator().manual_seed(3)) for o in (objective, again)]
    assert torch.equal(*masks)
    assert not any("guess" in name and "teacher" not in name for name in state)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"ratio": 0.0}, "ratio is 0.0"),
        ({"ratio": 1}, "ratio is 1"),
        ({"alpha": 1.5}, "alpha is 1.5"),
        ({"weight": -1}, "weight is -1"),
        ({"decay": 1.0}, "decay is 1.0"),
        ({"ranking": "relativ"}, "did you mean 'relative'"),
        ({"score": "fold"}, "did you mean 'folds'"),
        ({"alhpa": 0.1}, "did you mean 'alpha'"),
    ],
)
def test_bad_options_are_named(given, words):
    with pytest.raises(InputError, match=words):
        make_objective("hard-patches-mining", **given)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: HardPatchMasker()(torch.rand(8)), r"give \(images, patches\)"),
        (lambda: HardPatchMasker()(torch.rand(2, 2, 4)), r"give \(images, patches\)"),
        (lambda: HardPatchMasker()(torch.full((2, 8), math.nan)), "not a number"),
        (lambda: HardPatchMasker()(torch.ones(2, 8).bool()), "of torch.bool"),
        (lambda: HardPatchMasker()([[1.0] * 8]), "hardness must be a tensor"),
        (lambda: HardPatchMasker().counts(8.5), "patches is 8.5"),
        (lambda: HardPatchMasker().counts("a"), "patches is 'a'"),
        (lambda: complementary_masks(torch.rand(8), 0.75), r"give \(images, patches\)"),
        (lambda: complementary_masks("x", 0.75), "hardness must be a tensor"),
        (lambda: fold_scores("m", torch.rand(2, 8), 0.75), "the model is 'm'"),
        (lambda: fold_scores(nn.Linear(2, 2), torch.rand(2, 8), 0.75), "give a MaskedViT"),
        (lambda: fold_scores(Tiny(), "x", 0.75), "images must be a tensor"),
        (lambda: patch_losses(torch.rand(2, 3), torch.rand(2, 4)), "both one shape"),
        (lambda: patch_losses("a", "b"), "reconstruction must be a tensor"),
        (lambda: relative_loss(torch.rand(4), torch.rand(4)), r"give \(n, M\)"),
        (lambda: relative_loss(torch.rand(2, 4), torch.rand(2, 5)), "both one shape"),
        (lambda: absolute_loss(torch.rand(4), torch.rand(4)), r"give \(n, M\)"),
        (lambda: absolute_loss(torch.rand(2, 1), torch.rand(2, 1)), "no variance"),
        (lambda: ranking_agreement(torch.rand(4), torch.rand(4)), r"give \(n, M\)"),
        (lambda: HardPatchesMining(ranking=[]), "unknown ranking"),
        (lambda: HardPatchesMining(score=3), "unknown score"),
    ],
)
def test_hardness_and_losses_of_another_shape_are_refused(call, words):
    with pytest.raises(InputError, match=words):
        call()


def test_where_nothing_is_chosen_by_hardness_it_need_not_be_known():
    mask = HardPatchMasker()(torch.full((2, 8), math.nan), progress=0.0)
    assert (mask.sum(1) == 6).all()


def test_the_model_and_the_images_are_asked_for():
    with pytest.raises(InputError, match="begins with a model"):
        HardPatchesMining().begin(Setting(4, 1, 2, 1))
    with pytest.raises(InputError, match="call begin"):
        HardPatchesMining()(Tiny(), torch.randn(2, 8))
    objective, model = begun()
    with pytest.raises(InputError, match="tensors"):
        objective(model, {"texts": ["a"]})
    with pytest.raises(InputError, match="there are no images"):
        objective(model, torch.zeros(0, 8))


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.randint(256, (2, 8)), "int64"),
        (255 * torch.ones(2, 8), "reach 255"),
        (torch.tensor([[math.nan] * 8]), "reach nan"),
    ],
)
def test_pixels_of_another_range_are_refused(images, words):
    objective, model = begun()
    with pytest.raises(InputError, match=words):
        objective(model, (images, torch.zeros(len(images))))
