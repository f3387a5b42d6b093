"""Pretraining of the built-in networks on a data set's source task, cached on disk.

Plain training, its learning rate falling to 0 by a cosine: classifiers by SGD with momentum 0.9 and
rate 0.1 in batches of 32 for 40 epochs, language models by AdamW with rate 0.002 in batches of 64
for 8. It gives the network that the comparisons then fine-tune. The weights depend on nothing but
the network, the source examples and the seed, so they are kept under a hash of the three.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from flatminima.errors import InputError, require
from flatminima.files import write_bytes
from flatminima.progress import Progress, silent
from flatminima.training.batches import Epoch
from flatminima.training.data.encode import Encoding, encode
from flatminima.training.data.examples import DataSet
from flatminima.training.loader import loader
from flatminima.training.tasks import Task


@dataclass(frozen=True)
class Plan:
    """How a kind of network is pretrained."""

    optimizer: str
    lr: float
    batch_size: int
    epochs: int

    def make(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of a model."""
        if self.optimizer == "adamw":
            return torch.optim.AdamW(model.parameters(), lr=self.lr, weight_decay=0.0)
        return torch.optim.SGD(model.parameters(), lr=self.lr, momentum=0.9)


CLASSIFIER = Plan("sgd", 0.1, 32, 40)
PLANS = {"rationales": Plan("adamw", 2e-3, 64, 8)}
"""By task, where it is not the classifiers' plan."""


def pretrain(
    model: nn.Module,
    data: DataSet,
    encoding: Encoding,
    seed: int,
    task: Task,
    progress: Progress = silent,
) -> None:
    """Train a model in place on `data.source`, or load what that gave before.

    Args:
        model: Initialized from the seed.
        data: Its `source` examples are trained on.
        encoding: What the model needs of its inputs.
        seed: Orders the batches.
        task: Its loss is minimized.
        progress: Told of each epoch.
    """
    assert data.source is not None
    safetensors = require("safetensors.torch", "cli")
    source = encode(data.source, data, encoding)
    plan = PLANS.get(data.task, CLASSIFIER)
    cached = _cache() / "pretrained" / f"{_key(model, data, seed, plan)}.safetensors"
    if cached.is_file():
        try:
            safetensors.load_model(model, str(cached))
            return
        except Exception:  # a cache that cannot be read is made anew
            cached.unlink(missing_ok=True)
    optimizer = plan.make(model)
    steps = plan.epochs * -(-len(data.source) // plan.batch_size)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for epoch in range(plan.epochs):
        order = Epoch(len(data.source), plan.batch_size, seed=seed, epoch=epoch)
        for batch in loader(source, batch_sampler=order):
            optimizer.zero_grad()
            torch.autograd.backward(task.loss(model, batch))
            optimizer.step()
            scheduler.step()
        progress("pretraining", epoch + 1, plan.epochs)
    optimizer.zero_grad()
    with contextlib.suppress(InputError):  # a cache that cannot be written is only slower
        write_bytes(cached, safetensors.save(_once_each(model)))


def _once_each(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model; of tied weights, which safetensors refuses to write twice, one."""
    names = {tensor.data_ptr(): name for name, tensor in reversed(model.state_dict().items())}
    return {name: model.state_dict()[name] for name in names.values()}


def _key(model: nn.Module, data: DataSet, seed: int, plan: Plan) -> str:
    assert data.source is not None
    recipe = (plan, seed, repr(model), torch.__version__)
    digest = hashlib.sha256(repr(recipe).encode())
    digest.update(data.source.targets.tobytes())
    inputs = data.source.inputs
    digest.update(inputs.tobytes() if isinstance(inputs, np.ndarray) else repr(inputs).encode())
    for tensor in model.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()[:32]


def _cache() -> Path:
    if "FLATMINIMA_CACHE" in os.environ:
        return Path(os.environ["FLATMINIMA_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "flatminima"
