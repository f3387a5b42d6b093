"""Examples in memory: what the sources give, and what a run works with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from flatminima.training.data.numbers import Scale
from flatminima.training.data.spec import DataSpec

Kind = Literal["vector", "image", "text", "captioned", "measurement"]
Targets: TypeAlias = NDArray[np.int64]
"""Class indices."""
Images: TypeAlias = NDArray[np.float32] | Sequence[Path | bytes]
"""Images (n, c, h, w) in [0, 1], or their files or bytes."""


@dataclass(frozen=True, eq=False)
class Captioned:
    """Images, each with a text; one that has several texts is there several times.

    Attributes:
        images: n of them.
        texts: As many.
    """

    images: Images
    texts: Sequence[str]

    def __post_init__(self) -> None:
        if len(self.images) != len(self.texts):
            raise ValueError(f"{len(self.images)} images for {len(self.texts)} texts")

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> tuple[Any, str]:
        return self.images[index], self.texts[index]

    def __iter__(self) -> Iterator[tuple[Any, str]]:
        return zip(self.images, self.texts, strict=True)

    def take(self, indices: NDArray[np.integer[Any]]) -> Captioned:
        """The pairs at `indices`, in that order."""
        return Captioned(_chosen(self.images, indices), _chosen(self.texts, indices))

    def pairs(self) -> NDArray[np.int64]:
        """Which image and which text each pair has, shape (n, 2); the same number, the same one."""
        images: list[Any] = (
            [image.tobytes() for image in self.images]
            if isinstance(self.images, np.ndarray)
            else list(self.images)
        )
        return np.stack([_numbered(images), _numbered(list(self.texts))], axis=1)


Inputs: TypeAlias = (
    NDArray[np.float32]
    | Images
    | Sequence[str]
    | Sequence[tuple[str, str]]
    | Sequence[tuple[str, str, str]]
    | Captioned
)
"""Vectors (n, d); images; texts, pairs of texts or triples of question, rationale and answer; or
images with texts."""


def _chosen(inputs: Any, indices: NDArray[np.integer[Any]]) -> Any:
    if isinstance(inputs, np.ndarray):
        return inputs[indices]
    if isinstance(inputs, Captioned):
        return inputs.take(indices)
    return [inputs[int(index)] for index in indices]


def _numbered(things: list[Any]) -> NDArray[np.int64]:
    numbers: dict[Any, int] = {}
    return np.array([numbers.setdefault(thing, len(numbers)) for thing in things], dtype=np.int64)


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
        return Examples(_chosen(self.inputs, indices), self.targets[indices], domains)


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
        prompts: A text for each class, for models that read; empty for the usual ones.
        novel: Classes that are in the test set only.
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
    prompts: tuple[str, ...] = ()
    novel: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class DataSet:
    """A task, ready to be encoded for a model.

    Attributes:
        name: How to call it in a report.
        kind: What the inputs are: vectors, images, texts, or images with texts.
        classes: Names of the classes; a target is an index into them. Empty for regression.
        train: To train on; its targets carry the label noise.
        validation: To choose by; empty where the validation fraction is 0.
        test: To report on.
        source: The task to pretrain on, if the data set brings one: of the same classes and shapes,
            or images with texts.
        clean_targets: The targets of `train` before label noise, shape (len(train),); numbers in
            their own unit.
        report: What was read, kept and changed, in JSON values.
        spec: What the user asked for.
        task: The name of the task that it is.
        domains: Names of the domains, where the examples are of several.
        prompts: A text for each class, for models that read; empty for the usual ones.
        novel: Classes that are in the test set only.
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
    prompts: tuple[str, ...] = ()
    novel: tuple[int, ...] = ()
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
        inputs = examples.inputs
        for part in (inputs.images, inputs.texts) if isinstance(inputs, Captioned) else (inputs,):
            _digest(digest, part)
    return digest.hexdigest()[:16]


def _digest(digest: Any, inputs: Any) -> None:
    if isinstance(inputs, np.ndarray):
        digest.update(inputs.tobytes())
        return
    for entry in inputs:
        known = (entry.name, entry.stat().st_size) if isinstance(entry, Path) else entry
        digest.update(known if isinstance(known, bytes) else repr(known).encode())
