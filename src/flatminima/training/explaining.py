"""Explaining what is trained already: where runs look, and how their heads are tilted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flatminima.errors import InputError
from flatminima.explain import PairTilts, TiltingPlane, read_head, tilt_pairs, tilting_plane
from flatminima.explain.heads import Head, NoHead
from flatminima.files import read_json
from flatminima.progress import Progress, silent
from flatminima.training.data.device import to_device
from flatminima.training.data.encode import encode
from flatminima.training.disagreement import BATCH, Seen, compare
from flatminima.training.explained import ExplainSettings, Explanation
from flatminima.training.loader import loader
from flatminima.training.measuring import Target, open_target
from flatminima.training.processes import own_device
from flatminima.training.threads import fitting_threads

STUDY = "study.json"

MOST_COMPARED = 4
"""Methods of a study whose maps are made."""


def explain_targets(
    targets: Sequence[str],
    said: Mapping[str, Any],
    settings: ExplainSettings,
    *,
    progress: Progress = silent,
    say: Callable[[str], None] = print,
) -> list[Explanation]:
    """The tilting of each target's head, and maps of the images on which targets disagree.

    Args:
        targets: Runs, checkpoints or transformers models, all on one data set; or one study, whose
            runs are all measured, and its first methods compared on the first seed they share.
        said: Recipe fields, flat, that override the runs' own.
        settings: What and how.
        progress: Told how many runs are done, and how far each part of one is.
        say: Told what a user should read.

    Raises:
        InputError: targets that are none of these, predict no classes or are on different data; an
            unknown method or layer.
    """
    names, compared = _expand(targets)
    device = own_device()
    measured: dict[str, Explanation] = {}
    opened: dict[str, Seen] = {}
    known: tuple[str, tuple[str, ...]] | None = None
    for done, name in enumerate(names):
        progress("explaining", done, len(names))
        target = open_target(name, said, progress=progress, say=say)
        data = target.prepared.data
        if not data.classes or data.task != "classification":
            raise InputError(f"{name} predicts no classes, and explanations are of classifiers")
        if known is not None and known != (data.kind, data.classes):
            raise InputError(f"runs on different data are not compared: {name} is on {data.name}")
        known = data.kind, data.classes
        target.prepared.built.model.to(device)
        with fitting_threads(target.prepared.built.model):
            seen = Seen(target, device) if len(data.test) else None
            measured[name] = _measure(name, target, seen, settings, device, progress)
        if name in compared and seen is not None:
            opened[name] = seen
    progress("explaining", len(names), len(names))
    maps, note = compare(opened, settings, device, progress)
    return [
        replace(
            one,
            maps=maps.get(name),
            notes=(*one.notes, *([note] if note and name in compared else [])),
        )
        for name, one in measured.items()
    ]


def _expand(targets: Sequence[str]) -> tuple[list[str], list[str]]:
    """The runs that targets mean, and those among them that are compared."""
    if len({Path(target).resolve() for target in targets}) < len(targets):
        raise InputError(f"a run is given twice: {', '.join(targets)}")
    studies = [target for target in targets if (Path(target) / STUDY).is_file()]
    if not studies:
        return list(targets), list(targets)
    if len(targets) > 1:
        raise InputError(f"{studies[0]} is a study: explain it alone, or give runs in it")
    told = read_json(Path(studies[0]) / STUDY)
    methods = told.get("methods", []) if isinstance(told, Mapping) else []
    homes = [Path(studies[0]) / str(method).replace(":", ",") for method in methods]
    runs = [run for home in homes for run in sorted(home.glob("seed-*"), key=_seed)]
    runs = [run for run in runs if (run / "results.json").is_file()]
    if not runs:
        raise InputError(f"{studies[0]} has no finished runs: explain it when some are")
    by_seed: dict[int, list[str]] = {}
    for run in runs:
        by_seed.setdefault(_seed(run), []).append(str(run))
    first = max(by_seed, key=lambda seed: (len(by_seed[seed]), -seed))
    return [str(run) for run in runs], by_seed[first][:MOST_COMPARED]


def _seed(run: Path) -> int:
    digits = run.name.removeprefix("seed-")
    return int(digits) if digits.isdigit() else 0


def _measure(
    name: str,
    target: Target,
    seen: Seen | None,
    settings: ExplainSettings,
    device: torch.device,
    progress: Progress,
) -> Explanation:
    """The tilting of a target's head."""
    prepared = target.prepared
    train, classes = prepared.data.train, prepared.data.classes
    encoded = encode(train, prepared.data, prepared.built.encoding)
    batches = loader(encoded, BATCH)
    moved = (to_device(batch, device) for batch in batches)
    tilts, plane = None, None
    notes: tuple[str, ...] = ()
    try:
        head = read_head(
            *(prepared.built.model, moved, settings.head),
            progress=lambda stage, done, _: progress(stage, done, len(batches)),
        )
    except NoHead as error:
        notes = (str(error),)
    else:
        labels = np.array(classes, dtype=object)[head.targets]
        try:
            tilts = tilt_pairs(
                *(head.weight, head.bias, head.features, labels, classes),
                of=head.name,
                progress=progress,
            )
            plane = _most_tilted(head, labels, classes, tilts)
        # A run that diverged or collapsed is no reason to keep the others from being told.
        except InputError as error:
            notes = (f"the tilt of {head.name} cannot be measured: {error}",)
    return Explanation(
        name=name,
        tilts=tilts,
        plane=plane,
        accuracy=None if seen is None else seen.accuracy,
        maps=None,
        notes=notes,
        settings=settings,
        file=target.file("explain"),
    )


def _most_tilted(
    head: Head, labels: NDArray[Any], classes: Sequence[str], tilts: PairTilts
) -> TiltingPlane:
    (pair,) = tilts.most_tilted()
    low, high = (list(classes).index(name) for name in pair)
    here = np.isin(head.targets, (low, high))
    plane = tilting_plane(
        head.weight[high] - head.weight[low],
        float(head.bias[high] - head.bias[low]),
        head.features[here],
        head.targets[here],
    )
    return replace(plane, report=tilts.pairs[pair])
