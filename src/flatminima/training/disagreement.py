"""The images on which runs disagree, and where each of them looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flatminima.explain import NormGrad, meta_saliency
from flatminima.progress import Progress, silent
from flatminima.training.data.device import to_device
from flatminima.training.data.encode import encode
from flatminima.training.explained import ExplainSettings, Maps
from flatminima.training.loader import loader
from flatminima.training.measuring import Target
from flatminima.training.predictions import example, identity_of
from flatminima.training.threads import fitting_threads

BATCH = 256


class Seen:
    """An opened target, and what it predicts of its test set.

    Args:
        target: With its weights in place.
        device: Where they are.
    """

    def __init__(self, target: Target, device: torch.device) -> None:
        self.target = target
        prepared = target.prepared
        found: list[Tensor] = []
        encoded = encode(prepared.data.test, prepared.data, prepared.built.encoding)
        batches = loader(encoded, BATCH)
        prepared.task.score(prepared.built.model, batches, device, found.append)
        confidence, predicted = torch.softmax(torch.cat(found).double(), dim=1).max(dim=1)
        self.predicted: list[int] = predicted.tolist()
        self.confidence: list[float] = confidence.tolist()
        self.labels: list[int] = prepared.data.test.targets.tolist()
        self.place = {identity_of(x): i for i, x in enumerate(prepared.data.test.inputs)}

    @property
    def accuracy(self) -> float:
        """Part of the test samples whose class is predicted."""
        right = [p == y for p, y in zip(self.predicted, self.labels, strict=True)]
        return sum(right) / len(right)

    def row(self, key: str) -> dict[str, Any]:
        """What became of a sample."""
        place, classes = self.place[key], self.target.prepared.data.classes
        return {
            "id": key,
            "label": classes[self.labels[place]],
            "predicted": classes[self.predicted[place]],
            "confidence": round(self.confidence[place], 4),
        }


def compare(
    seen: Mapping[str, Seen],
    settings: ExplainSettings,
    device: torch.device,
    progress: Progress = silent,
) -> tuple[dict[str, Maps], str]:
    """Maps of the images that tell the runs apart, or why there are none."""
    if not settings.images:
        return {}, ""
    if not seen:
        return {}, "no maps: there is no test set"
    if next(iter(seen.values())).target.prepared.data.kind != "image":
        return {}, "no maps: they are of images, and these data are none"
    keys, why = _chosen(seen, settings.images)
    if not keys:
        return {}, f"no maps: {why}"
    found = {}
    for name, one in seen.items():
        with fitting_threads(one.target.prepared.built.model):
            found[name] = _maps(one, keys, why, settings, device, progress)
    return found, ""


def _chosen(seen: Mapping[str, Seen], count: int) -> tuple[list[str], str]:
    """The ids of images, and how they were chosen."""
    runs = list(seen.values())
    common = [key for key in runs[0].place if all(key in run.place for run in runs)]
    if not common:
        return [], "the runs have no test image in common (give runs of one seed)"

    def surely(key: str) -> float:
        return min(run.confidence[run.place[key]] for run in runs)

    apart = [k for k in common if len({run.predicted[run.place[k]] for run in runs}) > 1]
    if apart:
        chosen = sorted(apart, key=surely, reverse=True)[:count]
        return chosen, (
            f"{len(apart)} of {len(common)} test images are not predicted alike; these with the "
            "most confidence"
        )
    wrong = [k for k in common if runs[0].predicted[runs[0].place[k]] != _label(runs[0], k)]
    alike = "" if len(runs) == 1 else "all test images are predicted alike; "
    if not wrong:
        return [], f"{alike}no test image is predicted wrongly"
    chosen = sorted(wrong, key=surely, reverse=True)[:count]
    return chosen, (
        f"{alike}{len(wrong)} of {len(common)} test images are predicted wrongly; these with the "
        "most confidence"
    )


def _label(run: Seen, key: str) -> int:
    return run.labels[run.place[key]]


def _maps(
    seen: Seen,
    keys: Sequence[str],
    why: str,
    settings: ExplainSettings,
    device: torch.device,
    progress: Progress,
) -> Maps:
    """The maps of a run for the classes that it predicts."""
    prepared = seen.target.prepared
    model, data = prepared.built.model, prepared.data
    places = [seen.place[key] for key in keys]
    part = data.test.take(np.array(places))
    # A flattened image has no places, and a perceptron flattens it itself.
    encoded = encode(part, data, replace(prepared.built.encoding, flatten=False))
    images = to_device(encoded.read(range(len(places))), device)
    target = torch.tensor([seen.predicted[place] for place in places], device=device)
    # What the recipe's data give is what the model was trained on, whatever its range.
    method = NormGrad.of(settings.method, model, settings.layers, pixel_range=None)
    if settings.meta_lr is None:
        maps = method.attribute(images, target, internal_batch_size=BATCH, progress=progress)
    else:
        maps = meta_saliency(
            method.attribute, model, images, target, lr=settings.meta_lr, progress=progress
        )
    return Maps(
        layers=tuple(method.layers or ()),
        why=why,
        rows=tuple(seen.row(key) for key in keys),
        images=images.cpu(),
        maps=maps.cpu(),
        examples=tuple(example(entry, data.kind)["png"] for entry in part.inputs),
    )
