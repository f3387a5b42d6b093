"""Which objectives and reparametrizations add to NSO on small noisy data: a 2 x 2 for each.

Digits as in `make demo` (200 samples, a fine-tuned MLP), two fifths of the labels drawn anew: the
test accuracy of plain training, of NSO, of what fills the other slot, and of both; and what both
are above the sum of the two gains. Strengths are those of the cards, not tuned.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
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
    "reparam=lora(rank=8;alpha=32)",
    "reparam=weight-compander",
    "weight_decay=0.001",
)


def run() -> dict[str, Any]:
    """Test accuracies, and what was diverged, by method and seed."""
    methods = ["plain", "nso", *(f"{m}:{a}" for a in ADDED for m in ("plain", "nso"))]
    with tempfile.TemporaryDirectory() as folder:
        summary = compare(Recipe.from_flat(SETTING), methods, SEEDS, Path(folder) / "a", workers=1)
    accuracies = {
        method: dict(zip(summary["seeds"], entry["test_accuracy"]["values"], strict=True))
        for method, entry in summary["methods"].items()
        if "test_accuracy" in entry
    }
    return {
        "setting": SETTING,
        "seeds": SEEDS,
        "accuracies": accuracies,
        "failed": [{key: run[key] for key in ("method", "seed")} for run in summary["failed"]],
    }


def table(found: dict[str, Any]) -> str:
    """A row for each addition: the gains over plain training, and how far they add up."""
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
    for added in ADDED:
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
    note = (
        f"Points of test accuracy, paired over {found['seeds']} seeds, with 95 % Student's t "
        "intervals; runs that ended early (a loss that is not finite) are in no average."
    )
    return "\n".join([*lines, "", note, ""])


def said_of(name: str, found: dict[str, Any]) -> str:
    """What was found of a method, in a sentence for its page; "" where it has no row."""
    of = _by_seed(found)
    for added in ADDED:
        asked = added.partition("=")[2]
        if asked.partition("(")[0] == name:
            alone = _points(of[f"plain:{added}"], of["plain"])
            both = _points(of[f"nso:{added}"], of["nso"])
            return (
                f"Measured as `{asked}` on digits with two fifths of the labels drawn anew, it "
                f"changes the test accuracy by {alone} points beside plain training and by {both} "
                f"on top of NSO ({found['seeds']} seeds, 95 % intervals; see [what adds to "
                "what](combinations.md))."
            )
    return ""


def _by_seed(found: dict[str, Any]) -> dict[str, dict[int, float]]:
    return {
        method: {int(seed): value for seed, value in values.items() if value is not None}
        for method, values in found["accuracies"].items()
    }


def _points(values: Mapping[int, float], reference: Mapping[int, float]) -> str:
    if len(values.keys() & reference.keys()) < 2:
        return ""
    pair = paired(values, reference)
    return difference(pair.difference, pair.t_interval, 100)


def _failed(found: dict[str, Any], *methods: str) -> str:
    count = sum(run["method"] in methods for run in found["failed"])
    return f"{count} of {2 * found['seeds']}" if count else ""
