"""Runs over several domains: resumed, in pieces, on two processes, in half precision."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from flatminima.cli import main
from flatminima.errors import InputError
from flatminima.objectives import domains
from flatminima.training import loop
from flatminima.training.data.encode import encode
from flatminima.training.minimized import objective as objective_of
from flatminima.training.prepared import prepare
from flatminima.training.recipe import Recipe
from flatminima.training.run import finetune, resume

QUICK = {"data": "two-bits(samples=60)", "epochs": 3, "measure": False, "batch_size": 24}
ALL = ("erm", "hgp", "hutchinson-alignment(probes=3)", "coral", "irm", "vrex", "fishr")


def start(path, **values):
    return finetune(Recipe.from_flat({**QUICK, **values}), path, say=lambda text: None)


def weights(run):
    return load_file(run / "checkpoints/last/model.safetensors")


def same(first, second):
    one, other = weights(first), weights(second)
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("perturb", ["nso", "sam", "m-sam:m=8"])
@pytest.mark.parametrize("objective", ["hgp(weight=9)", "hutchinson-alignment(probes=2)"])
def test_it_works_with_methods_of_several_passes(tmp_path, objective, perturb):
    results = start(tmp_path / "a", objective=objective, perturb=perturb, epochs=1)
    assert np.isfinite(results["metrics"]["test_loss"])


@pytest.mark.parametrize("objective", ALL)
def test_each_trains_on_numbers_images_and_text(tmp_path, objective):
    start(tmp_path / "a", objective=objective, data="rotated-digits", train_size=40, epochs=1)
    rows = [f"word {i % 5} and {i % 3},{i % 2},{'abc'[(i // 2) % 3]}" for i in range(30)]
    (tmp_path / "t.csv").write_text("\n".join(["text,label,site", *rows]))
    values = {"data": str(tmp_path / "t.csv"), "domain_column": "site", "test_domain": "b"}
    prepared = prepare(Recipe.from_flat({**QUICK, **values, "objective": objective}))
    model, minimized = prepared.built.model, objective_of(prepared.recipe, prepared.data)
    part = encode(prepared.data.train, prepared.data, prepared.built.encoding)
    loss = minimized(model.train(), part.__getitems__(range(12)))
    loss.backward()
    assert model.get_input_embeddings().weight.grad.any()


@pytest.mark.parametrize("objective", ["vrex(weight=50; warmup=8)", "hutchinson-alignment"])
def test_killed_and_resumed_equals_never_stopped(tmp_path, monkeypatch, objective):
    values = {"objective": objective, "save_every": 2, "perturb": "nso"}
    start(tmp_path / "whole", **values)
    step = loop._timed_step

    class Killed(BaseException):
        pass

    def dies(run, state, *rest):
        if state.step == 7:
            raise Killed
        step(run, state, *rest)

    monkeypatch.setattr(loop, "_timed_step", dies)
    with pytest.raises(Killed):
        start(tmp_path / "cut", **values)
    monkeypatch.undo()
    torch.manual_seed(12345)
    resume(tmp_path / "cut", say=lambda text: None)
    assert same(tmp_path / "whole", tmp_path / "cut")
    start(tmp_path / "other", **{**values, "objective": "erm"})
    assert not same(tmp_path / "whole", tmp_path / "other")


def test_in_half_precision_the_closed_forms_are_used(tmp_path, monkeypatch):
    seen = []
    linear = domains._is_linear

    def spied(*given):
        seen.append(linear(*given))
        return seen[-1]

    monkeypatch.setattr(domains, "_is_linear", spied)
    results = start(tmp_path / "a", objective="hgp(weight=5)", precision="bf16")
    assert seen
    assert all(seen)
    assert np.isfinite(results["metrics"]["test_loss"])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"data": "digits", "objective": "hgp"}, "digits has none: take rotated-digits or"),
        ({"data": "digits", "objective": "erm"}, "digits has none: take rotated-digits or"),
        ({"data": "digits", "domain_column": "x"}, "is for tables, and digits is none"),
        ({"data": "digits", "domain_folders": True}, "leave it out, or give such data"),
        ({"objective": "hgp(weight=nan)"}, "weight is nan"),
        ({"objective": "coral(wieght=1)"}, "did you mean 'weight'"),
        ({"objective": "hgp", "test_domain": "0.3"}, "unknown domain"),
    ],
)
def test_mistakes_are_named_before_the_run_begins(tmp_path, values, words):
    with pytest.raises(InputError, match=words):
        start(tmp_path / "a", **values)
    assert not (tmp_path / "a").exists()


def test_one_domain_left_to_train_on_is_enough_for_erm_only(tmp_path):
    rows = [f"{i},{i % 2},{'ab'[(i // 2) % 2]}" for i in range(40)]
    (tmp_path / "t.csv").write_text("\n".join(["x,label,site", *rows]))
    values = {"data": str(tmp_path / "t.csv"), "domain_column": "site", "test_domain": "b"}
    start(tmp_path / "a", **values, objective="erm", epochs=1)
    with pytest.raises(InputError, match=r"of the single domain 'a': .* or take erm"):
        start(tmp_path / "b", **values, objective="hgp")


def test_from_the_command_line(tmp_path, capsys):
    flags = ["--data", "rotated-digits", "--test-domain", "30", "--objective", "hgp(weight=0.1)"]
    flags += ["--perturb", "nso", "--epochs", "1", "--train-size", "60", "--no-measure"]
    assert main(["finetune", *flags, "--out", str(tmp_path / "a")]) == 0
    data = json.loads((tmp_path / "a/data.json").read_text())
    assert data["test"]["per_domain"]["30"] == data["test"]["count"]
    assert data["train"]["per_domain"]["30"] == 0
    for name in ("hgp", "hutchinson-alignment", "coral", "irm", "vrex", "fishr", "erm"):
        assert main(["methods", name]) == 0
    assert "arXiv 2308.11778" in capsys.readouterr().out


TWO_PROCESSES = """
import json
import os
import sys
from pathlib import Path

import torch
from flatminima.training import run
from flatminima.training.recipe import Recipe

out, values = Path(sys.argv[1]), json.loads(sys.argv[2])
assemble, kept = run.assemble, []

def noted(*given):
    kept.append(assemble(*given))
    return kept[-1]

run.assemble, run._end_processes = noted, torch.distributed.barrier
for name, objective in values.pop("objectives").items():
    recipe = Recipe.from_flat({**values, "objective": objective})
    run.finetune(recipe, out / name, say=lambda text: None)
    state = kept[-1].accelerator.unwrap_model(kept[-1].model).state_dict()
    found = {"model": state, "steps": kept[-1].remembering.step}
    torch.save(found, out / f"{name}-{os.environ['RANK']}.pt")
os._exit(0)
"""


def test_two_processes_have_the_same_weights_and_count(tmp_path):
    script, out = tmp_path / "two.py", tmp_path / "two"
    script.write_text(TWO_PROCESSES)
    # The second one's head is an inner layer, so its derivatives go by autograd.
    objectives = {"last": "hgp(weight=20;warmup=2)", "inner": "hgp(weight=0.05;layer=3)"}
    values = {**QUICK, "epochs": 1, "objectives": objectives}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", "2", str(script), str(out), json.dumps(values)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr[:3000]
    start(tmp_path / "erm", objective="erm", epochs=1)
    alone = weights(tmp_path / "erm")
    for name in objectives:
        first, second = (torch.load(out / f"{name}-{r}.pt", weights_only=True) for r in (0, 1))
        assert first["steps"] == second["steps"] == 5
        for key, tensor in first["model"].items():
            assert torch.equal(tensor, second["model"][key])
        apart = [(alone[key] - tensor).abs().max() for key, tensor in first["model"].items()]
        assert max(apart) > 1e-4
