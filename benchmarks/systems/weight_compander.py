"""Bounded companding weights where a network is much too large for its few, partly wrong labels.

The digits of scikit-learn (8 x 8) with fixed noise N(0, 0.3^2) on all pixels, 300 to train on and
997 to test, 20 % of the training labels drawn anew among the ten classes. A network 64-256-256-10,
SGD of learning rate 0.02, momentum 0.9, weight decay 1e-3 (on what is trained, so on the latents),
batches of 32, 80 epochs. A seed draws the split, the noise, the wrong labels, the weights and the
order; methods of one seed share all of them. Of the weights of all three layers together: the
largest, how many are below a tenth of their standard deviation, and the kurtosis (3 for a normal
distribution, 1 for two values). Larger weight decay is there to tell bounding from decay.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from flatminima import NSO, Plain
from flatminima.reparam import bake_, compand_
from flatminima.study import mean_ci, paired

SEEDS = range(10)
EPOCHS, BATCH, CLASSES, SIGMA = 80, 32, 10, 0.05
REFERENCE = "plain weights"
METHODS: dict[str, dict[str, Any]] = {
    REFERENCE: {},
    "plain, weight decay 1e-2": {"decay": 1e-2},
    "plain, weight decay 3e-2": {"decay": 3e-2},
    "plain, weight decay 4e-2": {"decay": 4e-2},
    "plain, weight decay 5e-2": {"decay": 5e-2},
    "a 0.2, b 0.1": {"a": 0.2, "b": 0.1},
    "a 0.1, b 0.1": {"a": 0.1, "b": 0.1},
    "a 0.1, b 0.05": {"a": 0.1, "b": 0.05},
    "a 0.05, b 0.05": {"a": 0.05, "b": 0.05},
    "a, b 1 standard deviation": {"a": 1.0, "b": 1.0, "relative": True},
    "the defaults": {"a": None},
    "learned, from 0.1, 0.1": {"a": 0.1, "b": 0.1, "learnable": True},
    "learned, from 0.2, 0.1": {"a": 0.2, "b": 0.1, "learnable": True},
    "NSO, plain weights": {"sigma": SIGMA},
    "NSO, a 0.05, b 0.05": {"a": 0.05, "b": 0.05, "sigma": SIGMA},
}
METRICS = {
    "test": "test accuracy, %",
    "train": "training accuracy (labels as given), %",
    "largest": "largest weight",
    "small": "near 0, %",
    "kurtosis": "kurtosis",
}
PERCENT = ("test", "train", "small")


def task(seed: int) -> tuple[torch.Tensor, ...]:
    random = np.random.default_rng(seed)
    data = load_digits()
    order = random.permutation(len(data.target))
    pixels = data.data[order] / 16 + random.normal(0, 0.3, data.data.shape)
    x = torch.tensor(pixels, dtype=torch.float32)
    y = torch.tensor(data.target[order], dtype=torch.int64)
    drawn = torch.tensor(random.random(300) < 0.2)
    given = torch.where(drawn, torch.tensor(random.integers(0, CLASSES, 300)), y[:300])
    return x[:300], given, x[300:1297], y[300:1297]


def train(
    seed: int, decay: float = 1e-3, sigma: float = 0.0, **compander: Any
) -> tuple[dict[str, float], torch.Tensor]:
    x, given, test_x, test_y = task(seed)
    torch.manual_seed(seed)
    hidden = (nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU())
    model = nn.Sequential(*hidden, nn.Linear(256, CLASSES))
    if compander:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a of 0.05 clips many of the first layer's weights
            compand_(model, **compander)
    # Weight decay spares log a and log b; biases are decayed in all methods alike.
    spared = [p for p in model.parameters() if p.dim() == 0]
    decayed = [p for p in model.parameters() if p.dim() > 0]
    groups = [{"params": decayed, "weight_decay": decay}]
    if spared:
        groups.append({"params": spared, "weight_decay": 0.0})
    sgd = torch.optim.SGD(groups, lr=0.02, momentum=0.9)
    optimizer = NSO(sgd, sigma=sigma, seed=seed) if sigma else Plain(sgd)
    random = torch.Generator().manual_seed(seed)
    for _ in range(EPOCHS):
        for index in torch.randperm(len(x), generator=random).split(BATCH):
            for _ in optimizer.passes():
                cross_entropy(model(x[index]), given[index]).backward()
            optimizer.step()
            optimizer.zero_grad()
    bake_(model)
    with torch.no_grad():
        w = torch.cat([p.flatten() for p in model.parameters() if p.dim() > 1]).double()
        centred, deviation = w - w.mean(), w.std()
        found = {
            "test": 100 * (model(test_x).argmax(1) == test_y).double().mean().item(),
            "train": 100 * (model(x).argmax(1) == given).double().mean().item(),
            "largest": w.abs().max().item(),
            "small": 100 * (w.abs() < 0.1 * deviation).double().mean().item(),
            "kurtosis": (centred.pow(4).mean() / centred.square().mean().square()).item(),
        }
    return found, w


SHOWN = (REFERENCE, "a 0.2, b 0.1", "a 0.05, b 0.05")
EDGES = np.linspace(-0.3, 0.3, 121)


def run() -> dict[str, Any]:
    torch.set_num_threads(1)
    values: dict[str, dict[int, dict[str, float]]] = {}
    shapes: dict[str, list[float]] = {}
    for name, how in METHODS.items():
        values[name] = {}
        for seed in SEEDS:
            values[name][seed], weights = train(seed, **how)
            if seed == 0 and name in SHOWN:
                shapes[name] = np.histogram(weights.numpy(), EDGES, density=True)[0].tolist()
    return {
        "seeds": list(SEEDS),
        "methods": {
            name: {m: summary([run[m] for run in runs.values()]) for m in METRICS}
            for name, runs in values.items()
        },
        "paired": {
            name: {m: difference(runs, values[REFERENCE], m) for m in METRICS}
            for name, runs in values.items()
            if name != REFERENCE
        },
        "density": {"edges": EDGES.tolist(), "of seed 0": shapes},
    }


def summary(values: list[float]) -> dict[str, Any]:
    found = mean_ci(values)
    return {"mean": found.mean, "ci95": found.interval, "values": values}


def difference(own: Any, other: Any, metric: str) -> dict[str, Any]:
    found = paired(*({s: run[metric] for s, run in runs.items()} for runs in (own, other)))
    return {"difference": found.difference, "ci95": found.t_interval, "p": found.p_value}


def number(entry: dict[str, Any], metric: str, sign: str = "") -> str:
    digits = f"{sign}.{1 if metric in PERCENT else 2}f"
    value = entry.get("mean", entry.get("difference"))
    low, high = (format(bound, digits) for bound in entry["ci95"])
    return f"{format(value, digits)} [{low}, {high}]"


def table(found: dict[str, Any]) -> str:
    head = "| | " + " | ".join(METRICS.values()) + " |"
    lines = [head, "|---" * (len(METRICS) + 1) + "|"]
    for name, metrics in found["methods"].items():
        lines.append(f"| {name} | " + " | ".join(number(metrics[m], m) for m in METRICS) + " |")
    lines += ["", f"Differences to {REFERENCE} on the same seeds:", "", head]
    lines.append("|---" * (len(METRICS) + 1) + "|")
    for name, metrics in found["paired"].items():
        cells = " | ".join(number(metrics[m], m, "+") for m in METRICS)
        lines.append(f"| {name} | {cells} |")
    lines += ["", f"Means over {len(found['seeds'])} seeds with 95 % intervals (Student's t)."]
    return "\n".join(lines)


def draw(found: dict[str, Any], folder: Path) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 3))
    edges = found["density"]["edges"]
    for name, density in found["density"]["of seed 0"].items():
        axes.stairs(density, edges, label=name)
    axes.set_xlabel("weight after training, all layers")
    axes.set_ylabel("density")
    axes.set_ylim(0, 15)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(folder / "system-weight-compander.svg", metadata={"Date": None})
    pyplot.close(figure)
