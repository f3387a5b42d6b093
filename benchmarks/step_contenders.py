"""What `steps.py` compares: this library's methods, floors that no method can beat, and peers.

All work on one network, each with a base optimizer of its own, and all call `Gradient`, which
counts.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from step_models import Batch, Task
from torch import nn

import flatminima

SIGMA, RHO = 0.01, 0.05
Step = Callable[[Batch], None]


class Gradient:
    """Forward and backward, counted in whole batches.

    Args:
        model: Its output has a loss.
        samples: In a whole batch.
        precision: "bf16" runs the forward pass under autocast.
    """

    def __init__(self, model: nn.Module, samples: int, precision: str) -> None:
        self.model = model
        self._kind = next(model.parameters()).device.type
        self._lowered = precision == "bf16"
        self.calls = 0
        self.batches = 0.0
        self._samples = samples

    def __call__(self, part: Batch, weight: float = 1.0) -> None:
        """Add the gradient of a part of the batch to `.grad`."""
        self.calls += 1
        self.batches += len(part["labels"]) / self._samples
        with torch.autocast(self._kind, torch.bfloat16, enabled=self._lowered):
            loss = self.model(**part).loss
        (loss * weight).backward()


@dataclass(frozen=True)
class Contender:
    """One way to take a step.

    Attributes:
        name: What the docs call it.
        mathematics: What it computes, up to its own rounding and its draws: contenders of one kind
            are rivals.
        build: Makes the step, with optimizers of its own.
        peer: Whether it is somebody else's.
    """

    name: str
    mathematics: str
    build: Callable[[Gradient, Task], Step]
    peer: bool = False


def half(batch: Batch, which: int) -> Batch:
    """The first or the second half of a batch."""
    return {name: tensor.chunk(2)[which] for name, tensor in batch.items()}


def _accumulated(parts: Callable[[Batch], list[Batch]]) -> Callable[[Gradient, Task], Step]:
    """Plain training on parts, whose gradients are added up."""

    def build(gradient: Gradient, task: Task) -> Step:
        base = task.optimizer(gradient.model.parameters())

        def step(batch: Batch) -> None:
            found = parts(batch)
            for part in found:
                gradient(part, 1 / len(found)) if len(found) > 1 else gradient(part)
            base.step()
            base.zero_grad()

        return step

    return build


def _ours(method: str, **options: Any) -> Callable[[Gradient, Task], Step]:
    def build(gradient: Gradient, task: Task) -> Step:
        base = task.optimizer(gradient.model.parameters())
        optimizer = flatminima.make(method, base, **options)

        def step(batch: Batch) -> None:
            for part in optimizer.passes(batch):
                gradient(part)
            optimizer.step()
            optimizer.zero_grad()

        return step

    return build


def _two_steps(method: Callable[..., Any], **options: Any) -> Callable[[Gradient, Task], Step]:
    """SAM in the form that its first implementation gave it: first_step, second_step."""

    def build(gradient: Gradient, task: Task) -> Step:
        optimizer = method(gradient.model.parameters(), task.base, **options, **task.settings)

        def step(batch: Batch) -> None:
            gradient(batch)
            optimizer.first_step(zero_grad=True)
            gradient(batch)
            optimizer.second_step(zero_grad=True)

        return step

    return build


def _stored_gradients(method: Callable[..., Any]) -> Callable[[Gradient, Task], Step]:
    """NSO as the paper's code has it: gradients are stored aside after each pass.

    Its loop always takes the gradient at W, which it needs to store W, so it runs three passes.
    """

    def build(gradient: Gradient, task: Task) -> Step:
        optimizer = method(gradient.model.parameters(), task.base, sigma=SIGMA, **task.settings)

        def step(batch: Batch) -> None:
            gradient(batch)
            optimizer.store_gradients(zero_grad=True, store_weights=True, update_weight=0.0)
            for first in (True, False):
                optimizer.first_step(zero_grad=True, store_perturb=first)
                gradient(batch)
                optimizer.store_gradients(zero_grad=True, update_weight=0.5)
            optimizer.second_step(zero_grad=True)

        return step

    return build


def from_file(argument: str) -> Contender:
    """A peer that the user has in a file: the optimizer class in it, called as its shape asks.

    Args:
        argument: NAME=PATH.
    """
    name, _, path = argument.partition("=")
    spec = importlib.util.spec_from_file_location("peer", path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise SystemExit(f"--peer {argument}: {path!r} is no Python file; write --peer NAME=PATH")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for kind in vars(module).values():
        if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
            continue
        if hasattr(kind, "store_gradients"):
            return Contender(name, "NSO", _stored_gradients(kind), peer=True)
        if hasattr(kind, "first_step"):
            return Contender(name, "SAM", _two_steps(kind, rho=RHO), peer=True)
    raise SystemExit(
        f"--peer {argument}: the file has no torch optimizer with first_step and second_step"
    )


def pytorch_optimizer_sam() -> Contender:
    """SAM of the package pytorch_optimizer."""
    import pytorch_optimizer

    name = f"pytorch_optimizer {version('pytorch_optimizer')} SAM"
    return Contender(name, "SAM", _two_steps(pytorch_optimizer.SAM, rho=RHO), peer=True)


def contenders() -> list[Contender]:
    """Plain training first, to which all others are compared."""
    nso = {"sigma": SIGMA}
    return [
        Contender("plain", "plain", _accumulated(lambda batch: [batch])),
        Contender("two gradients", "floor", _accumulated(lambda batch: [batch, batch])),
        Contender(
            "two half batches",
            "floor",
            _accumulated(lambda batch: [half(batch, 0), half(batch, 1)]),
        ),
        Contender("nso", "NSO", _ours("nso", **nso)),
        Contender("nso, noise='table'", "NSO", _ours("nso", noise="table", **nso)),
        Contender("nso, memory='replay'", "NSO", _ours("nso", memory="replay", **nso)),
        Contender("nso-one-pass", "one-pass NSO", _ours("nso-one-pass", **nso)),
        Contender(
            "nso-one-pass, noise='table'",
            "one-pass NSO",
            _ours("nso-one-pass", noise="table", **nso),
        ),
        Contender("sam", "SAM", _ours("sam", rho=RHO)),
        pytorch_optimizer_sam(),
    ]
