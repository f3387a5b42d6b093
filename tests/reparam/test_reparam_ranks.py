"""Reparametrized runs on two processes."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from flatminima.training.recipe import Recipe
from flatminima.training.run import finetune

# 200 = 6 x 30 + 20; the file below writes each process's weights.
VALUES = {"epochs": 1, "measure": False, "batch_size": 30, "pretrain": False, "train_size": 200}
VALUES |= {"optimizer": "sgd"}

EVERY_RANK_SAVES = """
import json
import os
import sys
from pathlib import Path
from safetensors.torch import save_file
from flatminima.training import loop, run
from flatminima.training.recipe import Recipe

saved = loop.save

def save(state_of, state, name="last"):
    saved(state_of, state, name)
    model = state_of.accelerator.unwrap_model(state_of.model)
    place = f"{sys.argv[1]}-{state_of.accelerator.process_index}.safetensors"
    save_file(model.state_dict(), place)

loop.save = save
run.finetune(Recipe.from_flat(json.loads(sys.argv[2])), Path(sys.argv[1]))
os._exit(0)
"""


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
MASKS = {"reparam": "r-amt", "perturb": "nso", "sigma": 1e-5, "lr": 1.0}


@pytest.mark.parametrize(
    ("more", "trained"),
    [
        ({"reparam": "weight-compander(learnable=true)", "lr": 0.05}, ""),
        ({**MASKS, "micro_batch_size": 4}, "scores"),
        ({"reparam": "lora(rank=2)", "perturb": "glad", "rho": 0.05, "lr": 0.05}, ""),
    ],
)
@pytest.mark.filterwarnings("ignore:no weight was switched off")
def test_two_processes_end_where_one_does(tmp_path, more, trained):
    script, out = tmp_path / "every_rank_saves.py", tmp_path / "two"
    script.write_text(EVERY_RANK_SAVES)
    values = {**VALUES, **more}
    command = [*TORCHRUN, str(script), str(out), json.dumps(values)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (load_file(tmp_path / f"two-{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    values.pop("micro_batch_size", None)
    finetune(Recipe.from_flat(values), tmp_path / "one", say=lambda text: None)
    alone = load_file(tmp_path / "one/checkpoints/last/model.safetensors")
    assert alone.keys() == first.keys()
    names = [name for name in alone if name.endswith(trained)]
    near = [(first[n] - alone[n]).abs() < 1e-5 + 1e-4 * alone[n].abs() for n in names]
    # Means are added in another order, and a draw may fall between two roundings.
    assert torch.cat([part.flatten() for part in near]).float().mean() > 0.99
