"""Early-learning regularization where a large share of the labels is wrong.

The digits of scikit-learn (8 x 8), 1200 to train on and 597 to test, 40 % of the training labels
drawn anew among the ten classes. A network 64-256-256-10, SGD of learning rate 0.02, momentum 0.9,
weight decay 1e-3, batches of 64, 100 epochs. A seed draws the split, the wrong labels, the weights
and the order; methods of one seed share all of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from flatminima import NSO, ELRLoss, ELRPlus, Plain
from flatminima.study import mean_ci, paired

SEEDS = range(10)
NOISE, EPOCHS, BATCH, SIGMA = 0.4, 100, 64, 0.05
CLASSES = 10

METHODS: dict[str, dict[str, Any]] = {
    "cross-entropy": {"lam": 0.0},
    "NSO, cross-entropy": {"lam": 0.0, "sigma": SIGMA},
    "ELR, beta 0.7, lambda 3": {},
    "ELR, beta 0.9, lambda 7": {"beta": 0.9, "lam": 7.0},
    "NSO, ELR, beta 0.7, lambda 3": {"sigma": SIGMA},
    "ELR+, beta 0.7, lambda 3": {"plus": True},
}
REFERENCE = "cross-entropy"
METRICS = {
    "final": "test accuracy, last epoch",
    "best": "best epoch",
    "memorized": "wrong labels memorized",
    "corrected": "wrong labels seen through",
    "found": "labels judged rightly by the memory",
}


class Task:
    """One seed's data."""

    def __init__(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        data = load_digits()
        order = random.permutation(len(data.target))
        x = torch.tensor(data.data[order] / 16, dtype=torch.float32)
        y = torch.tensor(data.target[order], dtype=torch.int64)
        self.x, self.clean, self.test_x, self.test_y = x[:1200], y[:1200], x[1200:], y[1200:]
        drawn = torch.tensor(random.random(1200) < NOISE)
        anew = torch.tensor(random.integers(0, CLASSES, 1200))
        self.given = torch.where(drawn, anew, self.clean)
        self.wrong = self.given != self.clean

    def batches(self, seed: int, epoch: int) -> tuple[Tensor, ...]:
        order = torch.Generator().manual_seed(1000 * seed + epoch)
        return torch.randperm(len(self.x), generator=order).split(BATCH)


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    hidden = (nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU())
    return nn.Sequential(*hidden, nn.Linear(256, CLASSES))


def base(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-3)


@torch.no_grad()
def accuracy(predict: Any, x: Tensor, y: Tensor) -> float:
    return (predict(x).argmax(1) == y).double().mean().item()


def train(
    seed: int, beta: float = 0.7, lam: float = 3.0, sigma: float = 0.0, plus: bool = False
) -> dict[str, float]:
    task, model = Task(seed), network(seed)
    curve = []
    if plus:
        pair = ELRPlus(model, network(seed + 500), 1200, CLASSES, beta=beta, lam=lam)
        optimizers = [base(net) for net in pair.networks]
        predict: Any = pair
        for epoch in range(EPOCHS):
            pair.train()
            for index in task.batches(seed, epoch):
                for which, own in enumerate(optimizers):
                    pair.loss(which, task.x[index], task.given[index], index).backward()
                    own.step()
                    own.zero_grad()
                    pair.after_step(which)
            curve.append(accuracy(pair.eval(), task.test_x, task.test_y))
        suspects = pair.suspects(task.given)
    else:
        loss, predict = ELRLoss(1200, CLASSES, beta, lam), model
        own = base(model)
        optimizer = NSO(own, sigma=sigma, seed=seed) if sigma else Plain(own)
        for epoch in range(EPOCHS):
            for index in task.batches(seed, epoch):
                with loss.one_step():
                    for _ in optimizer.passes():
                        loss(model(task.x[index]), task.given[index], index).backward()
                optimizer.step()
                optimizer.zero_grad()
            curve.append(accuracy(model, task.test_x, task.test_y))
        suspects = loss.suspects(task.given)
    flagged = torch.zeros(1200, dtype=torch.bool)
    flagged[suspects] = True
    with torch.no_grad():
        said = predict(task.x).argmax(1)
    wrong = task.wrong
    return {
        "final": curve[-1],
        "best": max(curve),
        "memorized": (said == task.given)[wrong].double().mean().item(),
        "corrected": (said == task.clean)[wrong].double().mean().item(),
        "found": (flagged == wrong).double().mean().item(),
        "precision": wrong[flagged].double().mean().item() if len(suspects) else 0.0,
        "recall": flagged[wrong].double().mean().item(),
        "wrong": wrong.double().mean().item(),
    }


def run() -> dict[str, Any]:
    torch.set_num_threads(1)
    values = {name: {s: train(s, **how) for s in SEEDS} for name, how in METHODS.items()}
    found: dict[str, Any] = {"seeds": list(SEEDS), "noise": NOISE, "methods": {}, "paired": {}}
    for name, runs in values.items():
        metrics = {m: [run[m] for run in runs.values()] for m in runs[0]}
        found["methods"][name] = {
            m: {"mean": mean_ci(v).mean, "ci95": mean_ci(v).interval, "values": v}
            for m, v in metrics.items()
        }
        if name == REFERENCE:
            continue
        found["paired"][name] = {m: difference(values, name, REFERENCE, m) for m in METRICS}
    both = "NSO, ELR, beta 0.7, lambda 3"
    found["nso_over_elr"] = {
        m: difference(values, both, "ELR, beta 0.7, lambda 3", m) for m in METRICS
    }
    return found


def difference(values: Any, name: str, reference: str, metric: str) -> dict[str, Any]:
    own, other = ({s: run[metric] for s, run in values[n].items()} for n in (name, reference))
    found = paired(own, other)
    return {"difference": found.difference, "ci95": found.t_interval, "p": found.p_value}


def percent(entry: dict[str, Any]) -> str:
    low, high = (100 * bound for bound in entry["ci95"])
    return f"{100 * entry['mean']:.1f} [{low:.1f}, {high:.1f}]"


def gained(entry: dict[str, Any]) -> str:
    low, high = (100 * bound for bound in entry["ci95"])
    return f"{100 * entry['difference']:+.1f} [{low:+.1f}, {high:+.1f}]"


def table(found: dict[str, Any]) -> str:
    lines = ["| % | " + " | ".join(METRICS.values()) + " |", "|---" * (len(METRICS) + 1) + "|"]
    for name, metrics in found["methods"].items():
        lines.append(f"| {name} | " + " | ".join(percent(metrics[m]) for m in METRICS) + " |")
    lines += ["", f"Differences to {REFERENCE} on the same seeds, in points:", ""]
    lines += ["| | " + " | ".join(METRICS.values()) + " |", "|---" * (len(METRICS) + 1) + "|"]
    for name, metrics in found["paired"].items():
        lines.append(f"| {name} | " + " | ".join(gained(metrics[m]) for m in METRICS) + " |")
    nso = " | ".join(gained(found["nso_over_elr"][m]) for m in METRICS)
    lines.append(f"| NSO with ELR, to ELR alone | {nso} |")
    lines += [
        "",
        f"Means over {len(found['seeds'])} seeds with 95 % intervals (Student's t).",
    ]
    return "\n".join(lines)
