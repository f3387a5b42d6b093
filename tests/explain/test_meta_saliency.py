"""Meta-saliency against a copy that is stepped by an optimizer, and the ranks it is judged by."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from flatminima.errors import InputError
from flatminima.explain import NormGrad, class_sensitivity, meta_saliency
from flatminima.explain.meta_saliency import spearman


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(4, 3),
    ).double()


@pytest.fixture
def images():
    return torch.rand(5, 1, 6, 6, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("negate", [False, True])
def test_it_is_the_map_of_a_copy_after_a_step_of_sgd_on_the_image(model, images, negate):
    target = torch.tensor([0, 1, 2, 0, 1])
    found = meta_saliency(
        NormGrad(model, "2").attribute, model, images, target, lr=0.5, negate_loss=negate
    )
    for i in range(5):
        other = copy.deepcopy(model).eval()
        optimizer = torch.optim.SGD(other.parameters(), lr=0.5, maximize=negate)
        nn.functional.cross_entropy(other(images[i : i + 1]), target[i : i + 1]).backward()
        optimizer.step()
        expected = NormGrad(other, "2").attribute(images[i : i + 1], target[i : i + 1])
        torch.testing.assert_close(found[i : i + 1], expected, rtol=1e-10, atol=1e-12)


def test_a_step_of_length_0_gives_the_plain_maps(model, images):
    plain = NormGrad(model, "2").attribute
    zero = meta_saliency(plain, model, images, 1, lr=0.0)
    torch.testing.assert_close(zero, plain(images, target=1), rtol=1e-12, atol=0)
    moved = meta_saliency(plain, model, images, 1, lr=0.5)
    assert (moved - zero).abs().max() > 1e-3


def test_weights_flags_modes_and_gradients_come_back_bit_for_bit(model, images):
    model.train()
    model[0].weight.requires_grad_(False)
    model[6].bias.grad = torch.ones(3).double()
    state = {name: value.clone() for name, value in model.state_dict().items()}

    def broken(inputs, target):
        assert not torch.equal(model[0].weight, state["0.weight"]), "frozen weights step too"
        raise RuntimeError("broken")

    meta_saliency(NormGrad(model, "2").attribute, model, images, 1, lr=0.3)
    with pytest.raises(RuntimeError, match="broken"):
        meta_saliency(broken, model, images, 1, lr=0.3)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert not model[0].weight.requires_grad
    assert model[6].weight.requires_grad
    assert model[6].weight.grad is None
    assert torch.equal(model[6].bias.grad, torch.ones(3).double())


def test_any_method_of_that_call_shape_can_be_stepped(model, images):
    def saliency(inputs, target):
        x = inputs.clone().requires_grad_()
        score = model(x).gather(1, target[:, None]).sum()
        return torch.autograd.grad(score, x)[0].abs()

    model.eval()
    found = meta_saliency(saliency, model, images, 2, lr=0.1)
    assert found.shape == images.shape
    assert not torch.equal(found, saliency(images, torch.full((5,), 2)))


def test_bad_steps_and_targets_are_refused(model, images):
    attribute = NormGrad(model, "2").attribute
    for lr in (-1.0, float("nan"), True):
        with pytest.raises(InputError, match="lr is"):
            meta_saliency(attribute, model, images, 1, lr=lr)
    with pytest.raises(InputError, match="target="):
        meta_saliency(attribute, model, images, None)
    with pytest.raises(InputError, match="classes 0 to 2"):
        meta_saliency(attribute, model, images, 7)


def test_what_is_no_model_or_no_method_is_refused(model, images):
    attribute = NormGrad(model, "2").attribute
    for call, words in (
        (lambda: meta_saliency("x", model, images, 1), "attribute is 'x'"),
        (lambda: meta_saliency(attribute, "m", images, 1), "the model is 'm'"),
        (lambda: meta_saliency(attribute, model, images, 1, lr="a"), "lr is 'a'"),
        (lambda: meta_saliency(attribute, model, images[:0], 1), "no inputs"),
        (lambda: meta_saliency(attribute, model, images[:, [0, 0]], 1), "cannot take inputs"),
        (lambda: meta_saliency(lambda i, target: 3, model, images, 1), "attribute gave a int"),
        (lambda: class_sensitivity(3, model, images), "attribute is 3"),
        (lambda: class_sensitivity(attribute, None, images), "the model is None"),
        (lambda: class_sensitivity(attribute, model, images[:, [0, 0]]), "cannot take inputs"),
        (lambda: class_sensitivity(lambda i, target: 3, model, images), "attribute gave a int"),
    ):
        with pytest.raises(InputError, match=words):
            call()


def test_progress_is_told_of_images_and_of_classes(model, images):
    told = []
    attribute = NormGrad(model, "2").attribute
    say = lambda *one: told.append(one)  # noqa: E731
    meta_saliency(attribute, model, images, 1, progress=say)
    assert told == [("meta-saliency", i, 5) for i in range(1, 6)]
    told.clear()
    class_sensitivity(attribute, model, images, progress=say)
    assert told == [("class sensitivity", 1, 2), ("class sensitivity", 2, 2)]


def test_ranks_are_those_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randint(0, 6, (7, 1, 5, 5), generator=generator) for _ in range(2))
    found = spearman(one.double(), other.double())
    for i in range(7):
        expected = stats.spearmanr(one[i].flatten(), other[i].flatten()).statistic
        assert found[i].item() == pytest.approx(expected, abs=1e-12)
    assert spearman(torch.zeros(1, 4), torch.rand(1, 4)).isnan().all()


def test_class_sensitivity_is_the_mean_over_images(model, images):
    attribute = NormGrad(model, "2").attribute
    model.eval()
    with torch.no_grad():
        predicted = model(images)
    each = spearman(attribute(images, predicted.argmax(1)), attribute(images, predicted.argmin(1)))
    found = class_sensitivity(attribute, model, images)
    assert found.value == pytest.approx(each.mean().item())
    assert found.stderr == pytest.approx((each.std() / 5**0.5).item())
    assert found.samples == 5
    stepped = partial(meta_saliency, attribute, model, lr=0.3)
    assert class_sensitivity(stepped, model, images).value < found.value
    with pytest.raises(InputError, match="constant"):
        class_sensitivity(lambda inputs, target: torch.ones(5, 1, 2, 2), model, images)
    with pytest.raises(InputError, match="two classes"):
        class_sensitivity(attribute, nn.Sequential(nn.Flatten(), nn.Linear(36, 1)).double(), images)
