"""peft: noise on adapters, and on the weights that they adapt."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import Trainer, default_data_collator

import flatminima
from flatminima.integrations.peft import adapted_weights
from flatminima.integrations.transformers import PerturbedTrainerMixin

from .cases import assert_same_bits, bert, sentences, state_of
from .test_transformers import arguments


class OurTrainer(PerturbedTrainerMixin, Trainer):
    pass


def lora(dropout=0.1, dtype=None):
    model = bert(dropout=dropout).to(dtype)
    return get_peft_model(
        model, LoraConfig(r=2, lora_alpha=4, target_modules=["query", "value"], task_type="SEQ_CLS")
    )


def batches():
    data = sentences()
    return [default_data_collator(data[s : s + 8]) for s in range(0, len(data), 8)]


def adapters(model, **options):
    """Noise on what is trained."""
    return flatminima.NSO(torch.optim.AdamW(model.parameters(), lr=0.01), sigma=0.05, **options)


def merged(model, sigma=0.05, **options):
    """Noise on the weights as they will be once merged."""
    base = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.requires_grad], "sigma": 0.0},
            {"params": adapted_weights(model), "perturb_frozen": True},
        ],
        lr=0.01,
    )
    return flatminima.NSO(base, sigma=sigma, **options)


WRAPS = [adapters, merged]


def train(model, optimizer, epochs=1):
    model.train()
    for _ in range(epochs):
        for batch in batches():
            for part in optimizer.passes(batch):
                model(**part).loss.backward()
            optimizer.step()
            optimizer.zero_grad()


def moves(model, optimizer):
    """Which parameters the passes moved, by name."""
    home, moved = {n: p.detach().clone() for n, p in model.named_parameters()}, set()
    for part in optimizer.passes(batches()[0]):
        moved |= {n for n, p in model.named_parameters() if not torch.equal(p, home[n])}
        model(**part).loss.backward()
    return moved


def test_by_default_only_what_is_trained_moves():
    model = lora()
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert moves(model, adapters(model)) == trained
    assert any("lora_A" in name for name in trained)


def test_perturb_frozen_moves_the_adapted_weights_and_nothing_else():
    model = lora()
    assert moves(model, merged(model)) == {
        n for n, p in model.named_parameters() if n.endswith("base_layer.weight")
    }
    assert len(adapted_weights(model)) == 4


@pytest.mark.parametrize("wrap", WRAPS)
def test_the_frozen_weights_come_back_bit_for_bit_and_the_adapters_learn(wrap):
    model = lora()
    before = state_of(model)
    train(model, wrap(model))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad


def test_noise_on_the_frozen_weights_is_noise_on_the_merged_ones():
    """The adapters' gradient with noise on W0 is that of the plain model at W0 + BA + U."""
    model = lora(dropout=0.0, dtype=torch.float64)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    batch = batches()[0]
    optimizer = merged(model)
    plain = copy.deepcopy(model).merge_and_unload()
    layers = [name for name, _ in plain.named_modules() if name.endswith(("query", "value"))]
    home = {name: plain.get_submodule(name).weight.detach().clone() for name in layers}
    bare = [weight.detach().clone() for weight in adapted_weights(model)]
    total = {name: torch.zeros_like(weight) for name, weight in home.items()}
    for part in optimizer.passes(batch):
        loss = model(**part).loss
        loss.backward()
        for name, weight, before in zip(layers, adapted_weights(model), bare, strict=True):
            with torch.no_grad():
                plain.get_submodule(name).weight.copy_(home[name] + weight - before)
        plain.requires_grad_(True)
        plain.zero_grad()
        twin = plain(**part).loss
        torch.testing.assert_close(loss, twin, rtol=1e-12, atol=1e-12)
        twin.backward()
        for name in layers:
            total[name] += plain.get_submodule(name).weight.grad / 2
    for name in layers:  # dL/dA = scaling B' dL/dW
        layer = model.base_model.model.get_submodule(name)
        b = layer.lora_B["default"].weight
        expected = layer.scaling["default"] * b.T @ total[name]
        torch.testing.assert_close(
            layer.lora_A["default"].weight.grad, expected, rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize("wrap", WRAPS)
def test_merged_after_training_the_outputs_are_the_same(wrap):
    model = lora()
    train(model, wrap(model))
    model.eval()
    batch = batches()[0]
    with torch.no_grad():
        before = model(**batch).logits
        after = model.merge_and_unload()(**batch).logits
    torch.testing.assert_close(before, after, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("wrap", WRAPS)
def test_saved_with_peft_and_resumed_it_goes_on_bit_for_bit(tmp_path, wrap):
    model = lora()
    optimizer = wrap(model)
    train(model, optimizer)
    model.save_pretrained(tmp_path)
    torch.save([optimizer.state_dict(), torch.get_rng_state()], tmp_path / "rest.pt")
    train(model, optimizer)

    resumed = PeftModel.from_pretrained(bert(dropout=0.1), tmp_path, is_trainable=True)
    again = wrap(resumed, seed=7)
    state, random_state = torch.load(tmp_path / "rest.pt", weights_only=True)
    again.load_state_dict(state)
    torch.set_rng_state(random_state)
    train(resumed, again)
    assert_same_bits(state_of(resumed), state_of(model))


def test_strength_0_is_the_base_optimizer_bit_for_bit():
    ours, theirs = lora(), lora()
    torch.manual_seed(1)
    train(ours, merged(ours, sigma=0.0))
    torch.manual_seed(1)
    base = torch.optim.AdamW([p for p in theirs.parameters() if p.requires_grad], lr=0.01)
    train(theirs, flatminima.Plain(base))
    assert_same_bits(state_of(ours), state_of(theirs))


def test_the_trainer_takes_the_merged_weights_too(tmp_path):
    def run(model, folder, resume=None, **options):
        def wrap(base):
            optimizer = flatminima.NSO(base, sigma=0.0)
            optimizer.add_param_group(
                {"params": adapted_weights(model), "sigma": 0.05, "perturb_frozen": True}
            )
            return optimizer

        trainer = OurTrainer(
            model=model, args=arguments(folder, **options), train_dataset=sentences(), perturb=wrap
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    options = {"save_strategy": "steps", "save_steps": 3}
    whole = run(lora(), tmp_path, **options)
    before = state_of(lora())
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad
    resumed = run(lora(), tmp_path, resume=str(tmp_path / "checkpoint-3"), **options)
    assert_same_bits(state_of(resumed.model), state_of(whole.model))


def test_a_state_of_the_base_optimizer_leaves_the_frozen_weights_to_be_moved():
    model = lora()
    trained = [p for p in model.parameters() if p.requires_grad]
    bare = torch.optim.AdamW([{"params": trained}, {"params": adapted_weights(model)}], lr=0.01)
    optimizer = merged(model)
    optimizer.load_state_dict(bare.state_dict())
    assert [group["sigma"] for group in optimizer.param_groups] == [0.0, 0.05]
    assert len(moves(model, optimizer)) == 4


@pytest.mark.parametrize("name", ["sam", "gsam", "looksam", "usam"])
def test_methods_that_climb_along_gradients_refuse_frozen_weights(name):
    model = lora()
    group = {"params": adapted_weights(model), "perturb_frozen": True}
    trained = {"params": [p for p in model.parameters() if p.requires_grad]}
    with pytest.raises(flatminima.InputError, match=f"'{name}' moves along gradients"):
        flatminima.make(name, torch.optim.AdamW([trained, group]), rho=0.1)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.float8_e4m3fn])
def test_quantized_weights_are_refused(dtype):
    trained = torch.nn.Parameter(torch.ones(2))
    packed = torch.nn.Parameter(torch.ones(2).to(dtype), requires_grad=False)
    optimizer = flatminima.NSO(torch.optim.AdamW([trained]), sigma=0.1)
    with pytest.raises(flatminima.InputError, match="quantized weights have no room for noise"):
        optimizer.add_param_group({"params": [packed], "perturb_frozen": True})


def test_a_model_without_adapters_is_named():
    with pytest.raises(flatminima.InputError, match="this model has no adapters"):
        adapted_weights(bert())


def test_an_adapter_of_something_else_than_a_weight_is_named():
    model = lora()
    del next(m for n, m in model.named_modules() if n.endswith("query")).base_layer.weight
    with pytest.raises(flatminima.InputError, match="an adapted Linear has no single weight"):
        adapted_weights(model)
