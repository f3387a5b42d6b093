"""How regularization tilts boundaries: of logistic regression, and of networks' heads.

Two parts: the digits 7 and 9 with wrong labels along a path of C; and the heads of small networks
on all ten digits, trained plainly, with weight decay and with NSO.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import nn

import flatminima
from flatminima.explain import (
    linear_scores,
    local_distance,
    signed_distance,
    tilt_head,
    tilt_path,
    tilting_plane,
)
from flatminima.study.statistics import mean_ci, paired
from flatminima.training.networks import MLP

SEEDS = range(10)
CS = tuple(10.0**k for k in range(-3, 5))
WRONG = 0.05
TAKEN = 89
"""Training images of each class, half of the rarer one."""

DRAWN = (0.001, 10.0, 1000.0)

TRAINED, EPOCHS, BATCH, LR, NOISY = 600, 60, 50, 0.05, 0.1
METHODS = ("plain", "weight decay 0.001", "weight decay 0.01", "NSO 0.05", "NSO 0.1", "SAM 0.1")


def run() -> dict[str, Any]:
    """Both parts, over the seeds."""
    torch.set_num_threads(1)
    path: dict[str, dict[int, float]] = {}
    heads: dict[str, dict[str, dict[int, float]]] = {}
    for seed in SEEDS:
        for name, value in _path(seed).items():
            path.setdefault(name, {})[seed] = value
        for method in METHODS:
            for name, value in _head(seed, method).items():
                heads.setdefault(name, {}).setdefault(method, {})[seed] = value
    return {
        "seeds": list(SEEDS),
        "cs": list(CS),
        "path": {name: mean_ci(v.values()).to_dict() for name, v in path.items()},
        "least": {name: min(v.values()) for name, v in path.items() if name.startswith("step")},
        "most": {name: max(v.values()) for name, v in path.items() if name.startswith("0 and 1")},
        "same accuracy": paired(path["accuracy 10"], path["accuracy 0.001"]).to_dict(),
        "heads": {
            name: {method: mean_ci(v.values()).to_dict() for method, v in by_method.items()}
            for name, by_method in heads.items()
        },
        "paired": {
            name: {
                method: paired(v, by_method["plain"]).to_dict()
                for method, v in by_method.items()
                if method != "plain"
            }
            for name, by_method in heads.items()
        },
    }


def table(found: dict[str, Any]) -> str:
    """What was found, as Markdown."""
    path, seeds = found["path"], len(found["seeds"])
    lines = [
        f"Logistic regression on the digits 7 and 9 with {WRONG:.0%} of the training labels wrong, "
        f"means over {seeds} splits with 95 % t intervals:",
        "",
        "| C | angle, degrees | adversarial distance | strength | median distance of test images |"
        " test accuracy |",
        "|---|---|---|---|---|---|",
    ]
    for c in found["cs"]:
        cells = [
            _said(path[f"{name} {c:g}"], digits)
            for name, digits in (
                ("degrees", 1),
                ("distance", 3),
                ("strength", 2),
                ("median", 3),
                ("accuracy", 3),
            )
        ]
        lines.append(f"| {c:g} | " + " | ".join(cells) + " |")
    same = found["same accuracy"]
    low, high = same["t_interval"]
    lines += [
        "",
        f"Smallest change of the angle from one C to the next over all splits: "
        f"{min(found['least'].values()):+.2f} degrees. Test accuracy at C = 10 less that at 0.001: "
        f"{100 * same['difference']:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]. The digits "
        "0 and 1 without wrong labels: at most "
        f"{max(found['most'].values()):.1f} degrees at any C and split.",
        "",
        f"Heads of the 64-64-64-10 network on all ten digits, {TRAINED} training images, "
        f"{NOISY:.0%} of their labels wrong, SGD for {EPOCHS} epochs, means over {seeds} seeds:",
        "",
        "| training | test accuracy | angle of the head, mean over pairs | strength of the head, "
        "median over pairs | local distance of test images, median |",
        "|---|---|---|---|---|",
    ]
    heads = found["heads"]
    columns = (("accuracy", 3), ("degrees", 1), ("strength", 2), ("local", 3))
    for method in heads["accuracy"]:
        cells = [_said(heads[name][method], digits) for name, digits in columns]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "| difference from plain, paired over seeds | test accuracy | angle | local distance |",
        "|---|---|---|---|",
    ]
    for method in found["paired"]["accuracy"]:
        cells = []
        for name, digits in (("accuracy", 3), ("degrees", 1), ("local", 3)):
            one = found["paired"][name][method]
            low, high = one["t_interval"]
            cells.append(f"{one['difference']:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(found: dict[str, Any], folder: Any) -> None:
    """The tilting plane at three strengths of regularization, first split."""
    import matplotlib.pyplot as pyplot

    figure, axes = pyplot.subplots(1, len(DRAWN), figsize=(12.6, 4.4), layout="constrained")
    X, y, *_ = _split((7, 9), 0, WRONG)
    for c, ax in zip(DRAWN, axes, strict=True):
        w, b = linear_scores(_fitted(c).fit(X, y)).between(0, 1)
        plane = tilting_plane(w, b, X, y)
        plane.plot(ax)
        one = plane.report
        said = f"{one.degrees:.0f} degrees, strength {one.strength:.3g}"
        ax.set_title(f"C = {c:g}: {said},\ntraining accuracy {one.accuracy:.3f}", fontsize=9)
    figure.savefig(folder / "system-boundary-tilting.svg", metadata={"Date": None})


def _fitted(c: float) -> Any:
    return LogisticRegression(C=c, max_iter=5000, tol=1e-6)


def _split(classes: tuple[int, int], seed: int, wrong: float) -> tuple[Any, Any, Any, Any]:
    """Training and test halves; part of the training labels are the other class.

    The training half has as many of each class, before and after: at the smallest C nothing but
    their ratio decides the bias.
    """
    generator = np.random.default_rng(seed)
    digits, labels = load_digits(return_X_y=True)
    train, test = [], []
    for name in classes:
        mine = generator.permutation(np.flatnonzero(labels == name))
        train.append(mine[:TAKEN])
        test.append(mine[TAKEN:])
    given = labels.copy()
    for low, high in (classes, classes[::-1]):
        mine = train[classes.index(low)]
        given[generator.choice(mine, round(wrong * TAKEN), replace=False)] = high
    inside, outside = np.concatenate(train), np.concatenate(test)
    X = digits / 16
    return X[inside], given[inside], X[outside], labels[outside]


def _path(seed: int) -> dict[str, float]:
    X, y, X_test, y_test = _split((7, 9), seed, WRONG)
    path = tilt_path(_fitted, CS, X, y, X_test, y_test)
    found = {}
    for c, one, accuracy in zip(CS, path.reports, path.validation_accuracy, strict=True):
        w, b = linear_scores(_fitted(c).fit(X, y)).between(0, 1)
        away = signed_distance(X_test, w, b) * np.where(y_test == 9, 1, -1)
        found |= {
            f"degrees {c:g}": one.degrees,
            f"distance {c:g}": one.adversarial_distance,
            f"strength {c:g}": one.strength,
            f"accuracy {c:g}": accuracy,
            f"median {c:g}": float(np.median(away[away > 0])),
        }
    degrees = [one.degrees for one in path.reports]
    found |= {f"step to {c:g}": float(d) for c, d in zip(CS[1:], np.diff(degrees), strict=True)}
    clean = _split((0, 1), seed, 0.0)
    for c, one in zip(CS, tilt_path(_fitted, CS, *clean).reports, strict=True):
        found[f"0 and 1, {c:g}"] = one.degrees
    return found


def _head(seed: int, method: str) -> dict[str, float]:
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    digits, labels = load_digits(return_X_y=True)
    order = generator.permutation(len(labels))
    X = torch.from_numpy(digits[order] / 16).float()
    true = torch.from_numpy(labels[order])
    y = true[:TRAINED].clone()
    which = generator.choice(TRAINED, round(NOISY * TRAINED), replace=False)
    y[which] = (y[which] + torch.from_numpy(generator.integers(1, 10, len(which)))) % 10
    model = MLP(64, 10)
    name, _, strength = method.rpartition(" ")
    decay = float(strength) if name == "weight decay" else 0.0
    steps = EPOCHS * TRAINED // BATCH
    base = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, weight_decay=decay)
    optimizer: Any = flatminima.Plain(base)
    if name == "NSO":
        optimizer = flatminima.NSO(base, sigma=float(strength), seed=seed)
    elif name == "SAM":
        optimizer = flatminima.SAM(base, rho=float(strength))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        base, lambda step: (1 + math.cos(math.pi * step / steps)) / 2
    )
    for step in range(steps):
        if step % (TRAINED // BATCH) == 0:
            batches = torch.from_numpy(generator.permutation(TRAINED)).split(BATCH)
        batch = batches[step % (TRAINED // BATCH)]
        for _ in optimizer.passes():
            nn.functional.cross_entropy(model(X[batch]), y[batch]).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.eval()
    tilts = tilt_head(model, [(X[:TRAINED], y)])
    away = local_distance(model, X[TRAINED:], true[TRAINED:])
    return {
        "accuracy": (away > 0).double().mean().item(),
        "degrees": tilts.mean_degrees,
        "strength": tilts.median_strength,
        "local": away[away > 0].median().item(),
    }


def _said(mean: dict[str, Any], digits: int) -> str:
    low, high = mean["interval"]
    return f"{mean['mean']:.{digits}f} ± {(high - low) / 2:.{digits}f}"
