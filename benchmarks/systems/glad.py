"""GLAD on mirrored digits: adapters of a pretrained network, tuned on four images of each class.

A network learns 900 digits; then low-rank adapters of its three layers learn mirrored digits from
40 labelled ones. Tested on 597 mirrored digits, as they are and under noise.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from flatminima import GLAD, SAM, LoRA, Plain
from flatminima.perturb import Perturbed
from flatminima.study.numbers import difference, with_error
from flatminima.study.statistics import mean_ci, paired

SEEDS = range(10)
PRETRAINING, SHOTS, TEST = 900, 4, 597
EPOCHS, STEPS, BATCH = 60, 400, 16
NOISE = 0.3

Make = Callable[[torch.optim.Optimizer], Perturbed]
METHODS: dict[str, Make] = {
    "plain": Plain,
    "GLAD, rho 0.1": lambda base: GLAD(base, rho=0.1),
    "GLAD, rho 0.3": lambda base: GLAD(base, rho=0.3),
    "GLAD, rho 0.6": lambda base: GLAD(base, rho=0.6),
    "SAM, rho 0.3": lambda base: SAM(base, rho=0.3),
    "SAM, rho 0.6": lambda base: SAM(base, rho=0.6),
}
METRICS = {"clean": "accuracy (%)", "noisy": "under noise (%)", "nll": "loss (nats)"}


def pretrained(x: Tensor, y: Tensor, seed: int) -> nn.Sequential:
    """A network that knows digits, shifted by a pixel or not, under a little noise."""
    torch.manual_seed(seed)
    numbers = torch.Generator().manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x), generator=numbers).split(64):
            down, right = torch.randint(-1, 2, (2,), generator=numbers).tolist()
            moved = x[rows].view(-1, 8, 8).roll((down, right), dims=(1, 2)).flatten(1)
            moved = moved + 0.1 * torch.randn(moved.shape, generator=numbers)
            optimizer.zero_grad()
            cross_entropy(model(moved), y[rows]).backward()
            optimizer.step()
    return model


def tuned(model: nn.Sequential, x: Tensor, y: Tensor, make: Make, seed: int) -> nn.Sequential:
    """The network with adapters that learned the few images."""
    model = copy.deepcopy(model)
    torch.manual_seed(seed)
    LoRA(model, rank=4, targets="0,2,4", head=False)
    free = [p for p in model.parameters() if p.requires_grad]
    optimizer = make(torch.optim.SGD(free, lr=0.05, momentum=0.9))
    numbers = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        rows = torch.randperm(len(x), generator=numbers)[:BATCH]
        for _ in optimizer.passes():
            cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def scores(model: nn.Sequential, x: Tensor, y: Tensor, seed: int) -> dict[str, float]:
    """On the test digits."""
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        clean, noisy = model(x), model(x + NOISE * noise)
    right = [(found.argmax(1) == y).double().mean().item() for found in (clean, noisy)]
    return {"clean": right[0], "noisy": right[1], "nll": cross_entropy(clean, y).item()}


def of_seed(seed: int) -> dict[str, dict[str, float]]:
    """All methods on one split, from the same pretrained network."""
    digits = load_digits()
    images = torch.tensor(digits.images / 16).float()
    labels = torch.tensor(digits.target)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(images)))
    first, rest = order[:PRETRAINING], order[PRETRAINING : len(order) - TEST]
    test = order[len(order) - TEST :]
    few = torch.cat([rest[labels[rest] == digit][:SHOTS] for digit in range(10)])
    model = pretrained(images[first].flatten(1), labels[first], seed)
    mirrored = images.flip(2).flatten(1)
    found = {}
    for name, make in METHODS.items():
        own = tuned(model, mirrored[few], labels[few], make, seed)
        found[name] = scores(own, mirrored[test], labels[test], seed)
    return found


def run() -> dict[str, Any]:
    """All seeds; about a minute on one thread."""
    torch.set_num_threads(1)
    runs = [of_seed(seed) for seed in SEEDS]
    methods: dict[str, Any] = {}
    for name in METHODS:
        methods[name] = {}
        for metric in METRICS:
            own = {seed: found[name][metric] for seed, found in enumerate(runs)}
            plain = {seed: found["plain"][metric] for seed, found in enumerate(runs)}
            whole = {seed: value for seed, value in own.items() if math.isfinite(value)}
            entry: dict[str, Any] = {"values": [whole.get(seed) for seed in own]}
            if len(whole) == len(own):
                mean = mean_ci(own.values())
                entry |= {"mean": mean.mean, "ci95": list(mean.interval or ())}
                if name != "plain":
                    pair = paired(own, plain)
                    entry["difference"] = pair.difference
                    entry["difference_ci95"] = list(pair.t_interval or ())
            methods[name][metric] = entry
    return {"seeds": len(runs), "methods": methods}


def table(found: dict[str, Any]) -> str:
    """Means, and the differences to plain tuning."""
    header = " | ".join(METRICS.values())
    lines = [f"| method | {header} |", "| :-- |" + " --: |" * len(METRICS)]
    for name, entry in found["methods"].items():
        cells = [_cell(entry[metric], metric) for metric in METRICS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    for name, entry in found["methods"].items():
        if name != "plain":
            cells = [_difference(entry[metric], metric) for metric in METRICS]
            lines.append(f"| {name}, less plain | {' | '.join(cells)} |")
    lines += ["", f"{found['seeds']} seeds, differences paired by seed; ± and [low, high]: 95 %"]
    lines[-1] += " Student's t intervals. A loss that is not finite in some seed has no mean."
    return "\n".join(lines) + "\n"


def _scale(metric: str) -> float:
    return 1.0 if metric == "nll" else 100.0


def _cell(entry: dict[str, Any], metric: str) -> str:
    if "mean" not in entry:
        lost = sum(value is None for value in entry["values"])
        return f"not finite in {lost} seeds"
    return with_error(entry["mean"], entry["ci95"], _scale(metric))


def _difference(entry: dict[str, Any], metric: str) -> str:
    if "difference" not in entry:
        return "-"
    return difference(entry["difference"], entry["difference_ci95"], _scale(metric))
