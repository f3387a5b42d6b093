"""From what the user asked for to a data set ready for a run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flatminima.errors import InputError, unknown
from flatminima.progress import Progress, silent
from flatminima.training.data import folder, hub, table
from flatminima.training.data.builtin import BUILTIN, Source, builtin
from flatminima.training.data.domains import NAME_DOMAINS, leave_out, per_domain
from flatminima.training.data.examples import DataSet, Examples, Raw, Targets, fingerprint
from flatminima.training.data.label_noise import add_label_noise
from flatminima.training.data.numbers import Scale
from flatminima.training.data.spec import DataSpec
from flatminima.training.data.splits import by_count, cut, subsample
from flatminima.training.data.streams import stream
from flatminima.training.data.vectors import standardize

SOURCES: dict[str, Source] = {name: found.load for name, found in BUILTIN.items()}
"""The built-in data sets, by name; some take options in brackets."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")


def load(spec: DataSpec, seed: int, progress: Progress | None = None) -> DataSet:
    """Read, check, split, subsample and corrupt the data that `spec` asks for.

    Splits the source has are kept. Else the test set is cut off first, then the validation set,
    each with its share of every class; then the training set is cut down to `train_size`; then
    label noise changes training labels, and no others. Every choice has its own stream of random
    numbers, so the test set of a seed is the same for every `train_size` and `label_noise`.
    Features of tables, and labels that are numbers, are standardized by the training examples.

    Args:
        spec: What the user asked for.
        seed: Decides every random choice.
        progress: Called as `(stage, done, total)` by what may take long.

    Raises:
        InputError: the data cannot be used; the message names what and the mend.
    """
    # A wrong seed should not wait for the data to be read.
    stream(seed, "check")
    raw = find_source(spec.data)(spec, seed, progress or silent)
    check_augmentation(spec.augment, raw)
    check_domains(spec, raw)
    if spec.test_domain is not None:
        raw = leave_out(raw, spec.test_domain)
    if spec.task == "masked-images":
        raw = _without_labels(raw)
    if spec.task not in (None, raw.task):
        raise InputError(
            f"--task {spec.task} does not fit {raw.name}, whose labels are for {raw.task}: leave "
            "it out, or give a table with the labels that you mean"
        )
    splits, origins = _divide(raw, spec, seed)
    train, validation, test = splits["train"], splits["validation"], splits["test"]
    if spec.train_size is not None:
        chosen = subsample(train.targets, spec.train_size, raw.classes, stream(seed, "train_size"))
        train = train.take(chosen)
    if raw.kind == "vector":
        train, (validation, test) = standardize(train, [validation, test])
    rate = raw.label_noise if spec.label_noise is None else spec.label_noise
    if rate and raw.task != "classification":
        raise InputError(
            f"--label-noise draws classes anew, and {raw.name} is a task of {raw.task}: "
            "leave it out"
        )
    targets: NDArray[Any]
    targets, noise = add_label_noise(
        train.targets, rate, max(1, len(raw.classes)), stream(seed, "label_noise")
    )
    counted = {"train": train, "validation": validation, "test": test}
    scale = Scale.of(targets) if raw.task == "regression" else None
    report = _report(raw, counted, origins, seed, noise)
    if scale is not None:
        report["labels_standardized_by"] = {"mean": scale.mean, "deviation": scale.deviation}
        targets = scale.standardized(targets)
        validation, test = (_on(scale, part) for part in (validation, test))
    return DataSet(
        name=raw.name,
        kind=raw.kind,
        classes=raw.classes,
        train=Examples(train.inputs, targets, train.domains),
        validation=validation,
        test=test,
        source=raw.source,
        clean_targets=train.targets,
        report=report,
        spec=spec,
        task=raw.task,
        domains=raw.domains,
        prompts=raw.prompts,
        novel=raw.novel,
        scale=scale or Scale(),
    )


def _without_labels(raw: Raw) -> Raw:
    """The images of a data set; labels stay beside them, and are not looked at."""
    if raw.kind != "image":
        raise InputError(
            f"--task masked-images hides patches of images, and {raw.name} holds {raw.kind}s: give "
            "images (--data)"
        )
    return replace(raw, task="masked-images", label_noise=0.0)


def _on(scale: Scale, examples: Examples) -> Examples:
    return replace(examples, targets=scale.standardized(examples.targets))


def domains_of(spec: DataSpec, seed: int) -> tuple[str, ...]:
    """The names of the domains that could be left out.

    Raises:
        InputError: the data cannot be read, or have no domains.
    """
    raw = find_source(spec.data)(spec, seed, silent)
    check_domains(spec, raw)
    if not raw.domains:
        raise InputError(f"{raw.name} has no domains to leave out: {NAME_DOMAINS}")
    return raw.domains


def check_domains(spec: DataSpec, raw: Raw) -> None:
    """Refuse domains that were asked for and are not there, or one alone.

    Raises:
        InputError: they are not, or it is one.
    """
    asked = spec.domain_column or spec.domain_folders
    if asked and not raw.domains:
        flag, of = ("column", "tables") if spec.domain_column else ("folders", "folders of images")
        raise InputError(
            f"--domain-{flag} is for {of}, and {raw.name} is none: leave it out, or give such data"
        )
    if asked and len(raw.domains) == 1:
        raise InputError(
            f"{raw.name} has the single domain {raw.domains[0]!r}: give data of two or more, or "
            "leave --domain-column and --domain-folders out"
        )


def check_augmentation(augment: str, data: Raw | DataSet) -> None:
    """Refuse to augment what is no image.

    Raises:
        InputError: `data` holds texts or vectors, and `augment` is not "none".
    """
    if augment != "none" and data.kind not in ("image", "captioned"):
        raise InputError(
            f"augment {augment!r} changes images, and {data.name} holds {data.kind}s: "
            "leave it out (--augment none)"
        )


def find_source(data: str) -> Source:
    """The source that reads `data`: a built-in name, a path, or a Hugging Face id.

    Raises:
        InputError: it is none of them, or has options that a built-in one does not have.
    """
    own = builtin(data)
    if own is not None:
        return own.load
    path = Path(data).expanduser()
    try:
        if path.is_dir():
            return _folder_source(path)
        if path.exists():
            return table.load
        looks_local = (
            path.is_absolute()
            or data.startswith((".", "~"))
            or data.endswith(("/", "\\"))
            or path.suffix.lower() in table.SUFFIXES
            or (len(path.parts) > 1 and path.parent.is_dir())
        )
    except OSError as error:
        raise InputError(
            f"{data} cannot be read ({error.strerror}): check its permissions (--data)"
        ) from error
    if looks_local or data.count("/") > 1 or "\\" in data:
        raise InputError(f"there is no file or folder {data}: check the path (--data)")
    if _HUB_ID.fullmatch(data):
        return hub.load
    raise InputError(
        f"{unknown('data set', data, SOURCES)}; or give the path of a file or folder that exists, "
        "or a Hugging Face id as owner/name (--data)"
    )


def _folder_source(path: Path) -> Source:
    if hub.is_saved(path):
        return hub.load
    if table.split_files(path):
        return table.load
    has_folders = any(inside.is_dir() for inside in path.iterdir())
    tables = sorted(file.name for file in path.iterdir() if file.suffix.lower() in table.SUFFIXES)
    if tables and not has_folders:
        raise InputError(
            f"{path} has no training table: give the path of one file ({tables[0]}), or call it "
            f"train{Path(tables[0]).suffix} (--data)"
        )
    return folder.load


def _divide(raw: Raw, spec: DataSpec, seed: int) -> tuple[dict[str, Examples], dict[str, str]]:
    train = raw.splits["train"]
    origins = dict.fromkeys(("train", *raw.splits), "given by the source")
    parts = dict(raw.splits)
    if spec.per_class is not None:
        return _counted(raw, spec, seed)
    default = raw.validation_fraction
    fractions = {
        "test": spec.test_fraction,
        "validation": default if spec.validation_fraction is None else spec.validation_fraction,
    }
    for split, fraction in fractions.items():
        if split in parts:
            continue
        if fraction == 0:
            parts[split] = train.take(np.arange(0))
            origins[split] = "none"
            continue
        rest, part = cut(train.targets, fraction, raw.classes, stream(seed, split))
        parts[split], train = train.take(part), train.take(rest)
        origins[split] = f"{fraction:g} of the training examples, stratified"
        origins["train"] = "what the cut splits left"
    parts["train"] = train
    if spec.test_domain is not None:
        origins["test"] = f"all examples of the domain {spec.test_domain}"
        if origins["train"] == "given by the source":
            origins["train"] = "all examples of the other domains"
    return parts, origins


def _counted(raw: Raw, spec: DataSpec, seed: int) -> tuple[dict[str, Examples], dict[str, str]]:
    """Splits that hold the same number of every class."""
    if len(raw.splits) > 1 or not raw.classes:
        what = "brings splits of its own" if raw.classes else "has no classes"
        raise InputError(f"--per-class divides by class, and {raw.name} {what}: leave it out")
    everything = raw.splits["train"]
    counts = spec.counts_per_class()
    chosen = by_count(everything.targets, counts, raw.classes, stream(seed, "test"))
    names = ("train", "validation", "test")
    parts = {name: everything.take(part) for name, part in zip(names, chosen, strict=True)}
    told = [f"{count} of every class" if count else "none" for count in counts]
    return parts, dict(zip(names, told, strict=True))


def _report(
    raw: Raw,
    parts: Mapping[str, Examples],
    origins: Mapping[str, str],
    seed: int,
    noise: Mapping[str, Any],
) -> dict[str, Any]:
    report: dict[str, Any] = {
        "name": raw.name,
        "kind": raw.kind,
        "classes": list(raw.classes),
        "seed": int(seed),
    }
    for split, examples in parts.items():
        report[split] = {
            "count": len(examples),
            "origin": origins[split],
            **_told(examples, raw),
            **({"per_domain": per_domain(examples, raw.domains)} if raw.domains else {}),
        }
    if raw.source is not None:
        report["source"] = {
            "count": len(raw.source),
            **_told(raw.source, raw),
        }
    report["fingerprint"] = fingerprint(parts.values())
    return {**report, "label_noise": dict(noise), "details": raw.details}


def _told(examples: Examples, raw: Raw) -> dict[str, Any]:
    """The targets before label noise: how the data are, not how they were made to look."""
    if raw.classes:
        return {"per_class": _per_class(examples.targets, raw.classes)}
    values = examples.targets
    # Whole numbers that are no classes are placeholders: what is to be predicted is in the inputs.
    if not len(values) or values.dtype.kind == "i":
        return {}
    summary = {"min": values.min(), "median": np.median(values), "max": values.max()}
    return {"targets": {name: float(value) for name, value in summary.items()}}


def _per_class(targets: Targets, classes: tuple[str, ...]) -> dict[str, int]:
    counts = np.bincount(targets, minlength=len(classes))
    return {name: int(count) for name, count in zip(classes, counts, strict=True)}
