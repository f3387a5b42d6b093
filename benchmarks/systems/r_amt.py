"""Masks over a frozen network that is to learn a new task from few samples and keep the old one.

A network 64-256-256-10 is trained on 900 digits of scikit-learn (8 x 8), each batch moved by one
random pixel and with noise N(0, 0.1^2), Adam of learning rate 1e-3, batches of 32, 60 epochs. The
new task: the digits mirrored, 8 of each class (of those 900), Adam of learning rate 8e-5 with a
cosine schedule, batches of 32, 100 epochs, 300 steps; weights frozen, masks over all three layers.
Tested on the other 897 digits, mirrored and not. A seed draws split, weights, order and dropped
gradients; methods of one seed share the trained network and the 80 samples.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from flatminima import NSO, RAMT, Plain, Supervised
from flatminima.study import mean_ci, paired

SEEDS = range(10)
EPOCHS, BATCH, CLASSES, SHOTS, RATE = 100, 32, 10, 8, 8e-5
FROZEN, FULL, BARE, WHOLE, NOISY = (
    "the frozen network",
    "all weights, Adam 1e-3",
    "masks, c 0, l 0",
    "masks, c 1e-4, l 1",
    "NSO (sigma 3e-4), masks, c 1e-4, l 1",
)
METHODS: dict[str, dict[str, Any]] = {
    FROZEN: {},
    FULL: {"rate": 1e-3},
    "all weights, Adam 8e-5": {"rate": RATE},
    BARE: {"penalty": 0.0, "strength": 0.0},
    "masks, c 1e-4, l 0": {"strength": 0.0},
    "masks, c 0, l 1": {"penalty": 0.0},
    WHOLE: {},
    "masks, c 1e-4, l 0.3": {"strength": 0.3},
    NOISY: {"sigma": 3e-4},
    "NSO (sigma 1e-3), masks, c 1e-4, l 1": {"sigma": 1e-3},
}
METRICS = {
    "new": "new task, test accuracy, %",
    "old": "old task, test accuracy, %",
    "masked": "weights off, %",
}


class Task:
    """One seed's data and the network trained on the old task."""

    def __init__(self, seed: int) -> None:
        data = load_digits()
        order = np.random.default_rng(seed).permutation(len(data.target))
        x = torch.tensor(data.data[order] / 16, dtype=torch.float32)
        y = torch.tensor(data.target[order], dtype=torch.int64)
        self.test_x, self.test_y = x[900:], y[900:]
        few = torch.cat([torch.nonzero(y[:900] == c)[:SHOTS, 0] for c in range(CLASSES)])
        self.x, self.y = mirrored(x[few]), y[few]
        self.network = pretrained(x[:900], y[:900], seed)


def mirrored(x: Tensor) -> Tensor:
    return x.view(-1, 8, 8).flip(2).flatten(1)


def pretrained(x: Tensor, y: Tensor, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    hidden = (nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU())
    model = nn.Sequential(*hidden, nn.Linear(256, CLASSES))
    adam = torch.optim.Adam(model.parameters(), lr=1e-3)
    random = torch.Generator().manual_seed(seed)
    for _ in range(60):
        for index in torch.randperm(len(x), generator=random).split(BATCH):
            down, right = torch.randint(-1, 2, (2,), generator=random).tolist()
            moved = x[index].view(-1, 8, 8).roll((down, right), (1, 2)).flatten(1)
            noisy = moved + 0.1 * torch.randn(moved.shape, generator=random)
            adam.zero_grad()
            cross_entropy(model(noisy), y[index]).backward()
            adam.step()
    return model


def train(task: Task, seed: int, name: str) -> dict[str, float]:
    how = dict(METHODS[name])
    model, objective, free = copy.deepcopy(task.network), Supervised(), None
    rate, sigma = how.pop("rate", RATE), how.pop("sigma", 0.0)
    if "masks" in name:
        free = RAMT(model, seed=seed, **how)
        objective = free.objective(objective)
    trained = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.Adam(trained, lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, EPOCHS)
    optimizer = NSO(adam, sigma=sigma, seed=seed) if sigma else Plain(adam)
    random = torch.Generator().manual_seed(seed)
    step = 0
    for _ in range(0 if name == FROZEN else EPOCHS):
        for index in torch.randperm(len(task.x), generator=random).split(BATCH):
            for current in optimizer.passes():
                if free is not None:
                    free.before_pass(current.weight)
                objective(model, (task.x[index], task.y[index])).backward()
            if free is not None:
                free.before_step(step)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
        schedule.step()
    masked = 0.0
    if free is not None:
        masked = 100 * free.tuning.share_masked()
        free.bake(model)
    return {
        "new": accuracy(model, mirrored(task.test_x), task.test_y),
        "old": accuracy(model, task.test_x, task.test_y),
        "masked": masked,
    }


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return 100 * (model(x).argmax(1) == y).double().mean().item()


PAIRS = [
    (WHOLE, FROZEN),
    (WHOLE, FULL),
    ("masks, c 0, l 1", BARE),
    (WHOLE, "masks, c 1e-4, l 0"),
    (WHOLE, "all weights, Adam 8e-5"),
    ("masks, c 1e-4, l 0", BARE),
    ("masks, c 1e-4, l 0.3", "masks, c 1e-4, l 0"),
    (NOISY, WHOLE),
    ("NSO (sigma 1e-3), masks, c 1e-4, l 1", WHOLE),
]


def run() -> dict[str, Any]:
    torch.set_num_threads(1)
    tasks = {seed: Task(seed) for seed in SEEDS}
    values = {n: {s: train(task, s, n) for s, task in tasks.items()} for n in METHODS}
    return {
        "seeds": list(SEEDS),
        "methods": {
            name: {m: summary([run[m] for run in runs.values()]) for m in METRICS}
            for name, runs in values.items()
        },
        "paired": [
            {"of": of, "to": to, **{m: difference(values[of], values[to], m) for m in METRICS}}
            for of, to in PAIRS
        ],
    }


def summary(values: list[float]) -> dict[str, Any]:
    found = mean_ci(values)
    return {"mean": found.mean, "ci95": found.interval, "values": values}


def difference(own: Any, other: Any, metric: str) -> dict[str, Any]:
    found = paired(*({s: run[metric] for s, run in runs.items()} for runs in (own, other)))
    return {
        "difference": found.difference,
        "ci95": found.t_interval,
        "p": found.p_value,
        "values": [own[s][metric] - other[s][metric] for s in own],
    }


def number(entry: dict[str, Any], sign: str = "") -> str:
    value, digits = entry.get("mean", entry.get("difference")), f"{sign}.1f"
    low, high = (format(bound, digits) for bound in entry["ci95"])
    return f"{format(value, digits)} [{low}, {high}]"


def table(found: dict[str, Any]) -> str:
    head, rule = " | ".join(METRICS.values()), "|---" * len(METRICS)
    lines = [f"| | {head} |", f"|---{rule}|"]
    for name, metrics in found["methods"].items():
        lines.append(f"| {name} | " + " | ".join(number(metrics[m]) for m in METRICS) + " |")
    lines += ["", "Differences on the same seeds:", "", f"| | to | {head} |", f"|---|---{rule}|"]
    for pair in found["paired"]:
        cells = " | ".join(number(pair[m], "+") for m in METRICS)
        lines.append(f"| {pair['of']} | {pair['to']} | {cells} |")
    lines += ["", f"Means over {len(found['seeds'])} seeds with 95 % intervals (Student's t)."]
    return "\n".join(lines)
