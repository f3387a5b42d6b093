"""Transformers with attention, as users have them: own losses, ties, frozen parts."""

import fnmatch

import pytest
import torch
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from flatminima import Supervised
from flatminima.measure import GaussNewton, Hessian, curvature, hessian_trace

transformers = pytest.importorskip("transformers")

SIZES = {"num_attention_heads": 2, "num_hidden_layers": 1, "hidden_size": 8, "intermediate_size": 8}
TOKENS = {"vocab_size": 13, "max_position_embeddings": 8, "pad_token_id": 0}


def own_loss(model, batch):
    return model(**batch).loss


def tokens(samples=6, length=5):
    ids = torch.randint(3, 13, (samples, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[::2, -2:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def bert(attention="sdpa"):
    torch.manual_seed(0)
    config = transformers.BertConfig(**SIZES, **TOKENS, num_labels=3, attn_implementation=attention)
    model = transformers.BertForSequenceClassification(config)
    return model, {**tokens(), "labels": torch.arange(6) % 3}, own_loss


def gpt2(attention="sdpa"):
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=13, n_positions=8, n_embd=8, n_layer=1, n_head=2, n_inner=8,
        bos_token_id=1, eos_token_id=2, attn_implementation=attention,
    )  # fmt: skip
    return (
        transformers.GPT2LMHeadModel(config),
        {**tokens(), "labels": tokens()["input_ids"]},
        own_loss,
    )


def clip(attention="sdpa"):
    torch.manual_seed(0)
    text = {**SIZES, **TOKENS, "bos_token_id": 1, "eos_token_id": 12}
    vision = {**SIZES, "image_size": 8, "patch_size": 4}
    config = transformers.CLIPConfig(
        text_config=text, vision_config=vision, projection_dim=4, attn_implementation=attention
    )
    images = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    batch = {**tokens(), "pixel_values": images, "return_loss": True}
    return transformers.CLIPModel(config), batch, own_loss


MODELS = {"bert": bert, "gpt2": gpt2, "clip": clip}


def cast(batch, dtype):
    floats = {k for k, v in batch.items() if torch.is_tensor(v) and v.is_floating_point()}
    return {k: v.to(dtype) if k in floats else v for k, v in batch.items()}


def double(model, batch):
    return model.double().eval(), cast(batch, torch.float64)


def dense_times(model, batch, objective, vectors):
    """The dense way: torch.func over all parameters, one product at a time."""
    named = {name: p.detach() for name, p in model.named_parameters()}
    shapes = {name: p.shape for name, p in named.items()}

    def loss(weights):
        class Called:
            def __call__(self, **inputs):
                return functional_call(model, weights, kwargs=inputs, tie_weights=True)

        return objective(Called(), batch)

    products = []
    for column in vectors.T:
        parts = column.split([shape.numel() for shape in shapes.values()])
        v = {n: part.view(shapes[n]) for n, part in zip(shapes, parts, strict=True)}
        with sdpa_kernel(SDPBackend.MATH):
            _, product = torch.func.jvp(torch.func.grad(loss), (named,), (v,))
        products.append(torch.cat([product[n].flatten() for n in shapes]))
    return torch.stack(products, 1)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_products_are_those_of_torch_func(name, attention):
    model, batch, objective = MODELS[name](attention)
    model, batch = double(model, batch)
    n = sum(p.numel() for p in model.parameters())
    v = torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = dense_times(model, batch, objective, v)
    # GPT-2 and CLIP take some of their numbers to float32, whatever the model's type.
    exact, near = (1e-12, 1e-6) if name == "bert" else (1e-6, 0.02)
    for backend, close in (("autograd", exact), ("forward", exact), ("differences", near)):
        operator = Hessian(model, objective, [batch], backend=backend)
        assert operator.shape[0] == n
        assert (operator.matmat(v) - expected).norm() < close * expected.norm()
        assert operator.samples == 6


def test_tied_weights_count_once():
    model, batch, objective = gpt2()
    operator = Hessian(model, objective, [batch])
    assert model.lm_head.weight is model.transformer.wte.weight
    assert "transformer.wte.weight" in operator.blocks
    assert not any("lm_head" in name for name in operator.blocks)


@pytest.mark.parametrize(
    ("name", "glob"), [("bert", "*LayerNorm*"), ("gpt2", "*.ln_*"), ("clip", "*.layer_norm*")]
)
def test_frozen_parts_and_a_glob_choose_a_block(name, glob):
    model, batch, objective = MODELS[name]()
    model, batch = double(model, batch)
    whole = Hessian(model, objective, [batch])
    chosen = fnmatch.filter(whole.blocks, glob)
    where = torch.cat([torch.arange(whole.shape[0])[whole.blocks[n]] for n in chosen])
    v = torch.randn(len(where), 2, dtype=torch.float64)
    lifted = torch.zeros(whole.shape[0], 2, dtype=torch.float64)
    lifted[where] = v
    expected = whole.matmat(lifted)[where]
    atol = 1e-6 * expected.abs().max().item()
    by_name = Hessian(model, objective, [batch], params=glob)
    assert list(by_name.blocks) == chosen
    assert torch.allclose(by_name.matmat(v), expected, atol=atol)
    for name_, parameter in model.named_parameters():
        parameter.requires_grad_(name_ in chosen)
    assert torch.allclose(Hessian(model, objective, [batch]).matmat(v), expected, atol=atol)


def test_supervised_takes_mappings_with_labels_and_pairs_of_several_inputs():
    model, batch, objective = bert()
    model, batch = double(model, batch)
    v = torch.randn(sum(p.numel() for p in model.parameters()), 2, dtype=torch.float64)
    expected = Hessian(model, objective, [batch]).matmat(v)
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}

    def of_triples(model, batch):
        return model(input_ids=batch[0], attention_mask=batch[1], labels=batch[2]).loss

    triple = (batch["input_ids"], batch["attention_mask"], batch["labels"])
    for own, form in (
        (Supervised(), batch),
        (Supervised(), (inputs, batch["labels"])),
        (of_triples, triple),
        (objective, transformers.BatchEncoding(batch)),
    ):
        operator = Hessian(model, own, [form])
        assert torch.allclose(operator.matmat(v), expected, atol=1e-12)
        assert operator.samples == 6
    assert GaussNewton(model, Supervised(), [batch]).matmat(v).isfinite().all()


@pytest.mark.parametrize("name", MODELS)
def test_16_bit_models_are_measured_like_their_copy_in_32(name):
    model, batch, objective = MODELS[name]()
    model.bfloat16()
    v = torch.randn(sum(p.numel() for p in model.parameters()), 1)
    before = [p.detach().clone() for p in model.parameters()]
    coarse = cast(batch, torch.bfloat16)
    found = Hessian(model, objective, [coarse]).matmat(v)
    assert all(map(torch.equal, before, model.parameters()))
    fine = cast(coarse, torch.float32)
    expected = Hessian(model.float(), objective, [fine]).matmat(v)
    assert (found - expected).norm() < 1e-5 * expected.norm()


def test_dropout_is_off_by_default_and_named_where_it_is_on():
    model, batch, objective = bert()
    model.train()
    v = torch.ones(sum(p.numel() for p in model.parameters()), 1)
    quiet = Hessian(model, objective, [batch])
    quiet.matmat(v)
    assert quiet.remarks == ""
    loud = Hessian(model, objective, [batch], eval_mode=False)
    products = loud.matmat(v)
    assert "Dropout 'bert.embeddings.dropout'" in loud.remarks
    assert torch.equal(loud.matmat(v), products)


def test_curvature_in_one_call():
    model, batch, objective = gpt2()
    report = curvature(model, objective, [batch], probes=20)
    assert report.trace.value == pytest.approx(
        sum(e.value for e in report.layers.values()), rel=1e-4
    )
    assert report.samples == 6


@pytest.mark.slow
def test_ten_million_parameters_stay_within_memory():
    import resource

    config = transformers.BertConfig(
        vocab_size=4000, hidden_size=384, num_hidden_layers=5, num_attention_heads=6,
        intermediate_size=1536, max_position_embeddings=64, num_labels=3,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(config)
    assert sum(p.numel() for p in model.parameters()) > 10_000_000
    ids = torch.randint(4000, (8, 16))
    batches = [{"input_ids": ids, "labels": torch.arange(8) % 3}]
    trace = hessian_trace(Hessian(model, own_loss, batches), probes=4, method="hutchinson")
    assert trace.stderr > 0
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert kib < 3 * 2**20
