"""What a run predicted for each test sample, and what the samples it got wrong look like."""

from __future__ import annotations

import base64
import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flatminima.errors import require
from flatminima.training.data.examples import DataSet
from flatminima.training.data.images import decode
from flatminima.training.tasks.rationales import Reply

NO_ANSWER = "no answer"
"""What stands for an answer that could not be read off a text."""

EXAMPLES = 60
"""Wrong samples that are kept to be looked at, those predicted with most confidence."""

LONGEST = 1000
"""Characters of a text that are kept."""

SIDE = 64
"""Pixels of an image that are kept, along its longer side."""

FEATURES = 12
"""Features of a table's row that are kept."""


class Predictions:
    """Takes the logits of the test set, or what was written to it, batch by batch.

    Args:
        data: Whose test set is predicted, in its order.
    """

    def __init__(self, data: DataSet) -> None:
        self._data = data
        self._predicted: list[int] = []
        self._confidence: list[float] = []
        self._replies: list[Reply] = []

    @property
    def taken(self) -> bool:
        """Whether there are any."""
        return bool(self._predicted or self._replies)

    def saw(self, outputs: Tensor | list[Reply]) -> None:
        """The logits of the next samples, shape (samples, classes), or the replies to them.

        Outputs of other tasks are not kept.
        """
        if isinstance(outputs, list):
            self._replies += outputs
            return
        if not self._data.classes:
            return
        confidence, predicted = torch.softmax(outputs.double(), dim=1).max(dim=1)
        self._predicted += predicted.tolist()
        self._confidence += confidence.tolist()

    def to_dict(self) -> dict[str, Any]:
        """As JSON values.

        Returns:
            "classes", names; "id", "label", "predicted" and "confidence", a value for each test
            sample, classes as indices; "examples", id to {"text": ...} or {"png": base64}. An id
            is a hash of the sample, so that runs with other splits call it the same. Of replies
            there is no confidence; the classes are all answers given, and "examples" are of the
            first wrong ones, with the text that was written as "generated".
        """
        if self._replies:
            return self._written()
        inputs, labels = self._data.test.inputs, self._data.test.targets.tolist()
        ids = [identity_of(entry) for entry in inputs]
        wrong = [i for i, label in enumerate(labels) if self._predicted[i] != label]
        wrong.sort(key=lambda i: -self._confidence[i])
        return {
            "classes": list(self._data.classes),
            "id": ids,
            "label": labels,
            "predicted": self._predicted,
            "confidence": [round(value, 4) for value in self._confidence],
            "examples": {
                ids[i]: example(inputs[i], self._data.kind) for i in sorted(wrong[:EXAMPLES])
            },
        }

    def _written(self) -> dict[str, Any]:
        ids = [identity_of(entry) for entry in self._data.test.inputs]
        given = [NO_ANSWER if r.answer is None else r.answer for r in self._replies]
        classes = sorted({*given, *(reply.wanted for reply in self._replies)})
        place = {name: index for index, name in enumerate(classes)}
        wrong = [i for i, reply in enumerate(self._replies) if given[i] != reply.wanted]
        return {
            "classes": classes,
            "id": ids,
            "label": [place[reply.wanted] for reply in self._replies],
            "predicted": [place[answer] for answer in given],
            "examples": {
                ids[i]: {
                    "text": _short(f"{self._replies[i].question}\n{self._replies[i].text.strip()}"),
                    "question": _short(self._replies[i].question),
                    "generated": _short(self._replies[i].text),
                    "answer": self._replies[i].wanted,
                }
                for i in wrong[:EXAMPLES]
            },
        }


def identity_of(entry: Any) -> str:
    """The id of a sample: a hash of what it holds."""
    if isinstance(entry, np.ndarray):
        known = entry.tobytes()
    elif isinstance(entry, bytes):
        known = entry
    elif isinstance(entry, Path):
        # As in a data set's fingerprint, files are not read again.
        known = repr((entry.name, entry.stat().st_size)).encode()
    else:
        known = repr(entry).encode()
    return hashlib.sha256(known).hexdigest()[:12]


def example(entry: Any, kind: str) -> dict[str, str]:
    """A sample as people see it: {"text": ...} or {"png": base64}."""
    if kind == "image":
        return {"png": _png(entry)}
    if isinstance(entry, np.ndarray):
        values = ", ".join(f"{value:.3g}" for value in entry[:FEATURES])
        return {"text": f"{values}{', …' if len(entry) > FEATURES else ''}"}
    text = entry if isinstance(entry, str) else "\n".join(entry)
    return {"text": _short(text)}


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _png(entry: Any) -> str:
    if not isinstance(entry, np.ndarray):
        return png(decode(entry))
    pixels = (entry.clip(0, 1) * 255).round().astype(np.uint8)
    shown = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
    return png(require("PIL.Image", "cli").fromarray(shown))


def png(image: Any) -> str:
    """A picture of PIL's as base64, its longer side `SIDE` or less."""
    # It only shrinks.
    image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    image.save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()
