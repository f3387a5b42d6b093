"""The masked ViT against a twin that is given the visible patches one image at a time."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flatminima.errors import InputError
from flatminima.models.hard_patches import (
    MaskedViT,
    begin_with_positions,
    mask_plot,
    patchify,
    sin_cos_positions,
    unpatchify,
)
from flatminima.objectives import HardPatchesMining, Setting

transformers = pytest.importorskip("transformers")

SIZES = {
    "image_size": 12,
    "patch_size": 4,
    "num_channels": 2,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}


def vit(**given):
    config = transformers.ViTConfig(**{**SIZES, **given})
    return transformers.ViTModel(config, add_pooling_layer=False)


def masked_vit(seed=0, **given):
    torch.manual_seed(seed)
    return MaskedViT(vit(**given), width=12, depth=2, heads=3).double().eval()


def images_and_mask(n=3, hidden=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(n, 2, 12, 12, dtype=torch.float64, generator=generator)
    order = torch.rand(n, 9, generator=generator).argsort(1)
    return images, order < hidden


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))
def test_patches_are_the_squares_of_an_image_row_by_row(channels, size, rows, columns):
    images = torch.arange(2.0 * channels * size * rows * size * columns)
    images = images.view(2, channels, size * rows, size * columns)
    patches = patchify(images, size)
    for r in range(rows):
        for c in range(columns):
            square = images[1, :, r * size : (r + 1) * size, c * size : (c + 1) * size]
            expected = square.permute(1, 2, 0).flatten()
            assert torch.equal(patches[1, r * columns + c], expected)
    assert torch.equal(unpatchify(patches, size, size * rows, size * columns), images)


def test_positions_are_sines_and_cosines_of_row_and_column():
    found = sin_cos_positions(3, 4, 8)
    assert found.shape == (12, 8)
    row, column = torch.tensor(2.0), torch.tensor(1.0)
    slow = 10000**-0.5
    expected = [
        *(row.sin(), (row * slow).sin(), row.cos(), (row * slow).cos()),
        *(column.sin(), (column * slow).sin(), column.cos(), (column * slow).cos()),
    ]
    torch.testing.assert_close(found[2 * 4 + 1], torch.stack(expected))


def test_what_is_hidden_is_not_seen():
    model = masked_vit()
    images, mask = images_and_mask()
    pixels = patchify(images, 4)
    other = torch.where(mask[..., None], torch.rand_like(pixels), pixels)
    found, again = (model(unpatchify(p, 4, 12, 12), mask) for p in (pixels, other))
    assert torch.equal(found.reconstruction, again.reconstruction)
    assert torch.equal(found.predicted, again.predicted)
    assert torch.equal(found.patches, pixels)


def test_it_is_that_of_an_encoder_given_the_visible_patches_alone():
    model = masked_vit()
    images, mask = images_and_mask()
    found = model(images, mask)
    inside = model.vit.embeddings
    for i in range(len(images)):
        tokens = [inside.cls_token[0, 0] + inside.position_embeddings[0, 0]]
        places = [place for place in range(9) if not mask[i, place]]
        for place in places:
            top, left = 4 * (place // 3), 4 * (place % 3)
            square = images[i, :, top : top + 4, left : left + 4]
            projection = inside.patch_embeddings.projection
            token = (projection.weight * square).sum((1, 2, 3)) + projection.bias
            tokens.append(token + inside.position_embeddings[0, 1 + place])
        states = torch.stack(tokens)[None]
        for layer in model.vit.layers:
            states = layer(states)
        states = model.enter(model.vit.layernorm(states))[0]
        whole = [states[0]]
        for place in range(9):
            own = states[1 + places.index(place)] if place in places else model.mask_token
            whole.append(own + model.positions[place])
        whole = torch.stack(whole)[None]
        torch.testing.assert_close(found.reconstruction[i], model.reconstructor(whole)[0, 1:])
        torch.testing.assert_close(found.predicted[i], model.predictor(whole)[0, 1:, 0])


def test_without_a_mask_the_vit_sees_all_and_is_left_as_it_was():
    model = masked_vit()
    images, mask = images_and_mask()
    model(images, mask)
    with pytest.raises(InputError):
        model(images[:, :, :8], mask)
    assert not model.vit.embeddings._forward_hooks
    nothing = torch.zeros_like(mask)
    torch.testing.assert_close(model(images).predicted, model(images, nothing).predicted)
    torch.testing.assert_close(model.predict(images, mask), model(images, mask).predicted)


def test_images_of_a_batch_do_not_know_each_other():
    model = masked_vit()
    images, mask = images_and_mask()
    alone = torch.cat([model(images[i : i + 1], mask[i : i + 1]).predicted for i in range(3)])
    torch.testing.assert_close(model(images, mask).predicted, alone)


def test_the_loss_prediction_reaches_the_encoder_and_not_the_reconstructor():
    model = masked_vit()
    images, _ = images_and_mask()
    objective = HardPatchesMining(weight=1.0)
    objective.begin(Setting(3, 1, 2, 1, model))

    def gradients(weight):
        objective.weight = weight
        model.zero_grad()
        torch.manual_seed(0)
        objective(model, images).backward()
        found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        return {name: grad.clone() for name, grad in found.items()}

    both, alone = gradients(1.0), gradients(0.0)
    for name, gradient in both.items():
        same = torch.equal(gradient, alone.get(name, torch.zeros_like(gradient)))
        assert same == name.startswith("reconstructor"), name
    assert any(name.startswith("vit") for name in both)


def test_each_decoder_layer_begins_with_weights_of_its_own():
    first, second = (masked_vit().predictor[i].linear1.weight for i in (0, 1))
    assert not torch.equal(first, second)


def test_a_copy_is_a_model_of_its_own():
    model = masked_vit()
    images, mask = images_and_mask()
    before = model(images, mask).predicted
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(model(images, mask).predicted, before)
    assert not other(images, mask).predicted.any()


def test_the_decoders_are_as_the_config_says():
    torch.manual_seed(0)
    sizes = {"decoder_hidden_size": 24, "decoder_num_hidden_layers": 3}
    model = MaskedViT(vit(**sizes, decoder_num_attention_heads=6))
    assert len(model.predictor) == 3 + 2
    assert model.predictor[0].self_attn.num_heads == 6
    assert model.mask_token.shape == (24,)
    assert MaskedViT(vit()).mask_token.shape == (8,)


def test_positions_of_a_new_vit_begin_as_sines():
    new = vit()
    cls = new.embeddings.position_embeddings[0, 0].clone()
    begin_with_positions(new)
    torch.testing.assert_close(
        new.embeddings.position_embeddings[0, 1:], sin_cos_positions(3, 3, 8)
    )
    assert torch.equal(new.embeddings.position_embeddings[0, 0], cls)
    assert new.embeddings.position_embeddings.requires_grad


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: MaskedViT(torch.nn.Linear(2, 2)), "Linear has no patches"),
        (lambda: MaskedViT(vit(image_size=10)), "10 pixels cannot be cut into patches of 4"),
        (lambda: MaskedViT(vit(), width=10), "width 10 and 2 heads"),
        (lambda: MaskedViT(vit(), width=12, heads=5), "width 12 and 5 heads"),
        (lambda: MaskedViT(vit(), depth=-1), "depth is -1"),
        (lambda: MaskedViT(vit(image_size=(8, 12))), "square"),
        (lambda: MaskedViT("vit"), "a str has no patches"),
        (lambda: MaskedViT(vit(), width=0), "width is 0"),
        (lambda: MaskedViT(vit(), depth=1.5), "depth is 1.5"),
        (lambda: MaskedViT(vit(), heads="a"), "heads is 'a'"),
        (lambda: begin_with_positions("vit"), "the ViT is 'vit'"),
        (lambda: begin_with_positions(torch.nn.Linear(2, 2)), "the ViT is a Linear"),
    ],
)
def test_models_that_cannot_be_are_refused(build, words):
    with pytest.raises(InputError, match=words):
        build()


@pytest.mark.parametrize(
    ("images", "mask", "words"),
    [
        (torch.rand(2, 2, 8, 8), None, "resize them"),
        (torch.rand(2, 3, 12, 12), None, "resize them"),
        (torch.rand(2, 12, 12), None, "resize them"),
        (torch.zeros(2, 2, 12, 12, dtype=torch.uint8), None, "uint8"),
        (torch.rand(2, 2, 12, 12), torch.zeros(2, 9), "float32 for 2 images of 9 patches"),
        (torch.rand(2, 2, 12, 12), torch.zeros(1, 9, dtype=torch.bool), "give bool"),
        (torch.rand(2, 2, 12, 12), torch.ones(2, 9).tril().bool(), "hide 1 to 2 patches"),
    ],
)
def test_images_and_masks_that_do_not_fit_are_refused(images, mask, words):
    with pytest.raises(InputError, match=words):
        MaskedViT(vit())(images, mask)


def test_what_is_no_tensor_is_refused():
    model, images = MaskedViT(vit()), torch.rand(2, 2, 12, 12)
    for arguments in (("x",), (images.numpy(),), (images, "mask"), (images, [[True]])):
        with pytest.raises(InputError, match="must be a tensor"):
            model(*arguments)


def test_masks_are_drawn_on_their_images(tmp_path):
    pytest.importorskip("matplotlib").use("svg")
    model = masked_vit().float().train()
    images = torch.rand(2, 2, 12, 12)
    figure = mask_plot(model, images, HardPatchesMining(ratio=0.5))
    assert model.training
    assert len(figure.axes) == 5 * 2
    drawn = figure.axes[3 * 2].get_images()[0].get_array()
    # Four of nine patches are left to see, 5 hidden in one colour.
    blue = (abs(drawn - [0.16, 0.36, 0.58]) < 1e-9).all(-1)
    assert blue.sum() == 5 * 16
    with pytest.raises(InputError, match="at least one image"):
        mask_plot(model, images[:0])
    for arguments, words in (
        (("model", images), "the model is 'model'"),
        ((model, "images"), "images must be a tensor"),
        ((model, images, "objective"), "the objective is 'objective'"),
        ((model, images, None, "seed"), "seed is 'seed'"),
    ):
        with pytest.raises(InputError, match=words):
            mask_plot(*arguments)
