"""Pretraining of our small networks on a data set's source task, cached on disk.

The network that the comparisons then fine-tune is trained plainly, at the settings below; its
learning rate falls to 0 by a cosine. A classifier of prompts is pretrained on images with texts, by
the contrastive loss. The weights depend on nothing but the network, the source examples and the
seed, so they are kept under a hash of the three.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flatminima.errors import InputError, require
from flatminima.files import write_bytes
from flatminima.objectives import Contrastive, Objective, Supervised
from flatminima.progress import Progress, silent
from flatminima.training.batches import Epoch
from flatminima.training.data.encode import Encoding, encode
from flatminima.training.data.examples import DataSet, fingerprint
from flatminima.training.loader import loader
from flatminima.training.prompting import PromptClassifier


@dataclass(frozen=True)
class Settings:
    """How a source task is trained."""

    optimizer: type[torch.optim.Optimizer]
    options: dict[str, Any]
    batch_size: int
    epochs: int = 40


OF_CLASSES = Settings(torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}, batch_size=32)
OF_CAPTIONS = Settings(torch.optim.AdamW, {"lr": 1e-3, "weight_decay": 0.1}, 64, epochs=24)


def pretrain(
    model: nn.Module, data: DataSet, encoding: Encoding, seed: int, progress: Progress = silent
) -> None:
    """Train a model in place on `data.source`, or load what that gave before.

    Args:
        model: Initialized from the seed.
        data: Its `source` examples are trained on.
        encoding: What the model needs of its inputs.
        seed: Orders the batches.
        progress: Told of each epoch.
    """
    assert data.source is not None
    safetensors = require("safetensors.torch", "cli")
    trained, settings, objective = _task(model)
    cached = _cache() / "pretrained" / f"{_key(trained, data, seed, settings)}.safetensors"
    if cached.is_file():
        try:
            trained.load_state_dict(safetensors.load_file(str(cached)))
            return
        except Exception:  # a cache that cannot be read is made anew
            cached.unlink(missing_ok=True)
    source = encode(data.source, data, encoding)
    optimizer = settings.optimizer(trained.parameters(), **settings.options)
    steps = settings.epochs * -(-len(data.source) // settings.batch_size)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    trained.train()
    for epoch in range(settings.epochs):
        order = Epoch(len(data.source), settings.batch_size, seed=seed, epoch=epoch)
        for batch in loader(source, batch_sampler=order):
            optimizer.zero_grad()
            torch.autograd.backward(objective(trained, batch))
            optimizer.step()
            scheduler.step()
        progress("pretraining", epoch + 1, settings.epochs)
    optimizer.zero_grad()
    with contextlib.suppress(InputError):  # a cache that cannot be written is only slower
        write_bytes(cached, safetensors.save(trained.state_dict()))


def _task(model: nn.Module) -> tuple[nn.Module, Settings, Objective]:
    """What is trained, and how."""
    if isinstance(model, PromptClassifier):
        return model.clip, OF_CAPTIONS, Contrastive(gather=False)
    return model, OF_CLASSES, Supervised()


def _key(model: nn.Module, data: DataSet, seed: int, settings: Settings) -> str:
    assert data.source is not None
    recipe = (repr(settings), seed, repr(model), torch.__version__)
    digest = hashlib.sha256(repr(recipe).encode())
    digest.update(fingerprint([data.source]).encode())
    for tensor in model.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()[:32]


def _cache() -> Path:
    if "FLATMINIMA_CACHE" in os.environ:
        return Path(os.environ["FLATMINIMA_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "flatminima"
