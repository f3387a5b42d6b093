"""ConR on a regression whose labels are rare above, and on digits read as numbers.

The first is made: labels of an exponential distribution to train on and of a uniform one to test
on, inputs a smooth curve of the label and noise. The second shows what a weight does that does not
fit the labels: the value of a digit, large digits rare.
"""

from __future__ import annotations

import time
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from flatminima import ConR, features_of
from flatminima.study.numbers import difference, with_error
from flatminima.study.statistics import mean_ci, paired
from flatminima.training.tasks import Shots

SEEDS = range(10)
BETAS = (0.0, 1.0, 4.0)
WINDOW, DIGIT_WINDOW = 5.0, 0.5
BATCH, CURVE_EPOCHS, DIGIT_EPOCHS = 64, 40, 60
DIM, WAVES, NOISE = 16, 32, 0.25
PAIRS = 20_000
METRICS = ("spearman", "mae", "mae_many", "mae_medium", "mae_few")


class Network(nn.Module):
    """Three layers of 64 with ReLU, the last of them the features, and a line to the label."""

    def __init__(self, inputs: int, unit: float) -> None:
        super().__init__()
        sides = (inputs, 64, 64, 64)
        layers = [(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(sides)]
        self.body = nn.Sequential(*chain(*layers))
        self.head = nn.Linear(64, 1)
        self.unit = unit

    def forward(self, x: Tensor) -> Tensor:
        """Predicted labels, shape (n, 1)."""
        outputs: Tensor = self.unit * self.head(self.body(x))
        return outputs


def curve(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """1000 samples to train on and 2000 to test on; labels in [0, 100]."""
    rng = np.random.default_rng(seed)
    waves, phases = 3 * rng.normal(size=WAVES), rng.uniform(0, 2 * np.pi, WAVES)
    mixing = rng.normal(0, WAVES**-0.5, (WAVES, DIM))
    # The inverse of the distribution function of an exponential one cut off at 100.
    rare = -12 * np.log1p(-rng.uniform(size=1000) * -np.expm1(-100 / 12))
    found = []
    for labels in (rare, rng.uniform(0, 100, 2000)):
        inputs = np.sin(labels[:, None] / 100 * waves + phases) @ mixing
        inputs += NOISE * rng.normal(size=inputs.shape)
        found += [torch.tensor(inputs).float(), torch.tensor(labels).float()]
    return found[0], found[1], found[2], found[3]


def digits(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """100 zeros, fewer of each next digit, 5 nines; 70 of each to test on."""
    rng = np.random.default_rng(seed)
    bunch = load_digits()
    train, test = [], []
    for digit in range(10):
        own = rng.permutation(np.flatnonzero(bunch.target == digit))
        kept = round(100 * 0.05 ** (digit / 9))
        train.append(own[:kept])
        test.append(own[100:170])
    found = []
    for chosen in (np.concatenate(train), np.concatenate(test)):
        found += [torch.tensor(bunch.data[chosen] / 16).float()]
        found += [torch.tensor(bunch.target[chosen]).float()]
    return found[0], found[1], found[2], found[3]


def train(model: nn.Module, x: Tensor, y: Tensor, objective: ConR, epochs: int, seed: int) -> float:
    """Adam at 1e-3; the seconds it took."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    order = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    start = time.perf_counter()
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=order).split(BATCH):
            loss = objective(model, (x[rows], y[rows]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return time.perf_counter() - start


def ranks(values: Tensor) -> Tensor:
    """Mean ranks, ties sharing theirs."""
    _, place, count = values.unique(return_inverse=True, return_counts=True)
    ends = count.cumsum(0).double()
    return (ends - (count - 1) / 2)[place]


def scores(model: nn.Module, x: Tensor, y: Tensor, shots: Shots, seed: int) -> dict[str, float]:
    """Errors, and how well distances of features follow those of labels."""
    with torch.no_grad(), features_of(model) as features:
        error = (model(x)[:, 0] - y).abs()
    units = nn.functional.normalize(features.of(len(x)), dim=1)
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randint(len(x), (2, PAIRS), generator=generator)
    of_features = ranks(1 - (units[a] * units[b]).sum(1))
    of_labels = ranks((y[a] - y[b]).abs())
    together = torch.corrcoef(torch.stack([of_features, of_labels]))[0, 1]
    group = shots.group(y.numpy())
    by_group = {
        f"mae_{name}": error[torch.from_numpy(group == name)].mean().item()
        for name in ("many", "medium", "few")
    }
    return {"spearman": together.item(), "mae": error.mean().item(), **by_group}


SETS: dict[str, dict[str, Any]] = {
    "curve": {"data": curve, "window": WINDOW, "bin": 5.0, "epochs": CURVE_EPOCHS, "unit": 10.0},
    "digits": {
        "data": digits,
        "window": DIGIT_WINDOW,
        "bin": 1.0,
        "epochs": DIGIT_EPOCHS,
        "unit": 1.0,
    },
}


def study(name: str) -> dict[str, Any]:
    """All weights and seeds of one data set."""
    how = SETS[name]
    values: dict[float, list[dict[str, float]]] = {beta: [] for beta in BETAS}
    for seed in SEEDS:
        x, y, x_test, y_test = how["data"](seed)
        many = 100 if name == "curve" else 50
        shots = Shots.of(y.numpy(), how["bin"], few=20, many=many)
        for beta in BETAS:
            torch.manual_seed(seed)
            model = Network(x.shape[1], how["unit"])
            objective = ConR(window=how["window"], beta=beta)
            seconds = train(model, x, y, objective, how["epochs"], seed)
            found = scores(model, x_test, y_test, shots, seed)
            values[beta].append({**found, "seconds": seconds})
    kept: dict[str, Any] = {"window": how["window"], "betas": {}}
    for beta, runs in values.items():
        entry: dict[str, Any] = {}
        for metric in (*METRICS, "seconds"):
            own = [run[metric] for run in runs]
            mean = mean_ci(own)
            entry[metric] = {"mean": mean.mean, "ci95": list(mean.interval or ()), "values": own}
            if beta and metric != "seconds":
                before = [run[metric] for run in values[0.0]]
                pair = paired(dict(enumerate(own)), dict(enumerate(before)))
                entry[metric] |= {
                    "difference": pair.difference,
                    "difference_ci95": list(pair.t_interval or ()),
                    "higher": sum(a > b for a, b in zip(own, before, strict=True)),
                    "least": min(a - b for a, b in zip(own, before, strict=True)),
                }
        kept["betas"][f"{beta:g}"] = entry
    return kept


def run() -> dict[str, Any]:
    """Both data sets; about a minute and a half on one thread."""
    torch.set_num_threads(1)
    return {"seeds": len(SEEDS), "sets": {name: study(name) for name in SETS}}


HEADERS = {
    "spearman": "Spearman",
    "mae": "MAE",
    "mae_many": "many-shot",
    "mae_medium": "medium",
    "mae_few": "few-shot",
}


def table(found: dict[str, Any]) -> str:
    """A table for each data set: means, and differences to beta = 0."""
    parts = []
    titles = {
        "curve": "Labels in [0, 100], rare above",
        "digits": "The value of a digit, rare above",
    }
    for name, study in found["sets"].items():
        lines = [
            f"**{titles[name]}**, w = {study['window']:g}, {found['seeds']} seeds:",
            "",
            f"| beta | {' | '.join(HEADERS.values())} | seconds |",
            "| :-- |" + " --: |" * (len(HEADERS) + 1),
        ]
        for beta, entry in study["betas"].items():
            cells = [_cell(entry[metric]) for metric in HEADERS]
            lines.append(f"| {beta} | {' | '.join(cells)} | {entry['seconds']['mean']:.1f} |")
        for beta, entry in study["betas"].items():
            if beta != "0":
                cells = [_difference(entry[metric]) for metric in HEADERS]
                lines.append(f"| {beta} less 0 | {' | '.join(cells)} | |")
        parts.append("\n".join(lines))
    notes = (
        "± and [low, high]: 95 % Student's t intervals; differences are paired by seed. MAE of the "
        "curve is over labels that are uniform in [0, 100]; that of the digits over as many of "
        "each. Few-shot: bins with fewer than 20 training labels; many-shot: more than 100 (of the "
        "digits 50)."
    )
    return "\n\n".join([*parts, notes]) + "\n"


def _cell(entry: dict[str, Any]) -> str:
    return with_error(entry["mean"], entry["ci95"])


def _difference(entry: dict[str, Any]) -> str:
    return difference(entry["difference"], entry["difference_ci95"])


def draw(found: dict[str, Any], folder: Path) -> None:
    """Where features of labels lie, without ConR and with it: one seed of the curve."""
    import matplotlib.pyplot as plt

    torch.set_num_threads(1)
    figure, panels = plt.subplots(1, len(BETAS), figsize=(10, 3.4), layout="constrained")
    x, y, x_test, y_test = curve(0)
    for beta, ax in zip(BETAS, panels, strict=True):
        torch.manual_seed(0)
        model = Network(DIM, 10.0)
        train(model, x, y, ConR(window=WINDOW, beta=beta), CURVE_EPOCHS, 0)
        with torch.no_grad(), features_of(model) as features:
            model(x_test)
        units = nn.functional.normalize(features.of(len(x_test)), dim=1)
        order = y_test.argsort()[:: len(y_test) // 100]
        image = ax.imshow(
            units[order] @ units[order].T, vmin=-1, vmax=1, extent=(0, 100, 100, 0), cmap="RdBu_r"
        )
        value = found["sets"]["curve"]["betas"][f"{beta:g}"]["spearman"]["values"][0]
        ax.set(title=f"beta = {beta:g}, Spearman {value:.2f}", xlabel="label")
    panels[0].set_ylabel("label")
    figure.colorbar(image, ax=panels, label="cosine of features")
    figure.savefig(folder / "system-conr.svg", metadata={"Date": None})
    plt.close(figure)
