"""Which objectives and reparametrizations add to NSO on small noisy data: a 2 x 2 for each.

Digits as in `make demo` (200 samples, a fine-tuned MLP), two fifths of the labels drawn anew: the
test accuracy of plain training, of NSO, of what fills the other slot, and of both; and what both
are above the sum of the two gains. Strengths are those of the cards, not tuned, but for LoRA's
learning rate: at that of the others its adapters learn nothing, and it has the best of 0.02, 0.01
and 0.005 on two other seeds. What cuts images is measured on a small convolutional network instead.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flatminima.study import paired
from flatminima.study.compare import compare
from flatminima.study.numbers import difference
from flatminima.training.recipe import Recipe

SEEDS = 10
SETTING = {
    "data": "digits",
    "label_noise": 0.4,
    "model": "mlp",
    "sigma": 0.1,
    "lr": 0.05,
    "epochs": 60,
    "batch_size": 32,
    "measure": False,
    "keep_checkpoints": False,
}
ADDED = (
    "objective=label-smoothing(alpha=0.2)",
    "objective=mixup(alpha=0.2)",
    "objective=elr(lam=3)",
    "objective=ps-kd(alpha_T=0.8)",
    "objective=backward-correction(noise=0.36)",
    "objective=dual-t(start=20;correction=forward)",
    "objective=gradient-norm(weight=0.01)",
    "objective=trace-penalty(weight=0.001)",
    "reparam=distance-penalty(weight=0.01)",
    "reparam=distance-constraint(radius=3.0)",
    "reparam=lora(rank=8):lr=0.02",
    "reparam=weight-compander",
    "weight_decay=0.001",
)


IMAGES = {**SETTING, "model": "cnn"}
ADDED_TO_IMAGES = ("objective=mixup(alpha=0.2)", "objective=cutmix(alpha=1)")
"""What there is to compare with a network that is given images, as cutmix must be."""


def run() -> dict[str, Any]:
    """Test accuracies, and what was diverged, by method and seed."""
    images = compared(IMAGES, ADDED_TO_IMAGES)
    return {**compared(SETTING, ADDED), "seeds": SEEDS, "images": images}


def compared(setting: Mapping[str, Any], additions: Sequence[str]) -> dict[str, Any]:
    """The test accuracies of plain training and NSO, and of both with each addition."""
    methods = ["plain", "nso", *(f"{m}:{a}" for a in additions for m in ("plain", "nso"))]
    with tempfile.TemporaryDirectory() as folder:
        summary = compare(Recipe.from_flat(setting), methods, SEEDS, Path(folder) / "a", workers=1)
    accuracies = {
        method: dict(zip(summary["seeds"], entry["test_accuracy"]["values"], strict=True))
        for method, entry in summary["methods"].items()
        if "test_accuracy" in entry
    }
    return {
        "setting": dict(setting),
        "accuracies": accuracies,
        "failed": [{key: run[key] for key in ("method", "seed")} for run in summary["failed"]],
    }


def table(found: dict[str, Any]) -> str:
    """A row for each addition: the gains over plain training, and how far they add up."""
    note = (
        f"Points of test accuracy, paired over {found['seeds']} seeds, with 95 % Student's t "
        "intervals; runs that ended early (a loss that is not finite) are in no average."
    )
    images = {**found["images"], "seeds": found["seeds"]}
    given_images = "A small convolutional network, which is given images:"
    parts = [_rows(found, ADDED), note, given_images, _rows(images, ADDED_TO_IMAGES)]
    return "\n\n".join(parts) + "\n"


def _rows(found: Mapping[str, Any], additions: Sequence[str]) -> str:
    of = _by_seed(found)
    nothing = dict.fromkeys(range(found["seeds"]), 0.0)
    plain, nso = of["plain"], of["nso"]
    lines = [
        "| with | alone: gain over plain | with NSO: gain over plain | with NSO: gain over NSO | "
        "more than the sum of both gains | runs that ended early |",
        "| :-- | --: | --: | --: | --: | --: |",
        f"| nothing | {100 * sum(plain.values()) / len(plain):.1f} % | "
        f"{_points(nso, plain)} | | | {_failed(found, 'plain', 'nso')} |",
    ]
    for added in additions:
        alone, both = of.get(f"plain:{added}", {}), of.get(f"nso:{added}", {})
        shared = alone.keys() & both.keys() & plain.keys() & nso.keys()
        more = {s: both[s] - alone[s] - nso[s] + plain[s] for s in shared}
        cells = [
            _points(alone, plain),
            _points(both, plain),
            _points(both, nso),
            _points(more, nothing),
            _failed(found, f"plain:{added}", f"nso:{added}"),
        ]
        lines.append(f"| `{added}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def said_of(name: str, found: dict[str, Any]) -> str:
    """What was found of a method, in a sentence for its page; "" where it has no row."""
    parts = ((found, ADDED, "an MLP"), (found["images"], ADDED_TO_IMAGES, "a small CNN"))
    for part, additions, network in parts:
        of = _by_seed(part)
        for added in additions:
            asked = added.partition("=")[2]
            if asked.partition("(")[0] == name:
                alone = _points(of[f"plain:{added}"], of["plain"])
                both = _points(of[f"nso:{added}"], of["nso"])
                return (
                    f"Measured as `{asked}` on digits with two fifths of the labels drawn anew "
                    f"({network}), it changes the test accuracy by {alone} points beside plain "
                    f"training and by {both} on top of NSO ({found['seeds']} seeds, 95 % "
                    "intervals; see [what adds to what](combinations.md))."
                )
    return ""


def _by_seed(found: Mapping[str, Any]) -> dict[str, dict[int, float]]:
    return {
        method: {int(seed): value for seed, value in values.items() if value is not None}
        for method, values in found["accuracies"].items()
    }


def _points(values: Mapping[int, float], reference: Mapping[int, float]) -> str:
    if len(values.keys() & reference.keys()) < 2:
        return ""
    pair = paired(values, reference)
    return difference(pair.difference, pair.t_interval, 100)


def _failed(found: Mapping[str, Any], *methods: str) -> str:
    count = sum(run["method"] in methods for run in found["failed"])
    return f"{count} of {2 * found['seeds']}" if count else ""
