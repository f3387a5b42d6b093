"""The section of mistakes: what is got wrong most often, what a method mends and what it breaks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flatminima.report.blocks import Block, Gallery, Sample, Section
from flatminima.report.comparing import verdict
from flatminima.report.reading import Study

SHOWN = 8
"""Samples of a gallery."""

LONGEST = 400
"""Characters of a text that are shown."""


@dataclass
class Record:
    """What became of one test sample over all runs.

    Attributes:
        label: Its class.
        tested: Method to the seeds of the runs that were tested on it.
        wrong: Method to seed to the class that was predicted instead.
        example: What it looks like, as a run kept it.
    """

    label: str
    tested: dict[str, set[int]] = field(default_factory=dict)
    wrong: dict[str, dict[int, str]] = field(default_factory=dict)
    example: Mapping[str, Any] = field(default_factory=dict)

    def errors(self, method: str) -> int:
        """How many runs of a method got it wrong."""
        return len(self.wrong.get(method, {}))


def mistakes(study: Study) -> Section | None:
    """The samples that tell most; None where no run kept its predictions."""
    records = _gather(study)
    shown = {key: record for key, record in records.items() if record.example}
    if not shown:
        return None
    methods = [m for m in study.methods if any(m in r.tested for r in records.values())]

    def share(record: Record) -> float:
        tested = sum(map(len, record.tested.values()))
        # Of samples that few runs were tested on a share says little.
        return sum(record.errors(m) for m in methods) / (tested + 1)

    worst = sorted(shown.values(), key=share, reverse=True)
    words = (
        "The test samples that the largest share of runs got wrong; where seeds draw test sets of "
        "their own, a sample is not in all of them"
    )
    blocks: list[Block] = [_gallery("Most often wrong", words, worst, methods)]
    winner, reference = verdict(study).winner, study.reference
    if winner == reference and len(methods) > 1:
        winner = methods[1]
    if winner != reference and {winner, reference} <= set(methods):
        blocks += _changed(shown, reference, winner)
    return Section("mistakes", "Mistakes", blocks)


def _gather(study: Study) -> dict[str, Record]:
    records: dict[str, Record] = {}
    for run in study.all_runs():
        kept = run.extras.get("predictions", {})
        try:
            classes, examples = list(kept["classes"]), dict(kept["examples"])
            columns = (kept["id"], kept["label"], kept["predicted"])
            for key, label, predicted in zip(*columns, strict=True):
                record = records.setdefault(str(key), Record(str(classes[label])))
                record.tested.setdefault(run.method, set()).add(run.seed)
                if predicted != label:
                    record.wrong.setdefault(run.method, {})[run.seed] = str(classes[predicted])
                    example = examples.get(key)
                    record.example = example if isinstance(example, Mapping) else record.example
        except (KeyError, IndexError, TypeError, ValueError):
            continue
    return records


def _changed(records: Mapping[str, Record], reference: str, method: str) -> list[Block]:
    """What `method` gets right on seeds where the reference does not, and the other way round."""
    mended: list[tuple[float, Record]] = []
    broken: list[tuple[float, Record]] = []
    for record in records.values():
        both = record.tested.get(reference, set()) & record.tested.get(method, set())
        before = both & record.wrong.get(reference, {}).keys()
        after = both & record.wrong.get(method, {}).keys()
        net = len(before) - len(after)
        if both and net:
            (mended if net > 0 else broken).append((abs(net) / (len(both) + 1), record))
    blocks: list[Block] = []
    for title, pairs, word in (
        (f"What {method} mends", mended, "fewer"),
        (f"What {method} breaks", broken, "more"),
    ):
        chosen = [record for _, record in sorted(pairs, key=lambda pair: -pair[0])]
        caption = (
            f"{len(pairs)} test samples are wrong in {word} runs of {method} than of {reference} "
            "on the same seeds; those of the largest difference"
        )
        if chosen:
            blocks.append(_gallery(title, caption, chosen, [reference, method]))
    return blocks


def _gallery(title: str, caption: str, records: list[Record], methods: list[str]) -> Gallery:
    samples = []
    for record in records[:SHOWN]:
        votes = Counter(c for m in methods for c in record.wrong.get(m, {}).values())
        named = ", ".join(f"{name} ({count})" for name, count in votes.most_common(3))
        counts = [
            f"{m}: wrong in {record.errors(m)} of {len(record.tested[m])} runs"
            for m in methods
            if m in record.tested
        ]
        said = [f"label: {record.label}", *([f"predicted: {named}"] if named else []), *counts]
        samples.append(Sample(_text(record.example), png(record.example.get("png")), said))
    return Gallery(title, f"{caption}.", samples)


def _text(example: Mapping[str, Any]) -> str:
    text = example.get("text")
    if not isinstance(text, str):
        return ""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def png(image: object) -> str:
    """A picture's address; anything but a PNG in the page's own text could fetch something."""
    whole = isinstance(image, str) and image.isascii() and not set(image) - _BASE64
    return f"data:image/png;base64,{image}" if whole else ""


_BASE64 = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=")
