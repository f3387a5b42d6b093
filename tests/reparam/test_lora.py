"""Low-rank adapters as a reparametrization: in a plain loop, and in runs."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from flatminima.errors import InputError
from flatminima.reparam import LoRA, make_reparam
from flatminima.training.measuring import measure_target, open_target
from flatminima.training.recipe import Recipe
from flatminima.training.run import finetune


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 4), nn.GELU(), nn.Linear(4, 3))


def trained(model):
    x, y = torch.randn(16, 6), torch.randint(3, (16,))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return x


def test_the_model_begins_as_it_was_and_only_adapters_and_head_are_free():
    model, x = network(), torch.randn(8, 6)
    before = model(x)
    LoRA(model, rank=2)
    assert torch.equal(model(x), before)
    free = {name for name, p in model.named_parameters() if p.requires_grad}
    assert free == {
        f"{layer}.lora_{side}.default.weight" for layer in ("0", "2") for side in "AB"
    } | {"4.weight", "4.bias"}
    LoRA(frozen := network(), rank=2, head=False)
    assert not any(p.requires_grad for p in frozen[4].parameters())


def test_baked_it_is_an_ordinary_model_with_the_same_outputs():
    model = network()
    free = LoRA(model, rank=2, alpha=4)
    x = trained(model)
    before = model(x)
    free.bake(model)
    torch.testing.assert_close(model(x), before)
    assert [type(m).__name__ for m in model] == [type(m).__name__ for m in network()]
    assert model.state_dict().keys() == network().state_dict().keys()
    assert all(p.requires_grad for p in model.parameters())


def test_targets_are_ends_of_names():
    model = network()
    LoRA(model, rank=1, targets="2", head=False)
    free = {name for name, p in model.named_parameters() if p.requires_grad}
    assert free == {"2.lora_A.default.weight", "2.lora_B.default.weight"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rank": 0}, "rank is 0: give a whole number of 1 or above"),
        ({"rank": 2, "alpha": -1.0}, "alpha is -1.0"),
        ({"rank": 2, "dropout": 1.0}, "dropout is 1.0"),
        ({"rank": 2, "targets": "query"}, "no layer is called 'query'"),
        ({}, "'lora' needs rank"),
    ],
)
def test_bad_options_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        make_reparam("lora", network(), **given)


def test_a_model_with_nothing_but_a_head_is_refused():
    with pytest.raises(InputError, match="no layer but its head"):
        LoRA(nn.Sequential(nn.Flatten(), nn.Linear(3, 2)), rank=1)


@pytest.mark.parametrize("targets", ["0,1", "0,3"])
def test_layers_without_adapters_are_refused_and_the_model_is_as_it_was(targets):
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Sequential())
    with pytest.raises(InputError, match="which takes no adapters: name layers"):
        LoRA(model, rank=2, targets=targets)
    assert [type(m).__name__ for m in model] == ["Linear", "BatchNorm1d", "Linear", "Sequential"]
    assert all(p.requires_grad for p in model.parameters())


SMALL = {"epochs": 3, "train_size": 60, "reparam": "lora(rank=2)", "perturb": "glad", "probes": 5}
SMALL |= {"draws": 5, "measure_samples": 60}


def test_a_run_leaves_its_adapters_to_go_on_from_and_the_ordinary_model(tmp_path):
    results = finetune(Recipe.from_flat(SMALL), tmp_path / "a", say=lambda text: None)
    last = load_file(tmp_path / "a/checkpoints/last/model.safetensors")
    baked = load_file(tmp_path / "a/checkpoints/baked/model.safetensors")
    assert any("lora_A" in name for name in last)
    assert not any("lora" in name for name in baked)
    opened = open_target(str(tmp_path / "a"), {}, say=lambda text: None)
    found = opened.prepared.built.model.state_dict()
    assert found.keys() == baked.keys()
    for name, tensor in baked.items():
        torch.testing.assert_close(found[name], tensor)
    report, _ = measure_target(str(tmp_path / "a"), {}, say=lambda text: None)
    assert report.trace.value == pytest.approx(results["metrics"]["hessian_trace"], rel=1e-4)
    again, _ = measure_target(str(tmp_path / "a/checkpoints/baked"), {}, say=lambda text: None)
    assert again.trace.value == pytest.approx(report.trace.value, rel=1e-4)


def test_resumed_it_ends_as_if_never_stopped(whole_and_cut):
    whole_and_cut(**{**SMALL, "measure": False})
