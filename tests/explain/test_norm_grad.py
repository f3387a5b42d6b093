"""NormGrad against autograd through real layers, closed forms, and Captum's call shape."""

import inspect

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import interpolate, unfold

from flatminima.errors import InputError
from flatminima.explain import METHODS, NormGrad, norm_grad, overlay, saliency_plot
from flatminima.explain.identities import own, virtual
from flatminima.explain.maps import combine, min_max, to_grid
from flatminima.explain.outer_products import AGGREGATES

VIRTUAL = ("bias", "scaling", "conv1x1", "conv3x3", "conv5x5", "depthwise3x3")


def matrices(identity: str, x, g):
    """The matrices of each place, built: (n, places, entries), the slow and obvious way."""
    n, c = x.shape[:2]
    g_ = g.flatten(2)
    if identity == "bias":
        return g_.transpose(1, 2)
    if identity == "scaling":
        return (g_ * x.flatten(2)).transpose(1, 2)
    side = int(identity[-1])
    patches = unfold(x, side, padding=side // 2).view(n, c, side * side, -1)
    if identity.startswith("depthwise"):
        return torch.einsum("ncu,ncku->nuck", g_, patches).flatten(2)
    return torch.einsum("nou,ncku->nuock", g_, patches).flatten(2)


def slow(aggregate: str, entries):
    return {
        "norm": lambda e: e.norm(dim=-1),
        "filter_norm": lambda e: e.clamp(min=0).norm(dim=-1),
        "sum": lambda e: e.sum(-1),
        "max": lambda e: e.amax(-1),
        "max_abs": lambda e: e.abs().amax(-1),
    }[aggregate](entries)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(5, 4, 3, stride=2, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    ).double()


@pytest.fixture
def images():
    return torch.randn(6, 2, 8, 8, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("identity", VIRTUAL)
def test_each_cell_of_the_table_is_what_the_built_matrices_say(identity, aggregate):
    torch.manual_seed(0)
    x, g = torch.randn(3, 4, 5, 6).double(), torch.randn(3, 4, 5, 6).double()
    fast = AGGREGATES[aggregate](virtual(identity, x, g))
    expected = slow(aggregate, matrices(identity, x, g)).view(3, 5, 6)
    torch.testing.assert_close(fast, expected, rtol=1e-10, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 4)] * 4),
    identity=st.sampled_from(VIRTUAL),
    aggregate=st.sampled_from(sorted(AGGREGATES)),
    signs=st.sampled_from(["any", "positive", "negative", "zero"]),
    seed=st.integers(0, 99),
)
def test_the_closed_forms_hold_for_any_shape_and_sign(shape, identity, aggregate, signs, seed):
    generator = torch.Generator().manual_seed(seed)
    x, g = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    x = {"any": x, "positive": x.abs(), "negative": -x.abs(), "zero": 0 * x}[signs]
    fast = AGGREGATES[aggregate](virtual(identity, x, g))
    expected = slow(aggregate, matrices(identity, x, g)).view_as(fast)
    torch.testing.assert_close(fast, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("side", [1, 3])
def test_the_matrices_add_up_to_the_gradient_of_a_real_identity_layer(model, images, side):
    identity = nn.Conv2d(5, 5, side, padding=side // 2, bias=False).double()
    nn.init.dirac_(identity.weight)
    whole = nn.Sequential(*model[:2], identity, *model[2:]).eval()
    model.eval()
    torch.testing.assert_close(whole(images), model(images), rtol=0, atol=1e-14)
    target = torch.arange(6) % 3
    whole(images).gather(1, target[:, None]).sum().backward()
    maps = NormGrad(model, "1", identity=f"conv{side}x{side}")
    x = model[:2](images).detach()
    g = torch.autograd.grad(
        model[2:](leaf := x.clone().requires_grad_()).gather(1, target[:, None]).sum(), leaf
    )[0]
    total = matrices(f"conv{side}x{side}", x, g).sum((0, 1))
    gradient = identity.weight.grad.flatten()
    torch.testing.assert_close(total, gradient, rtol=1e-10, atol=1e-12)
    found = maps.layer_maps(images, target)["1"]
    assert gradient.norm() <= found.sum() * (1 + 1e-12)
    torch.testing.assert_close(
        found[:, 0].flatten(1), slow("norm", matrices(f"conv{side}x{side}", x, g))
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "stride": 2, "padding": 2, "dilation": 2},
        {"kernel_size": (1, 3), "padding": (0, 1), "groups": 2},
        {"kernel_size": 3, "padding": "same", "padding_mode": "reflect"},
        {"kernel_size": 4, "padding": "same"},
        {"kernel_size": 2, "stride": 2},
        {"kernel_size": 1, "stride": 2},
        {"kernel_size": 3, "padding": 1, "padding_mode": "circular", "groups": 4},
    ],
)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_the_own_weight_of_a_convolution_has_its_own_patches(settings, aggregate):
    torch.manual_seed(2)
    layer = nn.Conv2d(4, 8, bias=False, **settings).double()
    x = torch.randn(1, 4, 7, 9).double()
    output = layer(x)
    g = torch.randn_like(output)
    fast = AGGREGATES[aggregate](own(layer, "layer", x, g))[0]
    for row in range(output.shape[2]):
        for column in range(output.shape[3]):
            alone = torch.zeros_like(g)
            alone[..., row, column] = g[..., row, column]
            (weight,) = torch.autograd.grad(layer(x), layer.weight, alone)
            expected = slow(aggregate, weight.flatten())
            torch.testing.assert_close(fast[row, column], expected, rtol=1e-10, atol=1e-12)


def test_the_own_weight_through_a_model_and_of_a_kind_that_has_none(model, images):
    found = NormGrad(model, ["0", "2"], identity="own").layer_maps(images, 1)
    assert found["2"].shape == (6, 1, 4, 4)
    with pytest.raises(InputError, match="BatchNorm2d"):
        NormGrad(model, "3", identity="own").attribute(images, 1)


def test_known_methods_are_cells_of_the_table(model, images):
    model.eval()
    x = model[:5](images).detach().requires_grad_()
    (g,) = torch.autograd.grad(model[5:](x)[:, 2].sum(), x)
    x = x.detach()
    expected = {
        "norm-grad": g.norm(dim=1) * x.norm(dim=1),
        "selective": (x * g).clamp(min=0).norm(dim=1),
        "gradient": g.abs().amax(1),
        "linear-approximation": (x * g).sum(1).clamp(min=0),
        "grad-cam": (x * g.mean((2, 3), keepdim=True)).sum(1).clamp(min=0),
    }
    assert set(expected) == set(METHODS)
    for method, values in expected.items():
        found = NormGrad.of(method, model, "4").layer_maps(images, 2)["4"][:, 0]
        torch.testing.assert_close(found, values, rtol=1e-10, atol=1e-14)


def test_an_in_place_layer_behind_does_not_overwrite_what_was_recorded(model, images):
    before = NormGrad(model, ["0", "3"]).layer_maps(images, 0)
    for layer in model:
        if isinstance(layer, nn.ReLU):
            layer.inplace = False
    after = NormGrad(model, ["0", "3"]).layer_maps(images, 0)
    for name in before:
        torch.testing.assert_close(before[name], after[name], rtol=0, atol=0)


def test_the_same_numbers_come_in_chunks_and_from_one_image_at_a_time(model, images):
    target = torch.arange(6) % 3
    method = NormGrad(model, ["1", "4"])
    whole = method.attribute(images, target)
    for size in (1, 4, 6, 100):
        torch.testing.assert_close(
            method.attribute(images, target, internal_batch_size=size), whole, rtol=1e-10, atol=0
        )
    for size in (0, 1.5, "2", True):
        with pytest.raises(InputError, match="internal_batch_size is"):
            method.attribute(images, target, internal_batch_size=size)


def test_several_layers_are_resized_scaled_and_multiplied(model, images):
    method = NormGrad(model, ["1", "4"])
    raw = method.layer_maps(images, 1)
    parts = []
    for one in raw.values():
        one = interpolate(one, (8, 8), mode="bilinear", align_corners=False)
        low, high = one.amin((1, 2, 3), keepdim=True), one.amax((1, 2, 3), keepdim=True)
        parts.append((one - low) / (high - low))
    found = method.attribute(images, 1)
    assert found.shape == (6, 1, 8, 8)
    torch.testing.assert_close(found, parts[0] * parts[1])
    weighted = NormGrad(model, ["1", "4"], combine="sum", weights="linear").attribute(images, 1)
    torch.testing.assert_close(weighted, (parts[0] + 2 * parts[1]) / 3)
    geometric = NormGrad(model, ["1", "4"], combine="geometric", weights=[3, 1])
    expected = parts[0] ** 0.75 * parts[1] ** 0.25
    torch.testing.assert_close(geometric.attribute(images, 1), expected)


def test_a_constant_map_has_no_say_in_a_product():
    maps = torch.stack([torch.full((1, 2, 2), 3.0), torch.arange(4.0).view(1, 2, 2)])
    scaled = min_max(maps)
    assert torch.equal(scaled[0], torch.ones(1, 2, 2))
    assert scaled[1].flatten().tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert torch.equal(min_max(torch.zeros(1, 1, 2, 2)), torch.ones(1, 1, 2, 2))


def test_the_bias_identity_before_mean_pooling_is_constant(model, images):
    found = NormGrad(model, "4", identity="bias").attribute(images, 1)
    assert torch.equal(found, torch.ones_like(found))


def test_everything_is_left_as_it_was(model, images):
    model.train()
    model[2].weight.requires_grad_(False)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    NormGrad(model).attribute(images, 0)
    with pytest.raises(InputError):
        NormGrad(model, "4").attribute(images[:, :1], 0)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not model[2].weight.requires_grad
    assert model[0].weight.requires_grad
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert not any(module._forward_hooks for module in model.modules())


def test_it_works_under_no_grad_and_on_a_frozen_model(model, images):
    whole = NormGrad(model, "4").attribute(images, 0)
    model.requires_grad_(False)
    with torch.no_grad():
        assert torch.equal(NormGrad(model, "4").attribute(images, 0), whole)


def test_layers_are_named_matched_or_chosen(model, images):
    assert NormGrad(model, "[14]").layers == ["1", "4"]
    assert NormGrad(model, ["4", "input", "1"]).layers == ["input", "1", "4"]
    chosen = NormGrad(model)
    chosen.attribute(images, 0)
    assert chosen.layers == ["1", "4"], "the last of each resolution"


def test_at_the_input_it_is_the_gradient_times_the_input(model, images):
    model.eval()
    x = images.clone().requires_grad_()
    (g,) = torch.autograd.grad(model(x)[:, 1].sum(), x)
    found = NormGrad(model, "input").layer_maps(images, 1)["input"][:, 0]
    torch.testing.assert_close(found, g.norm(dim=1) * images.norm(dim=1))


def test_a_perceptron_on_images_is_explained_at_its_input():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.GELU(), nn.Linear(5, 2))
    method = NormGrad(model)
    assert method.attribute(torch.rand(2, 1, 3, 4), 0).shape == (2, 1, 3, 4)
    assert method.layers == ["input"]
    with pytest.raises(InputError, match="no places"):
        NormGrad(model, "1").attribute(torch.rand(2, 1, 3, 4), 0)


def test_a_layer_may_be_the_module_itself(model, images):
    assert NormGrad(model, model[4]).layers == ["4"]
    assert NormGrad(model, [model[4], "1", model[2]]).layers == ["1", "2", "4"]
    whole = nn.Sequential(model[:5], model[5:])
    assert NormGrad(whole, whole[0]).layers == ["0"], "a Sequential is one layer, not those in it"
    torch.testing.assert_close(
        norm_grad(whole, images, 1, whole[0]), norm_grad(model, images, 1, "4")
    )
    for layer, words in (
        (nn.ReLU(), "ReLU is not part of this model"),
        (model, "whole model"),
        (4, "names or globs"),
        ([4], "names or globs"),
    ):
        with pytest.raises(InputError, match=words):
            NormGrad(model, layer)


def test_progress_is_told_of_each_pass(model, images):
    told = []
    method = NormGrad(model, "4")
    for call in (method.attribute, method.layer_maps):
        call(images, 0, internal_batch_size=4, progress=lambda *one: told.append(one))
    assert told == 2 * [("maps", 4, 6), ("maps", 6, 6)]


@pytest.mark.parametrize("as_tuple", [False, True], ids=["tensor", "tuple"])
@pytest.mark.parametrize(
    ("target", "classes"),
    [
        (2, [2] * 6),
        (torch.tensor(2), [2] * 6),
        (torch.tensor([2]), [2] * 6),
        ((2,), [2] * 6),
        ([0, 1, 2, 2, 1, 0], [0, 1, 2, 2, 1, 0]),
        (torch.tensor([0, 1, 2, 2, 1, 0]), [0, 1, 2, 2, 1, 0]),
        ([(0,), (1,), (2,), (2,), (1,), (0,)], [0, 1, 2, 2, 1, 0]),
    ],
    ids=["int", "scalar", "tensor of one", "tuple", "list", "tensor", "list of tuples"],
)
def test_targets_and_inputs_are_those_of_captum(model, images, target, classes, as_tuple):
    method = NormGrad(model, model[4])
    inputs = (images,) if as_tuple else images
    found = method.attribute(inputs, target, None, internal_batch_size=4)
    each = [method.attribute(images[i : i + 1], classes[i]) for i in range(6)]
    torch.testing.assert_close(found, torch.cat(each))


def test_arguments_are_named_and_ordered_as_captums():
    named = inspect.signature(NormGrad.attribute).parameters
    assert list(named)[1:4] == ["inputs", "target", "additional_forward_args"]
    assert named["target"].default is named["additional_forward_args"].default is None
    assert named["internal_batch_size"].default is None
    assert list(inspect.signature(NormGrad).parameters)[:2] == ["model", "layers"]


def test_captums_way_of_calling_it(model, images):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x, scale, shift=0.0):
            return self.inner(x * scale[:, None, None, None]) + shift

    scale = torch.linspace(1, 2, 6).double()
    wrapped = NormGrad(Scaled(), "inner.4")
    target = [0, 1, 2, 0, 1, 2]
    plain = NormGrad(model, "4").attribute(images * scale[:, None, None, None], target)
    found = wrapped.attribute(images, target=target, additional_forward_args=scale)
    torch.testing.assert_close(found, plain)
    cut = wrapped.attribute(
        images, target=target, additional_forward_args=(scale, 3.0), internal_batch_size=4
    )
    torch.testing.assert_close(cut, plain)
    as_tuple = wrapped.attribute((images, scale), target=torch.tensor(target))
    torch.testing.assert_close(as_tuple, plain)


def test_a_model_of_one_score_needs_no_target(images):
    torch.manual_seed(0)
    layers = nn.Conv2d(2, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1)
    model = nn.Sequential(*layers).double()
    one = NormGrad(model, "1").attribute(images)
    torch.testing.assert_close(NormGrad(model, "1").attribute(images, 0), one)


def test_tokens_make_the_grid_of_the_image():
    tokens = torch.arange(2 * 7 * 3.0).view(2, 7, 3)
    grid = to_grid(tokens, (16, 24), "layer")
    assert grid.shape == (2, 3, 2, 3)
    assert torch.equal(grid[0, :, 0, 0], tokens[0, 1]), "the first token stands for no place"
    assert to_grid(tokens, None, "layer").shape == (2, 3, 1, 7)
    last = to_grid(torch.zeros(2, 5, 4, 3), (10, 8), "layer", channels_last=True)
    assert last.shape == (2, 3, 5, 4)
    with pytest.raises(InputError, match="5 tokens"):
        to_grid(torch.zeros(1, 5, 3), (64, 128 * 7), "layer")


@pytest.fixture(scope="module")
def vit():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=12,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=16,
        patch_size=4,
        num_labels=3,
    )
    return transformers.ViTForImageClassification(config)


def test_a_vision_transformer_is_explained_on_its_tokens(vit):
    images = torch.rand(2, 3, 16, 16)
    method = NormGrad(vit)
    found = method.attribute(images, 1)
    assert found.shape == (2, 1, 16, 16)
    assert len(method.layers) == 2, "blocks, without the last"
    assert float(found.max()) > 0
    by_name = NormGrad(vit, method.layers).attribute({"pixel_values": images}, 1)
    torch.testing.assert_close(by_name, found)
    block = method.layers[0]
    raw = NormGrad(vit, block).layer_maps(images, 1)[block]
    vit.eval()
    kept = {}
    handle = vit.get_submodule(block).register_forward_hook(
        lambda _m, _i, o: kept.update(x=o if isinstance(o, torch.Tensor) else o[0])
    )
    score = vit(images).logits[:, 1].sum()
    handle.remove()
    (g,) = torch.autograd.grad(score, kept["x"])
    expected = (g.norm(dim=2) * kept["x"].norm(dim=2))[:, 1:].view(2, 1, 4, 4)
    torch.testing.assert_close(raw, expected)
    dense = [name for name, m in vit.named_modules() if isinstance(m, nn.Linear) and "0" in name]
    own_weight = NormGrad(vit, dense[-1], identity="own").attribute(images, 1)
    assert own_weight.shape == (2, 1, 16, 16)


def test_a_text_model_is_explained_token_by_token(bert):
    batch = {
        "input_ids": torch.randint(20, (2, 5)),
        "attention_mask": torch.tensor([[1] * 5, [1, 1, 1, 0, 0]]),
    }
    found = NormGrad(bert, "bert.embeddings").attribute(batch, 1)
    assert found.shape == (2, 5)
    assert found[1, 3:].tolist() == [0, 0]
    assert float(found.max()) == 1
    with pytest.raises(InputError, match="name a layer"):
        NormGrad(bert, "input").attribute(batch, 1)


def test_names_that_are_not_known_get_the_nearest(model):
    with pytest.raises(InputError, match="unknown layer"):
        NormGrad(model, "layer9")
    named = nn.Sequential()
    named.add_module("features", nn.Conv2d(1, 1, 1))
    with pytest.raises(InputError, match="did you mean 'features'"):
        NormGrad(named, "feature")
    with pytest.raises(InputError, match="did you mean 'conv1x1'"):
        NormGrad(model, "1", identity="conv1")
    with pytest.raises(InputError, match="odd square"):
        NormGrad(model, "1", identity="conv2x2")
    with pytest.raises(InputError, match="did you mean 'filter_norm'"):
        NormGrad(model, "1", aggregate="filternorm")
    with pytest.raises(InputError, match="did you mean 'product'"):
        NormGrad(model, "1", combine="products")
    with pytest.raises(InputError, match="did you mean 'grad-cam'"):
        NormGrad.of("gradcam", model)
    with pytest.raises(InputError, match="each of the 2 layers"):
        NormGrad(model, ["1", "4"], combine="sum", weights=[1.0])
    with pytest.raises(InputError, match="no weights"):
        combine([torch.ones(1)], "product", "linear")
    with pytest.raises(InputError, match="empty"):
        NormGrad(model, [])


def test_options_of_wrong_types_are_refused(model, images):
    for options, words in (
        ({"identity": 3}, "unknown identity"),
        ({"aggregate": []}, "unknown aggregate"),
        ({"combine": []}, "unknown combination"),
        ({"combine": "sum", "weights": None}, "weights"),
        ({"combine": "sum", "weights": ["a"]}, "weights"),
        ({"pixel_range": 3}, "the least and the largest"),
        ({"pixel_range": (1, 0)}, "the least and the largest"),
        ({"pixel_range": "ab"}, "pixel_range"),
    ):
        with pytest.raises(InputError, match=words):
            NormGrad(model, "1", **options)
    with pytest.raises(InputError, match="the model is 'net'"):
        NormGrad("net")
    with pytest.raises(InputError, match="unknown saliency method"):
        NormGrad.of([], model)
    # Where layers are chosen, the model is run before it is recorded.
    for chosen in (None, "4"):
        with pytest.raises(InputError, match="cannot take inputs of the shape"):
            NormGrad(model, chosen).attribute(images[:, :1], 0)
        with pytest.raises(InputError, match=r"cannot take inputs.*what its forward takes"):
            NormGrad(model, chosen).attribute(images, 0, additional_forward_args=3)
        with pytest.raises(InputError, match="type that it was trained on"):
            NormGrad(model, chosen).attribute(images.float(), 0)


def test_images_that_cannot_be_are_refused(model, images):
    method = NormGrad(model, "4")
    with pytest.raises(InputError, match=r"shape \(6, 3, 8, 8\).*channels"):
        method.attribute(torch.zeros(6, 3, 8, 8).double(), 0)
    with pytest.raises(InputError, match=r"image\[None\]"):
        method.attribute(images[0], 0)
    with pytest.raises(InputError, match="uint8"):
        method.attribute(torch.zeros(6, 2, 8, 8, dtype=torch.uint8), 0)
    with pytest.raises(InputError, match="255"):
        method.attribute(images.abs() * 255, 0)
    assert NormGrad(model, "4", pixel_range=None).attribute(images.abs() * 255, 0).isfinite().all()
    with pytest.raises(InputError, match="not finite"):
        method.attribute(images * torch.nan, 0)
    with pytest.raises(InputError, match="no inputs"):
        method.attribute(images[:0], 0)
    with pytest.raises(InputError, match="give a tensor"):
        method.attribute("cat.png", 0)


def test_classes_that_cannot_be_are_refused(model, images):
    method = NormGrad(model, "4")
    for target, words in (
        (3, "classes 0 to 2"),
        (-1, "classes 0 to 2"),
        ([0, 1], "each of the 6"),
        (0.5, "whole number"),
        ("cat", "whole number"),
        (None, "target="),
    ):
        with pytest.raises(InputError, match=words):
            method.attribute(images, target)


def test_layers_that_say_nothing_are_refused(images):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 3, padding=1)
            self.act = nn.ReLU()
            self.unused, self.aside = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)
            self.head = nn.Linear(2, 3)

        def forward(self, x):
            x = self.act(self.conv(self.act(x)))
            self.aside(x)
            return self.head(x.mean((2, 3)))

    model = Odd().double()
    for layer, words in (
        ("act", "more than once"),
        ("unused", "is not called"),
        ("aside", "does not depend"),
        ("head", "no places"),
    ):
        with pytest.raises(InputError, match=words):
            NormGrad(model, layer).attribute(images, 0)
    with pytest.raises(InputError, match="inference_mode"), torch.inference_mode():
        NormGrad(model, "conv").attribute(images, 0)


def test_maps_are_drawn_over_their_images(model, images):
    pytest.importorskip("matplotlib")
    import matplotlib

    matplotlib.use("agg")
    maps = norm_grad(model, images, 0, ["1", "4"])
    pixels = overlay(images[0], maps[0])
    assert pixels.shape == (8, 8, 3)
    plain = overlay(images[0], torch.zeros(1, 8, 8))
    assert (plain[..., 0] == plain[..., 1]).all(), "where the map is 0, the image in grey"
    figure = saliency_plot(images[:2], {"a": maps[:2], "b": maps[:2]}, ["one", "two"])
    assert len(figure.axes) == 6
    assert [ax.get_title() for ax in figure.axes[:3]] == ["image", "a", "b"]
    with pytest.raises(InputError, match="one size"):
        overlay(images[0], maps[0][:, :4])
    with pytest.raises(InputError, match="6 maps for 2 images"):
        saliency_plot(images[:2], maps)
    with pytest.raises(InputError, match="no map"):
        saliency_plot(images[:0], maps[:0])
    for other in (["a"], 5, {"a": 5}):
        with pytest.raises(InputError, match="must be a tensor or an array"):
            saliency_plot(images, other)
    with pytest.raises(InputError, match=r"\(h, w\) or \(c, h, w\)"):
        overlay(images, maps)


def test_a_product_is_shown_as_the_geometric_mean(images):
    pytest.importorskip("matplotlib")
    import matplotlib

    matplotlib.use("agg")
    grey = torch.zeros(4, 4)
    one, other = (torch.rand(4, 4, generator=torch.Generator().manual_seed(i)) for i in (1, 2))
    mean = (one * other).sqrt()
    assert (overlay(grey, one * other, power=0.5) == overlay(grey, mean)).all()
    assert (overlay(grey, one * other) != overlay(grey, mean)).any()
    maps = torch.rand(2, 1, 8, 8)
    figure = saliency_plot(images[:2].numpy(), {"a": maps, "b": maps.numpy()}, power={"b": 1 / 3})
    assert [ax.get_title() for ax in figure.axes[1:3]] == ["a", "b, power 0.33"]
    for power in (0, -1, "a"):
        with pytest.raises(InputError, match="power is"):
            overlay(grey, one, power=power)
