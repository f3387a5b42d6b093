"""Pretraining of our small networks on a data set's source task, cached on disk.

The network that the comparisons then fine-tune is trained plainly, at the plans below; its learning
rate falls to 0 by a cosine. A classifier of prompts is pretrained on images with texts, by the
contrastive loss. The weights depend on nothing but the network, the source examples and the seed,
so they are kept under a hash of the three.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from flatminima.errors import InputError, require
from flatminima.files import write_bytes
from flatminima.objectives import Contrastive, Objective
from flatminima.progress import Progress, silent
from flatminima.training.batches import Epoch
from flatminima.training.data.encode import Encoding, encode
from flatminima.training.data.examples import DataSet, fingerprint
from flatminima.training.loader import loader
from flatminima.training.prompting import PromptClassifier
from flatminima.training.tasks import Task


@dataclass(frozen=True)
class Plan:
    """How a kind of network is pretrained."""

    optimizer: str
    lr: float
    batch_size: int
    epochs: int
    weight_decay: float = 0.0

    def make(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of a model."""
        if self.optimizer == "adamw":
            return torch.optim.AdamW(model.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        return torch.optim.SGD(model.parameters(), lr=self.lr, momentum=0.9)


CLASSIFIER = Plan("sgd", 0.1, 32, 40)
CAPTIONED = Plan("adamw", 1e-3, 64, 24, weight_decay=0.1)
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
    trained, plan, objective = _task(model, task)
    cached = _cache() / "pretrained" / f"{_key(trained, data, seed, plan)}.safetensors"
    if cached.is_file():
        try:
            safetensors.load_model(trained, str(cached))
            return
        except Exception:  # a cache that cannot be read is made anew
            cached.unlink(missing_ok=True)
    source = encode(data.source, data, encoding)
    optimizer = plan.make(trained)
    steps = plan.epochs * -(-len(data.source) // plan.batch_size)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    trained.train()
    for epoch in range(plan.epochs):
        order = Epoch(len(data.source), plan.batch_size, seed=seed, epoch=epoch)
        for batch in loader(source, batch_sampler=order):
            optimizer.zero_grad()
            torch.autograd.backward(objective(trained, batch))
            optimizer.step()
            scheduler.step()
        progress("pretraining", epoch + 1, plan.epochs)
    optimizer.zero_grad()
    with contextlib.suppress(InputError):  # a cache that cannot be written is only slower
        write_bytes(cached, safetensors.save(_once_each(trained)))


def _task(model: nn.Module, task: Task) -> tuple[nn.Module, Plan, Objective]:
    """What is trained, and how."""
    if isinstance(model, PromptClassifier):
        return model.clip, CAPTIONED, Contrastive(gather=False)
    return model, PLANS.get(task.name, CLASSIFIER), task.loss


def _once_each(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model; of tied weights, which safetensors refuses to write twice, one."""
    names = {tensor.data_ptr(): name for name, tensor in reversed(model.state_dict().items())}
    return {name: model.state_dict()[name] for name in names.values()}


def _key(model: nn.Module, data: DataSet, seed: int, plan: Plan) -> str:
    assert data.source is not None
    recipe = (plan, seed, repr(model), torch.__version__)
    digest = hashlib.sha256(repr(recipe).encode())
    digest.update(fingerprint([data.source]).encode())
    for tensor in model.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()[:32]


def _cache() -> Path:
    if "FLATMINIMA_CACHE" in os.environ:
        return Path(os.environ["FLATMINIMA_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "flatminima"
