"""Masks over frozen weights: their gradient, which weights, and their file."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize

from flatminima import MaskTuning, apply_mask
from flatminima.errors import InputError
from flatminima.reparam import pack_mask, unpack_mask
from flatminima.reparam.mask_file import FORMAT


def network():
    torch.manual_seed(0)
    layers = nn.Linear(6, 5), nn.BatchNorm1d(5), nn.GELU(), nn.Dropout(0.5), nn.Linear(5, 3)
    return nn.Sequential(*layers)


def random_masks(tuning, seed=0, share=0.3):
    generator = torch.Generator().manual_seed(seed)
    for scores in tuning.scores.values():
        off = torch.rand(scores.shape, generator=generator) < share
        scores.data[off] = 0.0
    return tuning


def test_the_masked_model_begins_as_the_base_to_the_bit_and_only_scores_are_free():
    model, x = network().eval(), torch.randn(8, 6)
    before = model(x)
    tuning = MaskTuning(model)
    assert torch.equal(model(x), before)
    free = {id(p) for p in model.parameters() if p.requires_grad}
    assert free == {id(p) for p in tuning.scores.values()}
    assert tuning.scores.keys() == {"0.weight", "4.weight"}
    assert tuning.share_masked() == 0


def test_the_gradient_of_a_score_is_the_weight_times_that_of_the_masked_weight():
    model = network().double().eval()
    tuning = random_masks(MaskTuning(model))
    x, y = torch.randn(8, 6, dtype=torch.float64), torch.randint(3, (8,))
    nn.functional.cross_entropy(model(x), y).backward()
    plain = network().double().eval()
    for name, scores in tuning.scores.items():
        plain.get_parameter(name).data.mul_(scores > 0.005)
    nn.functional.cross_entropy(plain(x), y).backward()
    base = network().double()
    for name, scores in tuning.scores.items():
        weight = base.get_parameter(name).detach()
        expected = (weight * plain.get_parameter(name).grad).float()
        torch.testing.assert_close(scores.grad, expected, rtol=1e-6, atol=1e-9)
        assert scores.grad[scores <= 0.005].abs().max() > 0  # so a weight can come back


def test_the_threshold_itself_is_off():
    layer = nn.Linear(2, 1)
    weight = layer.weight.detach().clone()
    tuning = MaskTuning(layer, init=0.5, threshold=0.25)
    tuning.scores["weight"].data[0, 0] = 0.25
    assert torch.equal(layer.weight, weight * torch.tensor([[0.0, 1.0]]))
    assert tuning.share_masked() == 0.5


def test_the_norm_is_the_sum_of_those_of_the_layers():
    tuning = random_masks(MaskTuning(network()))
    expected = sum(scores.square().sum().sqrt() for scores in tuning.scores.values())
    torch.testing.assert_close(tuning.norm(), expected)


def test_without_masks_it_is_the_base_and_comes_back():
    model, x = network(), torch.randn(8, 6)
    base = copy.deepcopy(model).eval()(x)
    tuning = random_masks(MaskTuning(model))
    model.train()
    model[2].eval()
    with tuning.without():
        found = model(x)
    assert torch.equal(found, base)
    assert not found.requires_grad
    with pytest.raises(RuntimeError), tuning.without():
        model(x[:, :2])
    assert model.training
    assert model[4].training
    assert not model[2].training
    assert not torch.equal(model.eval()(x), base)


def test_batch_norm_keeps_the_statistics_of_the_base():
    model = network()
    before = {name: b.clone() for name, b in model.named_buffers()}
    tuning = MaskTuning(model)
    model.train()
    assert model(torch.randn(8, 6)).requires_grad
    assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())
    tuning.bake()
    model.train()(torch.randn(8, 6))
    assert not torch.equal(model[1].running_mean, before["1.running_mean"])


def test_baked_it_is_an_ordinary_model_with_the_same_outputs():
    model, x = network(), torch.randn(8, 6)
    tuning = random_masks(MaskTuning(model))
    copied = copy.deepcopy(model)
    before = model.eval()(x)
    assert tuning.bake() is model
    assert torch.equal(model(x), before)
    assert torch.equal(copied.eval()(x), before)
    assert model.state_dict().keys() == network().state_dict().keys()
    assert [type(m) for m in model] == [type(m) for m in network()]
    assert all(p.requires_grad for p in model.parameters())


def test_half_precision_weights_have_float32_scores():
    layer = nn.Linear(8, 8).to(torch.bfloat16)
    before = layer.weight.detach().clone()
    tuning = MaskTuning(layer)
    assert tuning.scores["weight"].dtype == torch.float32
    assert layer.weight.dtype == torch.bfloat16
    assert torch.equal(layer.weight, before)
    layer(torch.randn(2, 8, dtype=torch.bfloat16)).sum().backward()
    assert tuning.scores["weight"].grad.dtype == torch.float32


def attentive():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    return nn.Sequential(nn.Conv2d(1, 8, 2, stride=2), nn.Flatten(2), layer, nn.Linear(8, 2))


def test_where_there_is_attention_it_takes_its_projections_and_the_convolution():
    tuning = MaskTuning(attentive())
    found = {"0.weight", "2.self_attn.in_proj_weight", "2.self_attn.out_proj.weight"}
    assert tuning.scores.keys() == found


def test_masked_attention_computes_what_attention_of_masked_weights_does():
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    x = torch.randn(3, 5, 8)
    tuning = random_masks(MaskTuning(model))
    for training in (True, False):
        model.train(training)
        before = model(x)
        tuning_copy = copy.deepcopy(tuning)
        baked = tuning_copy.bake().train(training)
        torch.testing.assert_close(baked(x), before)
    model.train()(x).square().sum().backward()
    assert all(s.grad.abs().max() > 0 for s in tuning.scores.values())


def test_the_names_of_transformers_are_known():
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = transformers.BertConfig(vocab_size=20, intermediate_size=16, **small)
    tuning = MaskTuning(transformers.BertForSequenceClassification(bert))
    assert sorted(name.removeprefix("bert.encoder.layer.0.") for name in tuning.scores) == [
        "attention.output.dense.weight",
        "attention.self.key.weight",
        "attention.self.query.weight",
        "attention.self.value.weight",
    ]
    vit = transformers.ViTConfig(intermediate_size=16, image_size=8, patch_size=4, **small)
    names = MaskTuning(transformers.ViTForImageClassification(vit)).scores.keys()
    assert len(names) == 5
    assert sum("patch_embeddings" in name for name in names) == 1


def test_targets_are_patterns_of_names_or_of_their_ends():
    assert MaskTuning(attentive(), "linear1, *.linear2").scores.keys() == {
        "2.linear1.weight",
        "2.linear2.weight",
    }
    assert MaskTuning(attentive(), ["in_proj_weight"]).scores.keys() == {
        "2.self_attn.in_proj_weight"
    }
    with pytest.raises(InputError, match=r"no weight is called 'query': there are .*linear1"):
        MaskTuning(attentive(), "query")


def test_weights_that_cannot_have_a_mask_are_refused():
    model = nn.ModuleList([nn.Linear(3, 3), nn.Embedding(3, 3)])
    model[0].weight = model[1].weight
    with pytest.raises(InputError, match="weight of another module too"):
        MaskTuning(model, "0")
    layer = nn.Linear(3, 3)
    MaskTuning(layer)
    with pytest.raises(InputError, match="parametrized already"):
        MaskTuning(layer)
    with pytest.raises(InputError, match="no linear or convolutional layer"):
        MaskTuning(nn.LayerNorm(3))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"init": 0.005}, "init is 0.005, not above the threshold 0.005"),
        ({"init": float("nan")}, "init is nan"),
        ({"threshold": "low"}, "threshold is 'low'"),
    ],
)
def test_scores_that_cannot_begin_are_refused(given, words):
    model = network()
    with pytest.raises(InputError, match=words):
        MaskTuning(model, **given)
    assert not any(parametrize.is_parametrized(m) for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 5), max_size=3), st.integers(0, 100))
def test_masks_come_back_from_their_bits(shape, seed):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    bits = pack_mask(mask)
    assert bits.numel() == -(-mask.numel() // 8)
    assert torch.equal(unpack_mask(bits, shape), mask)


def test_bits_of_another_shape_are_refused():
    bits = pack_mask(torch.ones(9, dtype=torch.bool))
    with pytest.raises(InputError, match=r"no mask of the shape \(17,\)"):
        unpack_mask(bits, (17,))
    with pytest.raises(InputError, match=r"must be of bool, not torch\.float32"):
        pack_mask(torch.ones(9))


@pytest.fixture
def file(tmp_path):
    tuning = random_masks(MaskTuning(network()))
    tuning.save(tmp_path / "mask.safetensors")
    return tmp_path / "mask.safetensors"


def test_the_file_makes_the_masked_model_of_the_base(file):
    x = torch.randn(8, 6)
    masked = random_masks(MaskTuning(network())).model.eval()
    model = network().eval()
    assert apply_mask(model, file) is model
    assert torch.equal(model(x), masked(x))
    assert not any(parametrize.is_parametrized(m) for m in model.modules())


def test_the_file_holds_a_bit_for_each_weight(tmp_path):
    tuning = random_masks(MaskTuning(nn.Linear(512, 256)))
    tuning.save(tmp_path / "mask.safetensors")
    size = (tmp_path / "mask.safetensors").stat().st_size
    assert 512 * 256 // 8 <= size <= 512 * 256 // 8 + 500


def test_masks_of_another_model_are_refused_and_the_model_is_left_as_it_was(file):
    changed = network()
    with torch.no_grad():
        changed[4].weight[0, 0] += 1e-3
    before = copy.deepcopy(changed)
    with pytest.raises(InputError, match=r"of another model: .* with other values"):
        apply_mask(changed, file)
    for p, q in zip(changed.parameters(), before.parameters(), strict=True):
        assert torch.equal(p, q)
    with pytest.raises(InputError, match=r"has no weight '0\.weight'"):
        apply_mask(nn.Linear(6, 5), file)
    with pytest.raises(InputError, match=r"of the shape \(5, 7\), not \(5, 6\)"):
        apply_mask(nn.Sequential(nn.Linear(7, 5)), file)
    with pytest.raises(InputError, match=r"in torch\.float32, and here it is of torch\.bfloat16"):
        apply_mask(network().to(torch.bfloat16), file)
    apply_mask(twice := network(), file)
    with pytest.raises(InputError, match="other values"):
        apply_mask(twice, file)


def test_what_is_no_mask_file_is_refused(tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(InputError, match="there is no mask file"):
        apply_mask(network(), tmp_path / "none")
    (tmp_path / "text").write_text("{}")
    with pytest.raises(InputError, match="cannot read the mask file"):
        apply_mask(network(), tmp_path / "text")
    save_file({"a": torch.ones(1)}, tmp_path / "other")
    with pytest.raises(InputError, match="without masks"):
        apply_mask(network(), tmp_path / "other")
    for said in ("{half", "{}", "[]", '{"shapes": {"a": [1]}, "dtypes": {}, "fingerprint": ""}'):
        bits = {"a": torch.ones(1, dtype=torch.uint8)}
        save_file(bits, tmp_path / "damaged", {FORMAT: said})
        with pytest.raises(InputError, match="it is damaged"):
            apply_mask(network(), tmp_path / "damaged")
