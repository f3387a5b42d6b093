"""Runs of every method with a memory, a hook or a reparametrization, in mixed precision."""

import json

import pytest
import torch
from safetensors.torch import load_file

from flatminima.training.recipe import Recipe
from flatminima.training.run import finetune

QUICK = {"epochs": 4, "pretrain": False, "measure": False, "batch_size": 25, "lr": 0.1}
DIGITS = {**QUICK, "train_size": 200, "lr": 0.5}
RUNS = {
    "elr": {**DIGITS, "objective": "elr(lam=1)"},
    "ps-kd": {**DIGITS, "objective": "ps-kd"},
    "conr": {**QUICK, "data": "diabetes", "objective": "conr(window=20)"},
    "hgp": {**QUICK, "data": "two-bits(samples=200)", "objective": "hgp(weight=5)"},
    "weight-compander": {**DIGITS, "reparam": "weight-compander"},
    "r-amt": {**DIGITS, "reparam": "r-amt", "optimizer": "adam", "lr": 2e-3},
    "lora": {**DIGITS, "reparam": "lora(rank=4)"},
    "glad": {**DIGITS, "reparam": "lora(rank=4)", "perturb": "glad", "rho": 0.05},
}


def ran(place, **values):
    """The mean loss of the first and of the last epoch, the score, and the weights' types."""
    results = finetune(Recipe.from_flat(values), place, say=lambda text: None)
    lines = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    losses = torch.tensor([line["loss"] for line in lines if "loss" in line])
    parts = losses.split(len(losses) // values["epochs"])
    saved = load_file(place / "checkpoints/last/model.safetensors").values()
    return parts[0].mean(), parts[-1].mean(), results["metrics"]["test_loss"], saved


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.filterwarnings("ignore:no weight was switched off")
def test_in_bfloat16_a_run_trains_as_in_single_precision(tmp_path, name):
    first, last, found, saved = ran(tmp_path / "half", **RUNS[name], precision="bf16")
    _, _, expected, _ = ran(tmp_path / "full", **RUNS[name])
    assert last < 0.97 * first
    assert found == pytest.approx(expected, rel=0.1)
    assert found != expected
    assert {tensor.dtype for tensor in saved if tensor.is_floating_point()} == {torch.float32}
