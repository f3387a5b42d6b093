"""Two processes under torchrun."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flatminima.training.recipe import Recipe
from flatminima.training.run import finetune, resume

VALUES = {"epochs": 2, "measure": False, "batch_size": 30, "pretrain": False}

EVERY_RANK_SAVES = """
import json
import os
import sys
from pathlib import Path
from safetensors.torch import save_file
from flatminima.training import loop, run
from flatminima.training.recipe import Recipe

def save(state_of, state, name="last"):
    folder = Path(sys.argv[1]) / f"rank-{state_of.accelerator.process_index}"
    folder.mkdir(parents=True, exist_ok=True)
    model = state_of.accelerator.unwrap_model(state_of.model)
    save_file(model.state_dict(), str(folder / "model.safetensors"))

loop.save = save
run.finetune(Recipe.from_flat(json.loads(sys.argv[2])), Path(sys.argv[1]))
os._exit(0)
"""

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def run_ranks(*arguments):
    command = [*TORCHRUN, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=240)


@pytest.fixture
def two_ranks(tmp_path):
    def launch(method: str, **more) -> list[dict[str, torch.Tensor]]:
        script = tmp_path / "every_rank_saves.py"
        script.write_text(EVERY_RANK_SAVES)
        out = tmp_path / f"two-{method}"
        values = json.dumps({**VALUES, "perturb": method, **more})
        done = run_ranks(str(script), str(out), values)
        assert done.returncode == 0, done.stderr[-2000:]
        return [load_file(Path(out) / f"rank-{rank}" / "model.safetensors") for rank in (0, 1)]

    return launch


@pytest.mark.parametrize("objective", [None, "trace-penalty(weight=0.001)"])
def test_plain_equals_one_process(tmp_path, two_ranks, objective):
    first, second = two_ranks("plain", objective=objective)
    values = {**VALUES, "perturb": "plain", "objective": objective}
    finetune(Recipe.from_flat(values), tmp_path / "one")
    alone = load_file(tmp_path / "one/checkpoints/last/model.safetensors")
    for name, tensor in alone.items():
        assert torch.equal(first[name], second[name])
        # Only the order of a mean over 30 samples differs (200 = 6 x 30 + 20).
        torch.testing.assert_close(first[name], tensor, rtol=1e-5, atol=1e-6)


def test_texts_of_all_processes_are_negatives(tmp_path, two_ranks):
    # 45 = 3 x 15: each process has 8 or 7 pairs of a batch.
    values = {"data": "scenes(images=45)", "model": "clip-small", "batch_size": 15}
    values |= {"epochs": 1, "optimizer": "sgd"}
    first, second = two_ranks("plain", **values)
    finetune(Recipe.from_flat({**VALUES, **values}), tmp_path / "one")
    alone = load_file(tmp_path / "one/checkpoints/last/model.safetensors")
    for name, tensor in alone.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["nso", "nso-one-pass", "sam"])
def test_ranks_stay_identical(two_ranks, method):
    first, second = two_ranks(method)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_ranks_contrast_their_own_samples_and_stay_identical(tmp_path, two_ranks):
    values = {"data": "diabetes", "batch_size": 32, "epochs": 1}
    first, second = two_ranks("plain", **values, objective="conr(window=20; beta=4)")
    assert all(torch.equal(first[name], second[name]) for name in first)
    finetune(Recipe.from_flat({**VALUES, **values, "objective": "mae"}), tmp_path / "mae")
    without = load_file(tmp_path / "mae/checkpoints/last/model.safetensors")
    assert all(tensor.isfinite().all() for tensor in first.values())
    assert max((first[name] - tensor).abs().max() for name, tensor in without.items()) > 1e-3


def test_ranks_that_tune_themselves_have_the_same_knobs(two_ranks):
    tune = {"tune": "sigma,weight_decay,input_noise", "validation_fraction": 0.3}
    first, second = two_ranks("nso", tune_warmup=0.0, **tune)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first["1.home"].abs().min() > 0.01


def test_what_two_ranks_began_by_curvature_one_process_ends(tmp_path):
    values = {"optimizer": "gns", "batch_size": 67, "epochs": 1}
    words = [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]
    words += ["--no-measure", "--no-pretrain", "--out", str(tmp_path / "a")]
    done = run_ranks("-m", "flatminima", "finetune", *words)
    assert done.returncode == 0, done.stderr[-2000:]
    before = json.loads((tmp_path / "a/results.json").read_text())
    (tmp_path / "a/results.json").unlink()
    recipe = (tmp_path / "a/recipe.yaml").read_text()
    (tmp_path / "a/recipe.yaml").write_text(recipe.replace("epochs: 1\n", "epochs: 2\n"))
    after = resume(tmp_path / "a")
    assert after["steps"] == 2 * before["steps"]
    assert after["metrics"]["test_loss"] < before["metrics"]["test_loss"]


def test_ranks_accept_the_same_steps_by_curvature(tmp_path, two_ranks):
    # 67 samples, so that the processes have parts of different sizes (200 = 67 + 67 + 66).
    values = {"optimizer": "gns", "batch_size": 67, "weight_decay": 0.01}
    first, second = two_ranks("plain", **values)
    finetune(Recipe.from_flat({**VALUES, **values}), tmp_path / "one")
    alone = load_file(tmp_path / "one/checkpoints/last/model.safetensors")
    for name, tensor in alone.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], tensor, rtol=1e-3, atol=1e-4)


def test_ranks_agree_on_when_to_stop_early(tmp_path):
    # BatchNorm statistics are each process's own, so their validation scores differ.
    values = {"model": "cnn", "lr": 0.1, "early_stopping": 1, "validation_fraction": 0.3}
    values |= {"epochs": 30, "measure": False, "pretrain": False, "seed": 11}
    flags = []
    for name, value in values.items():
        flag = "--" + name.replace("_", "-")
        flags += [flag.replace("--", "--no-", 1)] if value is False else [flag, str(value)]
    done = run_ranks("-m", "flatminima", "finetune", *flags, "--out", str(tmp_path / "a"))
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "a/results.json").read_text())["stopped_early"]


def test_ctrl_c_saves_once_for_all_ranks(tmp_path):
    out = tmp_path / "a"
    command = [*TORCHRUN, "-m", "flatminima", "finetune", "--epochs", "3000", "--no-measure"]
    process = subprocess.Popen(
        [*command, "--no-pretrain", "--out", str(out)],
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    limit = time.monotonic() + 60
    while not (out / "checkpoints/previous").exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < limit
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert f"--resume {out}" in errors
    step = json.loads((out / "checkpoints/last/state.json").read_text())["progress"]["step"]
    assert json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["step"] == step
