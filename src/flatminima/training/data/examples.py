"""Examples in memory: what the sources give, and what a run works with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from flatminima.training.data.numbers import Scale
from flatminima.training.data.spec import DataSpec

Kind = Literal["vector", "image", "text", "measurement"]
Targets: TypeAlias = NDArray[np.int64]
"""Class indices."""
Inputs: TypeAlias = (
    NDArray[np.float32]
    | Sequence[str]
    | Sequence[tuple[str, str]]
    | Sequence[tuple[str, str, str]]
    | Sequence[Path | bytes]
)
"""Vectors (n, d); images (n, c, h, w) in [0, 1], or their files or bytes; texts, pairs or triples
of question, rationale and answer."""


@dataclass(frozen=True, eq=False)
class Examples:
    """Inputs and what is to be predicted of them.

    Attributes:
        inputs: See `Inputs`; n of them.
        targets: Class indices, int64, or numbers, float32; shape (n,).
        domains: Where each is from, an index into the names of the domains, int64, shape (n,);
            None where the data have no domains.
    """

    inputs: Inputs
    targets: NDArray[Any]
    domains: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.targets):
            raise ValueError(f"{len(self.inputs)} inputs for {len(self.targets)} targets")

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, indices: NDArray[np.integer[Any]]) -> Examples:
        """The examples at `indices`, in that order."""
        domains = None if self.domains is None else self.domains[indices]
        if isinstance(self.inputs, np.ndarray):
            return Examples(self.inputs[indices], self.targets[indices], domains)
        chosen = [self.inputs[int(index)] for index in indices]
        return Examples(cast(Inputs, chosen), self.targets[indices], domains)


@dataclass(frozen=True, eq=False)
class Raw:
    """What a source hands over: checked examples, not yet split, subsampled or corrupted.

    Attributes:
        name: How to call the data set in a report.
        kind: What the inputs are.
        classes: Names of the classes; a target is an index into them. Empty for regression.
        splits: "train", and "validation" and "test" where the source has them.
        source: The task to pretrain on, where the data set brings one.
        validation_fraction: Used when the user gave none.
        label_noise: Used when the user gave none.
        details: What the source adds to the report (JSON values).
        task: The name of the task that it is.
        domains: Names of the domains, where the examples are of several.
    """

    name: str
    kind: Kind
    classes: tuple[str, ...]
    splits: Mapping[str, Examples]
    source: Examples | None = None
    validation_fraction: float = 0.1
    label_noise: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)
    task: str = "classification"
    domains: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class DataSet:
    """A task, ready to be encoded for a model.

    Attributes:
        name: How to call it in a report.
        kind: What the inputs are: vectors, images or texts.
        classes: Names of the classes; a target is an index into them. Empty for regression.
        train: To train on; its targets carry the label noise.
        validation: To choose by; empty where the validation fraction is 0.
        test: To report on.
        source: The task to pretrain on, if the data set brings one (same classes and shapes).
        clean_targets: The targets of `train` before label noise, shape (len(train),); numbers in
            their own unit.
        report: What was read, kept and changed, in JSON values.
        spec: What the user asked for.
        task: The name of the task that it is.
        domains: Names of the domains, where the examples are of several.
        scale: What the targets of all parts were standardized by, where they are numbers.
    """

    name: str
    kind: Kind
    classes: tuple[str, ...]
    train: Examples
    validation: Examples
    test: Examples
    source: Examples | None
    clean_targets: NDArray[Any]
    report: dict[str, Any]
    spec: DataSpec
    task: str = "classification"
    domains: tuple[str, ...] = ()
    scale: Scale = field(default_factory=Scale)

    @property
    def outputs(self) -> int:
        """Numbers that a model gives for a sample: one for each class, else 1."""
        return len(self.classes) or 1


def fingerprint(parts: Iterable[Examples]) -> str:
    """Tells data sets apart: a hash of targets and inputs; of image files their names and sizes."""
    digest = hashlib.sha256()
    for examples in parts:
        digest.update(examples.targets.tobytes())
        if isinstance(examples.inputs, np.ndarray):
            digest.update(examples.inputs.tobytes())
            continue
        for entry in examples.inputs:
            known = (entry.name, entry.stat().st_size) if isinstance(entry, Path) else entry
            digest.update(known if isinstance(known, bytes) else repr(known).encode())
    return digest.hexdigest()[:16]
