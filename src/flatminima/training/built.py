"""What is built from a model's name, and what that takes of files."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from flatminima.errors import InputError
from flatminima.files import write_json
from flatminima.training.data.encode import Encoding


@dataclass(frozen=True)
class Built:
    """A model on the CPU, ready to be trained.

    Attributes:
        model: Gives logits, or an output with `.logits`.
        encoding: What it needs of its inputs.
        family: "builtin" or "transformers"; recipes take their late defaults from it.
        random_weights: Whether nothing was pretrained.
        companions: Writes what is needed beside the weights to load it elsewhere.
    """

    model: nn.Module
    encoding: Encoding
    family: str
    random_weights: bool
    companions: Callable[[Path], None] = field(default=lambda folder: None)


def together(*writers: Callable[[Path], Any]) -> Callable[[Path], None]:
    """One that writes what all of them write."""

    def write(folder: Path) -> None:
        for writer in writers:
            writer(folder)

    return write


def write_processor(
    size: int | None,
    folder: Path,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> None:
    """Say how images were prepared, in the file that transformers reads it from."""
    settings: dict[str, Any] = {"image_processor_type": "ViTImageProcessor"}
    settings |= {"do_normalize": mean is not None}
    if mean is not None and std is not None:
        settings |= {"image_mean": list(mean), "image_std": list(std)}
    square = {"height": size, "width": size}
    write_json(folder / "preprocessor_config.json", {**settings, "size": square})


def read_config(path: Path) -> dict[str, Any]:
    """The settings in a config file of transformers, without what the data decide.

    Raises:
        InputError: it cannot be read, or is no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the model config {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"the model config {path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"the model config {path} must be a JSON object")
    return {k: v for k, v in content.items() if k not in ("id2label", "label2id", "num_labels")}


def first_line(error: Exception) -> str:
    """The first line of an error that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
