"""Pretraining of the built-in networks on a data set's source task, cached on disk.

Plain SGD with momentum 0.9, learning rate 0.1 falling to 0 by a cosine, batches of 32, 40 epochs:
the network that the comparisons then fine-tune. The weights depend on nothing but the network, the
source examples and the seed, so they are kept under a hash of the three.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

import numpy as np
import torch
from torch import nn

from flatminima.errors import InputError, require
from flatminima.files import write_bytes
from flatminima.objectives import Supervised
from flatminima.progress import Progress, silent
from flatminima.training.batches import Epoch
from flatminima.training.data.encode import Encoding, encode
from flatminima.training.data.examples import DataSet
from flatminima.training.loader import loader

EPOCHS, LEARNING_RATE, MOMENTUM, BATCH_SIZE = 40, 0.1, 0.9, 32


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
    source = encode(data.source, data, encoding)
    cached = _cache() / "pretrained" / f"{_key(model, data, seed)}.safetensors"
    if cached.is_file():
        try:
            model.load_state_dict(safetensors.load_file(str(cached)))
            return
        except Exception:  # a cache that cannot be read is made anew
            cached.unlink(missing_ok=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
    steps = EPOCHS * -(-len(data.source) // BATCH_SIZE)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    objective = Supervised()
    model.train()
    for epoch in range(EPOCHS):
        order = Epoch(len(data.source), BATCH_SIZE, seed=seed, epoch=epoch)
        for batch in loader(source, batch_sampler=order):
            optimizer.zero_grad()
            torch.autograd.backward(objective(model, batch))
            optimizer.step()
            scheduler.step()
        progress("pretraining", epoch + 1, EPOCHS)
    optimizer.zero_grad()
    with contextlib.suppress(InputError):  # a cache that cannot be written is only slower
        write_bytes(cached, safetensors.save(model.state_dict()))


def _key(model: nn.Module, data: DataSet, seed: int) -> str:
    assert data.source is not None
    recipe = (EPOCHS, LEARNING_RATE, MOMENTUM, BATCH_SIZE, seed, repr(model), torch.__version__)
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
