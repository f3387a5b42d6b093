"""Runs whose objective remembers their samples: resumed, on two processes, and what they find."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from flatminima.cli import main
from flatminima.errors import InputError
from flatminima.objectives import ELRLoss, PSKDLoss
from flatminima.training import checks, loop, minimized
from flatminima.training.prepared import prepare
from flatminima.training.recipe import Recipe
from flatminima.training.run import finetune, resume

QUICK = {"epochs": 3, "pretrain": False, "measure": False, "train_size": 60, "batch_size": 16}


def start(path, **values):
    return finetune(Recipe.from_flat({**QUICK, **values}), path, say=lambda text: None)


def weights(run):
    return load_file(run / "checkpoints/last/model.safetensors")


def remembered(run):
    saved = torch.load(run / "checkpoints/last/optimizer.pt", weights_only=True)["objective"]
    return saved["kept.memory.rows"]


def losses(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize(
    ("objective", "more"),
    [
        ("elr", {"perturb": "nso"}),
        ("elr(beta=0.9; lam=7; dtype=float16)", {"model": "cnn", "augment": "standard"}),
        ("ps-kd", {"perturb": "sam", "micro_batch_size": 5}),
        ("ps-kd(place=disk; dtype=float16)", {"precision": "bf16"}),
    ],
)
def test_killed_and_resumed_equals_never_stopped(tmp_path, monkeypatch, objective, more):
    values = {"objective": objective, "save_every": 2, **more}
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
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")
    rows = remembered(tmp_path / "whole")
    assert torch.equal(rows, remembered(tmp_path / "cut"))
    assert rows.any(1).all()


@pytest.mark.parametrize("objective", ["elr", "ps-kd"])
def test_micro_batches_remember_as_the_large_batch(tmp_path, objective):
    for name, size in (("whole", None), ("cut", 7)):
        start(tmp_path / name, objective=objective, perturb="nso", micro_batch_size=size)
    torch.testing.assert_close(
        remembered(tmp_path / "whole"), remembered(tmp_path / "cut"), rtol=1e-4, atol=1e-5
    )


def test_the_disk_makes_no_difference(tmp_path):
    start(tmp_path / "held", objective="ps-kd")
    start(tmp_path / "kept", objective="ps-kd(place=disk)")
    held, kept = weights(tmp_path / "held"), weights(tmp_path / "kept")
    assert all(torch.equal(held[name], kept[name]) for name in held)
    assert torch.equal(remembered(tmp_path / "held"), remembered(tmp_path / "kept"))


def test_the_first_epoch_of_ps_kd_is_cross_entropy_and_the_second_is_not(tmp_path):
    for objective in ("cross-entropy", "ps-kd"):
        start(tmp_path / objective, objective=objective, epochs=2)
    plain, distilled = (losses(tmp_path / name) for name in ("cross-entropy", "ps-kd"))
    assert len(plain) == 8
    assert distilled[:4] == pytest.approx(plain[:4], rel=1e-6)
    assert all(abs(a - b) > 1e-4 for a, b in zip(plain[4:], distilled[4:], strict=True))


def test_of_a_step_that_is_not_finite_nothing_is_remembered(tmp_path, monkeypatch):
    gather, seen = loop.gather_gradient, []

    def broken(run, state, samples, batch):
        loss = gather(run, state, samples, batch)
        if state.step == 1:
            seen.extend(batch["index"].tolist())
            next(run.model.parameters()).grad.fill_(torch.nan)
        return loss

    monkeypatch.setattr(loop, "gather_gradient", broken)
    start(tmp_path / "a", objective="elr", epochs=1, on_nan="skip")
    rows = remembered(tmp_path / "a")
    unseen = sorted(torch.nonzero(~rows.any(1))[:, 0].tolist())
    assert unseen == sorted(seen)
    assert len(seen) == 16


def test_a_run_with_elr_leaves_the_samples_it_suspects(tmp_path):
    values = {"objective": "elr(lam=7; beta=0.9)", "label_noise": 0.3, "train_size": None}
    values |= {"epochs": 25}
    start(tmp_path / "a", **values)
    found = json.loads((tmp_path / "a/suspects.json").read_text())
    data = prepare(Recipe.from_flat({**QUICK, **values})).data
    clean, given = data.clean_targets, data.train.targets
    flagged = np.zeros(len(given), dtype=bool)
    for suspect in found:
        place = suspect["index"]
        assert suspect["given"] == given[place] != suspect["suspected"]
        assert 0 < suspect["confidence"] <= 1
        flagged[place] = True
    assert (flagged == (clean != given)).mean() > 0.85
    rows = remembered(tmp_path / "a").argmax(1).numpy()
    assert [s["suspected"] for s in found] == rows[flagged].tolist()


def test_other_objectives_leave_no_such_file(tmp_path):
    start(tmp_path / "a", objective="ps-kd", epochs=1)
    assert not (tmp_path / "a/suspects.json").exists()


@pytest.mark.parametrize("name", ["elr", "ps-kd"])
def test_numbers_have_no_classes_to_remember(name):
    prepared = prepare(Recipe.from_flat(QUICK))
    recipe = prepared.recipe.but(objective=name)
    with pytest.raises(InputError, match=f"{name} is a loss of classification"):
        minimized.objective(recipe, replace(prepared.data, task="regression"))


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("elr(beta=1)", "beta is 1"),
        ("elr(lamda=1)", "did you mean 'lam'"),
        ("ps-kd(alpha_T=1.5)", "alpha_T is 1.5"),
        ("ps-kd(temperature=0)", "temperature is 0"),
        ("ps-kd(place=disk; folder=/no/such)", "is no folder"),
    ],
)
def test_mistakes_are_named_before_the_run_begins(tmp_path, asked, words):
    with pytest.raises(InputError, match=words):
        start(tmp_path / "a", objective=asked)
    assert not (tmp_path / "a").exists()


def test_from_the_command_line(tmp_path, capsys):
    flags = ["--objective", "elr", "--perturb", "nso", "--epochs", "2", "--train-size", "60"]
    flags += ["--no-measure", "--no-pretrain", "--label-noise", "0.3"]
    assert main(["finetune", *flags, "--out", str(tmp_path / "a")]) == 0
    assert (tmp_path / "a/suspects.json").exists()
    rows = remembered(tmp_path / "a")
    # Two visits of two passes each: had each pass counted, 1 - 0.7^4 would be remembered.
    torch.testing.assert_close(rows.sum(1), torch.full((60,), 1 - 0.7**2))
    assert main(["methods", "ps-kd"]) == 0
    assert "arXiv 2006.12000" in capsys.readouterr().out


def test_one_method_of_a_comparison_may_have_it():
    methods = ["plain", "nso:objective=elr(lam=1;beta=0.9)", "plain:objective=ps-kd"]
    assert list(checks.for_methods(Recipe.from_flat(QUICK), methods)) == methods
    with pytest.raises(InputError, match="beta is 1"):
        checks.for_methods(Recipe.from_flat(QUICK), ["plain", "nso:objective=elr(beta=1)"])


TWO_PROCESSES = """
import json
import os
import sys
from pathlib import Path

import torch
from flatminima.objectives import ELRLoss, PSKDLoss
from flatminima.training import run
from flatminima.training.recipe import Recipe

out, values = Path(sys.argv[1]), json.loads(sys.argv[2])
torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
sys.path.insert(0, sys.argv[3])
from test_remembering import shuffled_steps

for name, loss in (("elr", ELRLoss(9, 4)), ("ps-kd", PSKDLoss(9, 4, 0.8, 3))):
    # Five samples, or nine, do not part evenly.
    shuffled_steps(loss, rank, 2)
    torch.save(loss.memory.rows, out / f"{name}-{rank}.pt")
run._end_processes = torch.distributed.barrier
for objective in ("elr", "ps-kd"):
    run.finetune(Recipe.from_flat({**values, "objective": objective}), out / objective)
os._exit(0)
"""


def shuffled_steps(loss, rank=0, world=1):
    """Steps of several passes over samples in an order of each epoch, parted among processes."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 2, 9, 4, generator=generator)
    for epoch in range(3):
        if isinstance(loss, PSKDLoss):
            loss.set_epoch(epoch)
        for batch in torch.randperm(9, generator=generator).split(5):
            own = batch[rank::world]
            with loss.one_step():
                for one in logits[epoch]:
                    loss(one[own], own % 4, own)


def test_two_processes_equal_one(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", "2", str(script), str(tmp_path), json.dumps(QUICK)]
    done = subprocess.run(
        [*command, os.path.dirname(__file__)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[:3000]
    for name, loss in (("elr", ELRLoss(9, 4)), ("ps-kd", PSKDLoss(9, 4, 0.8, 3))):
        shuffled_steps(loss)
        for rank in (0, 1):
            rows = torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True)
            assert torch.equal(rows, loss.memory.rows)
        start(tmp_path / f"{name}-alone", objective=name)
        alone, both = weights(tmp_path / f"{name}-alone"), weights(tmp_path / name)
        for key, tensor in alone.items():
            # Only the order of a mean over 16 samples differs.
            torch.testing.assert_close(both[key], tensor, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            remembered(tmp_path / name), remembered(tmp_path / f"{name}-alone")
        )
