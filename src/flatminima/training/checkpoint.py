"""Checkpoints: a folder that is either whole or not there, and known to be whole.

    checkpoints/last/       the newest
    checkpoints/previous/   the one before, to fall back on
    checkpoints/best/       the best by validation accuracy

Each holds `model.safetensors`, `optimizer.pt` (read with weights_only=True) and `state.json`, with
the SHA-256 of the others; for transformers also the config and tokenizer, so that the folder loads
with `from_pretrained`. A folder is written under a temporary name and then renamed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flatminima.errors import InputError, require
from flatminima.files import read_json, write_json

MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.pt", "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint found whole.

    Attributes:
        folder: Where it lies.
        state: The run's progress.
        warning: What was wrong with newer ones; "" if this is the newest.
    """

    folder: Path
    state: dict[str, Any]
    warning: str = ""

    def load_model(self, model: nn.Module) -> None:
        """Copy the weights and buffers into a model of the same architecture.

        Raises:
            InputError: the architectures differ.
        """
        safetensors = require("safetensors.torch", "cli")
        try:
            safetensors.load_model(model, str(self.folder / MODEL))
        except RuntimeError as error:
            first = " ".join(str(error).split())[:200]
            raise InputError(
                f"{self.folder / MODEL} is of another architecture than the model: {first}"
            ) from error

    def load_optimizer(self) -> dict[str, Any]:
        """The state of optimizer, scheduler and random generators."""
        state: dict[str, Any] = torch.load(
            self.folder / OPTIMIZER, map_location="cpu", weights_only=True
        )
        return state


def save(
    folder: Path,
    model: nn.Module,
    optimizer: dict[str, Any] | None,
    state: dict[str, Any],
    companions: Callable[[Path], None] | None = None,
) -> None:
    """Write a checkpoint; one that was there under the name becomes `previous`, if this is `last`.

    Args:
        folder: `.../checkpoints/last` or `.../checkpoints/best`.
        model: Its weights and buffers are saved.
        optimizer: Tensors and plain values to go on with; None leaves them out.
        state: The run's progress, JSON values.
        companions: Writes the model's config and tokenizer into the folder.

    Raises:
        InputError: the disk is full or read-only.
    """
    safetensors = require("safetensors.torch", "cli")
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        if companions is not None:
            companions(temporary)
        safetensors.save_model(model, str(temporary / MODEL))
        if optimizer is not None:
            torch.save(optimizer, temporary / OPTIMIZER)
        digests = {path.name: _digest(path) for path in sorted(temporary.iterdir())}
        write_json(temporary / STATE, {**state, "sha256": digests})
        _replace(temporary, folder)
    except (OSError, RuntimeError) as error:
        # torch.save and safetensors report a full disk as errors of their own.
        shutil.rmtree(temporary, ignore_errors=True)
        raise InputError(
            f"cannot write the checkpoint {folder}: {error}; free space there or choose another "
            "--out (the checkpoint before is untouched)"
        ) from error


def find(folder: Path) -> Checkpoint:
    """The newest whole checkpoint of a run, `last` or else `previous`.

    Args:
        folder: `.../checkpoints`.

    Raises:
        InputError: there is none that is whole.
    """
    faults: list[str] = []
    for name in ("last", "previous"):
        if not (folder / name).is_dir():
            continue
        fault = _fault(folder / name)
        if not fault:
            state = read_json(folder / name / STATE)
            warning = f"{'; '.join(faults)}; using {folder / name}" if faults else ""
            return Checkpoint(folder / name, state, warning)
        faults.append(fault)
    raise InputError("; ".join(faults) or f"no checkpoint in {folder}: the run saved none yet")


def read(folder: Path) -> Checkpoint:
    """One checkpoint folder.

    Raises:
        InputError: it is missing or not whole.
    """
    if fault := _fault(folder):
        raise InputError(fault)
    return Checkpoint(folder, read_json(folder / STATE))


def _fault(folder: Path) -> str:
    """What is wrong with a checkpoint, "" if it is whole."""
    try:
        state = read_json(folder / STATE)
    except InputError as error:
        return str(error)
    for name, digest in state.get("sha256", {}).items():
        path = folder / name
        if not path.is_file():
            return f"{path} is missing"
        if _digest(path) != digest:
            return f"{path} was truncated or changed since it was saved"
    return ""


def _replace(new: Path, folder: Path) -> None:
    older = folder.with_name("previous" if folder.name == "last" else f".old-{folder.name}")
    if folder.exists():
        shutil.rmtree(older, ignore_errors=True)
        folder.rename(older)
    new.rename(folder)
    if older.name.startswith("."):
        shutil.rmtree(older, ignore_errors=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
