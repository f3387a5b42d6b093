"""Two processes under torchrun."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flatminima.training.recipe import Recipe
from flatminima.training.run import finetune

VALUES = {"epochs": 2, "measure": False, "batch_size": 30, "pretrain": False}

EVERY_RANK_SAVES = """
import json
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
"""


@pytest.fixture
def two_ranks(tmp_path):
    def launch(method: str) -> list[dict[str, torch.Tensor]]:
        script = tmp_path / "every_rank_saves.py"
        script.write_text(EVERY_RANK_SAVES)
        out = tmp_path / f"two-{method}"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc_per_node", "2", str(script), str(out)]
        command += [json.dumps({**VALUES, "perturb": method})]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
        assert done.returncode == 0, done.stderr[-2000:]
        return [load_file(Path(out) / f"rank-{rank}" / "model.safetensors") for rank in (0, 1)]

    return launch


def test_plain_equals_one_process(tmp_path, two_ranks):
    first, second = two_ranks("plain")
    finetune(Recipe.from_flat({**VALUES, "perturb": "plain"}), tmp_path / "one")
    alone = load_file(tmp_path / "one/checkpoints/last/model.safetensors")
    for name, tensor in alone.items():
        assert torch.equal(first[name], second[name])
        # Only the order of a mean over 30 samples differs (200 = 6 x 30 + 20).
        torch.testing.assert_close(first[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["nso", "nso-one-pass", "sam"])
def test_ranks_stay_identical(two_ranks, method):
    first, second = two_ranks(method)
    assert all(torch.equal(first[name], second[name]) for name in first)
