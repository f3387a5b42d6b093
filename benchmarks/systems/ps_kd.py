"""Progressive self-distillation against over-confidence.

The digits of scikit-learn (8 x 8) with fixed noise N(0, 0.3^2) on all pixels, 400 to train on and
997 to test, none, 20 % or 40 % of the training labels drawn anew among the ten classes. A network
64-128-128-10, SGD of learning rate 0.05, Nesterov momentum 0.9, weight decay 5e-4, batches of 32,
100 epochs, the rate a tenth from epochs 50 and 75. Each batch gets fresh noise N(0, 0.2^2), the
augmentation; without it (one row of the table) there is nothing to distil. A seed draws the split,
the noise, the wrong labels, the weights and the order; methods of one seed share all of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from flatminima import NSO, Plain, PSKDLoss
from flatminima.study import mean_ci, paired

SEEDS = range(10)
NOISES, JITTER = (0.0, 0.2, 0.4), 0.2
EPOCHS, BATCH, CLASSES, SIGMA = 100, 32, 10, 0.05
REFERENCE = "cross-entropy"
BOTH, DISTILLED = "NSO, PS-KD, alpha 0.8", "PS-KD, alpha 0.8"
METHODS: dict[str, dict[str, float]] = {
    REFERENCE: {},
    "label smoothing 0.1": {"smoothing": 0.1},
    "PS-KD, alpha 0.5": {"alpha": 0.5},
    DISTILLED: {"alpha": 0.8},
}
METRICS = {"error": "test error, %", "nll": "cross-entropy, nats", "ece": "calibration error, %"}


class Task:
    """One seed's data."""

    def __init__(self, seed: int, noise: float) -> None:
        random = np.random.default_rng(seed)
        data = load_digits()
        order = random.permutation(len(data.target))
        pixels = data.data[order] / 16 + random.normal(0, 0.3, data.data.shape)
        x = torch.tensor(pixels, dtype=torch.float32)
        y = torch.tensor(data.target[order], dtype=torch.int64)
        self.x, self.test_x, self.test_y = x[:400], x[400:1397], y[400:1397]
        drawn = torch.tensor(random.random(400) < noise)
        anew = torch.tensor(random.integers(0, CLASSES, 400))
        self.given = torch.where(drawn, anew, y[:400])


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    hidden = (nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU())
    return nn.Sequential(*hidden, nn.Linear(128, CLASSES))


def calibration_error(logits: Tensor, labels: Tensor, bins: int = 10) -> float:
    """Between confidence and accuracy in bins of equal width, weighted by how many are in them."""
    confidence, said = logits.softmax(1).max(1)
    place = (confidence * bins).long().clamp_max(bins - 1)
    gap = torch.zeros(bins, dtype=torch.float64)
    gap.index_add_(0, place, (confidence - (said == labels).float()).double())
    return gap.abs().sum().item() / len(labels)


def train(
    seed: int,
    noise: float,
    jitter: float = JITTER,
    alpha: float = 0.0,
    smoothing: float = 0.0,
    sigma: float = 0.0,
) -> dict[str, float]:
    task, model = Task(seed, noise), network(seed)
    loss = PSKDLoss(len(task.x), CLASSES, alpha, EPOCHS)
    sgd = torch.optim.SGD(
        model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    schedule = torch.optim.lr_scheduler.MultiStepLR(sgd, [50, 75])
    optimizer = NSO(sgd, sigma=sigma, seed=seed) if sigma else Plain(sgd)
    random = torch.Generator().manual_seed(seed)
    for epoch in range(EPOCHS):
        loss.set_epoch(epoch)
        for index in torch.randperm(len(task.x), generator=random).split(BATCH):
            x, y = task.x[index], task.given[index]
            x = x + jitter * torch.randn(x.shape, generator=random)
            with loss.one_step():
                for _ in optimizer.passes():
                    z = model(x)
                    smoothed = cross_entropy(z, y, label_smoothing=smoothing)
                    (smoothed if smoothing else loss(z, y, index)).backward()
            optimizer.step()
            optimizer.zero_grad()
        schedule.step()
    with torch.no_grad():
        z = model(task.test_x)
    return {
        "error": 100 * (z.argmax(1) != task.test_y).double().mean().item(),
        "nll": cross_entropy(z, task.test_y).item(),
        "ece": 100 * calibration_error(z, task.test_y),
    }


def run() -> dict[str, Any]:
    torch.set_num_threads(1)
    found: dict[str, Any] = {"seeds": list(SEEDS), "settings": {}}
    nso = {"NSO, cross-entropy": {"sigma": SIGMA}, BOTH: {"alpha": 0.8, "sigma": SIGMA}}
    few = {name: METHODS[name] for name in (REFERENCE, DISTILLED)}
    settings: dict[str, tuple[dict[str, Any], Any]] = {
        "clean labels": ({"noise": 0.0}, METHODS),
        "20 % drawn anew": ({"noise": 0.2}, {**METHODS, **nso}),
        "40 % drawn anew": ({"noise": 0.4}, METHODS),
        "20 %, without augmentation": ({"noise": 0.2, "jitter": 0.0}, few),
    }
    for setting, (how, methods) in settings.items():
        values = {name: {s: train(s, **how, **own) for s in SEEDS} for name, own in methods.items()}
        found["settings"][setting] = {
            "methods": {
                name: {m: summary([run[m] for run in runs.values()]) for m in METRICS}
                for name, runs in values.items()
            },
            "paired": {
                name: {m: difference(values[name], values[REFERENCE], m) for m in METRICS}
                for name in values
                if name != REFERENCE
            },
        }
        if BOTH in values:
            found["nso_over_ps_kd"] = {
                m: difference(values[BOTH], values[DISTILLED], m) for m in METRICS
            }
    return found


def summary(values: list[float]) -> dict[str, Any]:
    found = mean_ci(values)
    return {"mean": found.mean, "ci95": found.interval, "values": values}


def difference(own: Any, other: Any, metric: str) -> dict[str, Any]:
    found = paired(*({s: run[metric] for s, run in runs.items()} for runs in (own, other)))
    return {"difference": found.difference, "ci95": found.t_interval, "p": found.p_value}


def number(entry: dict[str, Any], metric: str, sign: str = "") -> str:
    digits = f"{sign}.3f" if metric == "nll" else f"{sign}.1f"
    value = entry.get("mean", entry.get("difference"))
    low, high = (format(bound, digits) for bound in entry["ci95"])
    return f"{format(value, digits)} [{low}, {high}]"


def table(found: dict[str, Any]) -> str:
    head = " | ".join(METRICS.values())
    lines = [f"| | | {head} |", "|---" * (len(METRICS) + 2) + "|"]
    for setting, both in found["settings"].items():
        for name, metrics in both["methods"].items():
            cells = " | ".join(number(metrics[m], m) for m in METRICS)
            lines.append(f"| {setting} | {name} | {cells} |")
    lines += ["", f"Differences to {REFERENCE} on the same seeds:", ""]
    lines += [f"| | | {head} |", "|---" * (len(METRICS) + 2) + "|"]
    for setting, both in found["settings"].items():
        for name, metrics in both["paired"].items():
            cells = " | ".join(number(metrics[m], m, "+") for m in METRICS)
            lines.append(f"| {setting} | {name} | {cells} |")
    cells = " | ".join(number(found["nso_over_ps_kd"][m], m, "+") for m in METRICS)
    lines.append(f"| 20 % drawn anew | NSO with PS-KD, to PS-KD alone | {cells} |")
    lines += ["", f"Means over {len(found['seeds'])} seeds with 95 % intervals (Student's t)."]
    return "\n".join(lines)
