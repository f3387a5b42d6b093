"""Checkpoints: a folder that is either whole or not there, and known to be whole.

    checkpoints/last/       the newest
    checkpoints/previous/   the one before, to fall back on
    checkpoints/best/       the best by validation accuracy
    checkpoints/averaged/   the mean of the weights, of a run that keeps it; of the ordinary model
                            where the mean is of that (LoRA, companders)
    checkpoints/baked/      the ordinary model, of a run that trained a reparametrized one

Each holds `model.safetensors`, `optimizer.pt` (read with weights_only=True) and `state.json`, with
the SHA-256 of the others; for transformers also the config and tokenizer, so that the folder loads
with `from_pretrained`. A folder is written under a temporary name and then renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flatminima.errors import InputError, require
from flatminima.files import read_json, write_json

AVERAGED, BAKED = "averaged", "baked"
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
        folder: `.../checkpoints/last`, `best` or `averaged`.
        model: Its weights and buffers are saved.
        optimizer: Tensors and plain values to go on with; None leaves them out.
        state: The run's progress, JSON values.
        companions: Writes the model's config and tokenizer into the folder.

    Raises:
        InputError: the disk is full or read-only.
    """
    safetensors = require("safetensors.torch", "cli")
    for left_over in folder.parent.glob(f".{folder.name}.*"):  # of a run killed while saving
        shutil.rmtree(left_over, ignore_errors=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        if companions is not None:
            companions(temporary)
        safetensors.save_model(model, str(temporary / MODEL))
        if optimizer is not None:
            torch.save(optimizer, temporary / OPTIMIZER)
        digests = {path.name: _digest(path) for path in sorted(temporary.iterdir())}
        content = {"progress": state, "sha256": digests}
        write_json(temporary / STATE, {**content, "own_sha256": _digest_of(content)})
        _replace(temporary, folder)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        # torch.save and safetensors report a full disk as errors of types of their own.
        if not isinstance(error, Exception):
            raise
        raise InputError(
            f"cannot write the checkpoint {folder}: {error}; free space there or choose another "
            "--out (the checkpoint before is untouched)"
        ) from error


def find(folder: Path, names: Sequence[str] = ("last", "previous")) -> Checkpoint:
    """The first whole checkpoint of a run under one of some names.

    Args:
        folder: `.../checkpoints`.
        names: In the order in which they are wanted.

    Raises:
        InputError: there is none that is whole.
    """
    faults: list[str] = []
    for name in names:
        if not (folder / name).is_dir():
            continue
        try:
            found = read(folder / name)
        except InputError as error:
            faults.append(str(error))
            continue
        warning = f"{'; '.join(faults)}; using {found.folder}" if faults else ""
        return Checkpoint(found.folder, found.state, warning)
    raise InputError(
        "; ".join(faults) or f"no checkpoint in {folder}: the run saved none, or kept none"
    )


def any_in(folder: Path) -> bool:
    """Whether a run has saved anything to go on from."""
    return any((folder / name).is_dir() for name in ("last", "previous"))


def set_aside_damaged(folder: Path) -> None:
    """Rename a damaged `last`, so that the next save does not make it the one to fall back on."""
    if (folder / "last").is_dir() and _fault(folder / "last"):
        shutil.rmtree(folder / "damaged", ignore_errors=True)
        (folder / "last").rename(folder / "damaged")


def read(folder: Path) -> Checkpoint:
    """One checkpoint folder.

    Raises:
        InputError: it is missing or not whole.
    """
    if fault := _fault(folder):
        raise InputError(fault)
    return Checkpoint(folder, read_json(folder / STATE)["progress"])


def _fault(folder: Path) -> str:
    """What is wrong with a checkpoint, "" if it is whole."""
    try:
        content = read_json(folder / STATE)
    except InputError as error:
        return str(error)
    own = content.pop("own_sha256", None) if isinstance(content, dict) else None
    if own is None or own != _digest_of(content) or MODEL not in content["sha256"]:
        return f"{folder / STATE} was truncated or changed since it was saved"
    for name, digest in content["sha256"].items():
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


def _digest_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
