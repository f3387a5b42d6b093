"""What there is to say of a trained run: the tilt of its head, and where it looks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from flatminima.errors import InputError, require, unknown
from flatminima.explain import METHODS, PairTilts, TiltingPlane, overlay
from flatminima.training.predictions import SIDE, png

PAIRS = 50
"""Pairs of classes that a file tells of, the most tilted."""

POINTS = 120
"""Samples of a tilting plane that a file keeps."""


@dataclass(frozen=True)
class ExplainSettings:
    """What to explain, and how.

    Attributes:
        method: Of the maps, a name in `flatminima.explain.METHODS`.
        layers: Names or globs; None chooses, see `default_layers`.
        meta_lr: The step of meta-saliency; None for none.
        images: How many images have maps; 0 for none.
        head: The linear layer whose tilt is measured; None for the one that gives the logits.
    """

    method: str = "norm-grad"
    layers: tuple[str, ...] | None = None
    meta_lr: float | None = None
    images: int = 6
    head: str | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise unknown("saliency method", self.method, METHODS)
        if self.images < 0:
            raise InputError(f"images is {self.images}: give 0 or more")
        if self.meta_lr is not None and not 0 <= self.meta_lr < math.inf:
            raise InputError(f"meta_lr is {self.meta_lr}: give a finite number of 0 or above")


@dataclass(frozen=True, eq=False)
class Maps:
    """The maps of one run.

    Attributes:
        layers: What they are of.
        why: How the images were chosen, in words.
        rows: What became of each image: id, label, predicted class, confidence.
        images: As the network takes them, (n, c, h, w).
        maps: (n, 1, h, w), in [0, 1].
        examples: The images as people see them, base64 of PNG.
    """

    layers: tuple[str, ...]
    why: str
    rows: tuple[Mapping[str, Any], ...]
    images: Tensor
    maps: Tensor
    examples: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Explanation:
    """What there is to say of one run.

    Attributes:
        name: As it was given, or its place in a study.
        tilts: Of its head, on its training samples; None where it has no linear head.
        plane: Of the most tilted pair.
        accuracy: On the test set, in [0, 1]; None where there is none.
        maps: None where there are none.
        notes: Why something is not there.
        settings: How it was asked for.
        file: Where it belongs; None for what is no run.
    """

    name: str
    tilts: PairTilts | None
    plane: TiltingPlane | None
    accuracy: float | None
    maps: Maps | None
    notes: tuple[str, ...]
    settings: ExplainSettings
    file: Path | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, its maps as PNG in base64."""
        return {
            "test_accuracy": self.accuracy,
            "head": None if self.tilts is None else _tilts(self.tilts),
            "plane": None if self.plane is None else _plane(self.plane),
            "maps": None if self.maps is None else self._maps(self.maps),
            "notes": list(self.notes),
        }

    def _maps(self, found: Maps) -> dict[str, Any]:
        return {
            "method": self.settings.method,
            "meta_lr": self.settings.meta_lr,
            "layers": list(found.layers),
            "why": found.why,
            "images": [
                {**row, "image": shown, "map": _picture(image, one, len(found.layers))}
                for row, shown, image, one in zip(
                    found.rows, found.examples, found.images, found.maps, strict=True
                )
            ],
        }


def _picture(image: Tensor, saliency: Tensor, layers: int) -> str:
    """An overlay as base64 of PNG; small ones are enlarged, pixel by pixel.

    A product of layers is shown as their geometric mean, or it would be seen at a pixel or two.
    """
    pil = require("PIL.Image", "cli")
    shown = pil.fromarray(overlay(image, saliency, power=1 / layers))
    larger = max(1, SIDE // max(shown.size))
    return png(shown.resize((shown.width * larger, shown.height * larger), pil.Resampling.NEAREST))


def _tilts(tilts: PairTilts) -> dict[str, Any]:
    found = tilts.to_dict()
    found["pair_count"] = len(tilts.pairs)
    found["pairs"] = [tilts.pairs[pair].to_dict() for pair in tilts.most_tilted(PAIRS)]
    return found


def _plane(plane: TiltingPlane) -> dict[str, Any]:
    kept = np.linspace(0, len(plane.points) - 1, min(POINTS, len(plane.points))).round().astype(int)
    return {
        "classes": list(plane.report.classes),
        "degrees": plane.report.degrees,
        "points": [[float(f"{x:.4g}") for x in point] for point in plane.points[kept]],
        "labels": plane.labels[kept].tolist(),
        "normal": list(plane.normal),
        "offset": plane.offset,
        "samples": len(plane.points),
    }
