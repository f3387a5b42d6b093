"""Runs with `--optimizer gns`."""

import itertools
import json
import math

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from flatminima.errors import InputError
from flatminima.measure import GaussNewton, Shift
from flatminima.objectives import Supervised
from flatminima.optim import GNS
from flatminima.perturb import NSO, Plain
from flatminima.training import loop
from flatminima.training.checks import for_methods
from flatminima.training.data.encode import encode
from flatminima.training.loader import loader
from flatminima.training.methods import specialize
from flatminima.training.prepared import prepare
from flatminima.training.recipe import Recipe
from flatminima.training.run import finetune, resume

SMALL = {"epochs": 4, "measure": False, "pretrain": False, "optimizer": "gns", "batch_size": 100}


def recipe(**values):
    return Recipe.from_flat({**SMALL, **values})


def weights(run):
    return load_file(run / "checkpoints/last/model.safetensors")


def steps(run):
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if "gns" in record]


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_a_run_takes_the_steps_of_gns_on_whole_batches(tmp_path, decay):
    asked = recipe(epochs=3, batch_size=200, weight_decay=decay)
    results = finetune(asked, tmp_path / "a")
    prepared = prepare(asked)
    model, objective = prepared.built.model.eval(), Supervised()
    data = encode(prepared.data.train, prepared.data, prepared.built.encoding)
    (batch,) = loader(data, len(prepared.data.train))
    matrices = [p for p in model.parameters() if p.dim() > 1]
    shift = torch.cat([torch.full((p.numel(),), decay * (p.dim() > 1)) for p in model.parameters()])
    optimizer = GNS(
        model.named_parameters(), lambda: Shift(GaussNewton(model, objective, [batch]), shift)
    )

    def closure():
        optimizer.zero_grad()
        loss = objective(model, batch) + decay / 2 * sum(p.square().sum() for p in matrices)
        loss.backward()
        return loss

    for record in steps(tmp_path / "a"):
        assert record["loss"] == pytest.approx(objective(model, batch).item(), rel=1e-4)
        optimizer.step(closure)
        assert record["gns"]["trials"] == optimizer.last.trials
    # The samples of a batch come in another order.
    for name, found in weights(tmp_path / "a").items():
        torch.testing.assert_close(found, model.state_dict()[name], rtol=1e-3, atol=1e-5)
    spent = [(r["gns"]["trials"], r["gns"]["products"]) for r in steps(tmp_path / "a")]
    assert results["metrics"]["gradients"] >= sum(2 * products for _, products in spent) + 3
    assert {record["lr"] for record in steps(tmp_path / "a")} == {1.0}


def test_the_loss_of_a_fixed_batch_never_rises(tmp_path):
    finetune(recipe(epochs=12, batch_size=200), tmp_path / "a")
    losses = [record["loss"] for record in steps(tmp_path / "a")]
    assert all(later <= before for before, later in itertools.pairwise(losses))
    assert losses[-1] < 0.5 * losses[0]


def test_a_run_resumes_bit_for_bit(tmp_path, monkeypatch):
    finetune(recipe(), tmp_path / "whole")
    real = loop.save

    def stops(run, state, name="last"):
        real(run, state, name)
        if state.step == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save", stops)
    with pytest.raises(KeyboardInterrupt):
        finetune(recipe(), tmp_path / "cut")
    monkeypatch.setattr(loop, "save", real)
    resume(tmp_path / "cut")
    cut, whole = weights(tmp_path / "cut"), weights(tmp_path / "whole")
    assert all(torch.equal(cut[name], whole[name]) for name in whole)
    assert [r["gns"] for r in steps(tmp_path / "cut")] == [
        r["gns"] for r in steps(tmp_path / "whole")
    ]


def test_its_function_is_that_of_evaluation_mode(tmp_path, monkeypatch):
    real, modes = Supervised.__call__, []

    def spy(self, model, batch):
        modes.append(any(module.training for module in model.modules()))
        return real(self, model, batch)

    monkeypatch.setattr(Supervised, "__call__", spy)
    results = finetune(recipe(model="cnn", epochs=1, keep="ema"), tmp_path / "a")
    assert len(modes) >= 4
    assert not any(modes)
    assert math.isfinite(results["metrics"]["test_loss"])


@pytest.mark.parametrize("on_nan", ["stop", "skip"])
def test_a_loss_that_is_not_finite_moves_nothing(tmp_path, monkeypatch, on_nan):
    real = Supervised.__call__

    def breaks(self, model, batch):
        loss = real(self, model, batch)
        return loss * math.nan if torch.is_grad_enabled() else loss

    monkeypatch.setattr(Supervised, "__call__", breaks)
    asked = recipe(epochs=1, on_nan=on_nan)
    if on_nan == "stop":
        with pytest.raises(loop.NonFinite, match="at step 1 the loss is nan"):
            finetune(asked, tmp_path / "a")
        return
    assert finetune(asked, tmp_path / "a")["skipped_steps"] == 2
    before = prepare(asked).built.model.state_dict()
    assert all(torch.equal(found, before[n]) for n, found in weights(tmp_path / "a").items())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"perturb": "nso"}, "--perturb nso: its steps are tried"),
        ({"lr": 0.1}, "--lr: it searches"),
        ({"max_grad_norm": 1.0}, "--max-grad-norm"),
        ({"reparam": "distance-constraint(radius=1)"}, "--reparam"),
        ({"input_noise": 0.1}, "--input-noise"),
        ({"precision": "bf16"}, "--precision bf16"),
        ({"micro_batch_size": 10}, "--micro-batch-size"),
        ({"equal": "gradients"}, "--equal gradients"),
        ({"tune": "weight_decay", "validation_fraction": 0.3}, "--tuner stn"),
        ({"objective": "mixup"}, "--objective mixup is not one criterion"),
        ({"objective": "label-smoothing"}, "take cross-entropy or squared-error"),
    ],
)
def test_what_does_not_go_with_it_is_refused(tmp_path, values, words):
    with pytest.raises(InputError, match=words):
        finetune(recipe(**values), tmp_path / "a")
    assert not (tmp_path / "a/recipe.yaml").exists()


def test_a_method_of_a_comparison_may_have_it_for_itself():
    methods = ["plain", "plain:optimizer=gns"]
    recipes = for_methods(recipe(optimizer=None), methods)
    assert specialize(recipes[methods[1]]).optimizer.optimizer == "gns"
    with pytest.raises(InputError, match="--lr: it searches"):
        for_methods(recipe(optimizer=None, lr=0.1), methods)


@pytest.mark.parametrize("kind", [torch.optim.LBFGS, None], ids=["LBFGS", "GNS"])
def test_plain_hands_its_closure_to_an_optimizer_that_calls_it_itself(kind):
    data = (torch.randn(12, 4), torch.randint(3, (12,)))
    objective, ends = Supervised(), []
    for wrapped in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(4, 3)

        def matrix(model=model):
            return GaussNewton(model, objective, [data])

        base = kind(model.parameters()) if kind else GNS(model.named_parameters(), matrix)
        optimizer = Plain(base) if wrapped else base

        def closure(model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss = objective(model, data)
            loss.backward()
            return loss

        losses = [optimizer.step(closure).item() for _ in range(3)]
        ends.append((losses, model.weight.detach()))
    assert ends[0][0] == ends[1][0]
    assert torch.equal(ends[0][1], ends[1][1])
    assert optimizer.steps == 3
    with pytest.raises(InputError, match=r"step\(closure\)"):
        optimizer.step()
    with pytest.raises(InputError, match="nothing can scale or clip"):
        Plain(base, max_grad_norm=1.0)
    with pytest.raises(InputError, match="cannot be perturbed"):
        NSO(base, sigma=0.1)
