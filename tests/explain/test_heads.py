"""The tilting of heads on their own features, and local distances."""

import numpy as np
import pytest
import torch
from torch import nn

from flatminima.errors import InputError
from flatminima.explain import local_distance, read_head, signed_distance, tilt_head, tilt_pairs


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3)
    )


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(20, 6, generator=generator), torch.randint(3, (20,), generator=generator))
        for _ in range(3)
    ]


def test_it_is_the_tilting_of_the_last_layer_on_what_comes_into_it(model, batches):
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = tilt_head(model, batches, classes=["a", "b", "c"])
    assert all(module.training for module in model.modules())
    assert all(torch.equal(v, before[name]) for name, v in model.state_dict().items())
    model.eval()
    with torch.no_grad():
        x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
        features = model[:4](x).double().numpy()
    expected = tilt_pairs(
        model[4].weight.detach().double().numpy(),
        model[4].bias.detach().double().numpy(),
        features,
        y.numpy(),
        [0, 1, 2],
    )
    assert found.of == "4"
    assert list(found.pairs) == [("a", "b"), ("a", "c"), ("b", "c")]
    for one, other in zip(found.pairs.values(), expected.pairs.values(), strict=True):
        assert one.deviation_angle == pytest.approx(other.deviation_angle, abs=1e-6)
    accuracy = (model(x).argmax(1) == y).float().mean().item()
    assert found.accuracy == pytest.approx(accuracy)


def test_a_head_may_be_named_and_have_no_bias(batches):
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3, bias=False), nn.Softmax(1))
    with pytest.raises(InputError, match="no linear layer gives the logits"):
        tilt_head(model, batches)
    found = read_head(model, batches, "2")
    assert found.features.shape == (60, 4)
    assert np.array_equal(found.bias, np.zeros(3))


def test_a_transformers_head_is_found(bert):
    batch = {"input_ids": torch.arange(20).view(4, 5), "labels": torch.tensor([0, 1, 0, 1])}
    assert tilt_head(bert, [batch]).of == "classifier"


def test_what_is_no_head_is_refused(model, batches):
    with pytest.raises(InputError, match="unknown linear layer"):
        tilt_head(model, batches, head="9")
    with pytest.raises(InputError, match="'2' is a Tanh"):
        tilt_head(model, batches, head="2")
    with pytest.raises(InputError, match="no batch"):
        tilt_head(model, [])
    with pytest.raises(InputError, match="2 names for the 3 classes"):
        tilt_head(model, batches, classes=["a", "b"])
    with pytest.raises(InputError, match="single class"):
        tilt_head(model, [(x, 0 * y) for x, y in batches])
    on_tokens = nn.Sequential(nn.Unflatten(1, (2, 3)), nn.Linear(3, 3), nn.Flatten())
    with pytest.raises(InputError, match="not one vector a sample"):
        tilt_head(on_tokens, batches, head="1")


def test_arguments_of_wrong_types_are_refused(model, batches):
    x, y = batches[0]
    for call, words in (
        (lambda: read_head("x", batches), "the model is 'x'"),
        (lambda: read_head(model, 5), "batches is a int"),
        (lambda: tilt_head(model, {"labels": y}), "batches is a dict"),
        (lambda: tilt_head(model, [(x, y + 7)]), "the layer '4' has the classes 0 to 2"),
        (lambda: tilt_head(model, [(x, y.float())]), r"target is of torch.float32 and shape \("),
        (lambda: tilt_head(model, [(x, x)]), "the class of each"),
        (lambda: tilt_head(model, [(x, y.tolist())]), "the class of each"),
        (lambda: tilt_head(model, [(x[:, :5], y)]), "cannot take inputs"),
        (lambda: tilt_head(model, batches, classes=5), "classes is 5"),
        (lambda: tilt_head(model, batches, classes=["a", "b", "a"]), "two rows .* alike"),
        (lambda: local_distance("x", x, y), "the model is 'x'"),
        (lambda: local_distance(model, x, y + 5), "classes 0 to 2"),
        (lambda: local_distance(model, x, "cat"), "whole number"),
        (lambda: local_distance(model, x, None), "give targets"),
        (lambda: local_distance(model, x[:, :5], y), "cannot take inputs"),
    ):
        with pytest.raises(InputError, match=words):
            call()


def test_progress_is_told_of_batches_and_of_pairs(model, batches):
    told = []
    tilt_head(model, batches, progress=lambda *one: told.append(one))
    features = [("features", i, 3) for i in (1, 2, 3)]
    assert told == [*features, *[("pairs of classes", i, 3) for i in (1, 2, 3)]]
    told.clear()
    read_head(model, iter(batches), progress=lambda *one: told.append(one))
    assert told == [("features", i, i) for i in (1, 2, 3)], "as many as are known"


def test_the_local_distance_of_a_linear_model_is_the_distance(batches):
    torch.manual_seed(0)
    model = nn.Linear(6, 2).double()
    x, y = batches[0][0].double(), batches[0][1] % 2
    w = (model.weight[1] - model.weight[0]).detach().numpy()
    b = (model.bias[1] - model.bias[0]).item()
    away = signed_distance(x.numpy(), w, b) * np.where(y.numpy() == 1, 1, -1)
    np.testing.assert_allclose(local_distance(model, x, y).numpy(), away, atol=1e-12)


def test_the_local_distance_is_below_0_where_a_sample_is_wrong(model, batches):
    model.eval()
    x, y = batches[0]
    away = local_distance(model, x, y)
    assert torch.equal(away > 0, model(x).argmax(1) == y)
    moved = local_distance(model, x, y) - local_distance(model, x + 1e-3, y)
    assert moved.abs().max() > 0
    with pytest.raises(InputError, match="floating-point"):
        local_distance(model, torch.arange(6)[None], y[:1])
    with pytest.raises(InputError, match="two classes"):
        local_distance(nn.Linear(6, 1), x, 0 * y)
