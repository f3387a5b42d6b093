"""Deep kernels beside their limits, on a circle where Bayes' rule is known, and on real data.

The circle: two Dirichlet classes, (1, 2) with chance 0.4 and (2, 1), brought to length 1; 1500
test points. Real data: scikit-learn's own sets, ten splits of 70 % and 30 %, scaled to [0, 1].
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from sklearn import datasets
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.svm import SVC

from flatminima import DeepKernelClassifier, DualActivation, HilbertKernelClassifier
from flatminima.study import mean_ci, paired

SEEDS = range(10)
SIZES = (200, 1000, 2000)
SETS = ("wine", "breast_cancer", "digits")
SQUARE = DualActivation.from_hermite([0, 0, 1])
CIRCLE = {
    "bayes": "Bayes' rule",
    "deep": "deep network (NNGP, L = 60), optimal activation",
    "limit": "its limit, the singular kernel",
    "hilbert": "Hilbert kernel",
    "1nn": "limit of x^2 - 1: nearest neighbour",
    "majority": "limit of ReLU: majority",
}
REAL = {
    "deep": "deep network (NNGP, L = 60), optimal activation",
    "limit": "its limit, the singular kernel",
    "hilbert": "Hilbert kernel of the same dimension",
    "1nn": "nearest neighbour",
    "5nn": "5 nearest neighbours",
    "svm": "support vectors, RBF kernel, scikit-learn's defaults",
}
DEPTHS = {"nngp": (10, 20, 40, 60), "ntk": (60, 200)}


def draw_circle(n: int, random: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    y = (random.uniform(size=n) < 0.4).astype(int)
    first, second = random.dirichlet([1, 2], size=n), random.dirichlet([2, 1], size=n)
    X = np.where(y[:, None] == 1, first, second)
    return X / np.linalg.norm(X, axis=1, keepdims=True), y


def on_circle(**options) -> DeepKernelClassifier:
    return DeepKernelClassifier(**{"dimension": 1, "lift": False, **options})


def one_circle(n: int, seed: int) -> tuple[dict, dict]:
    """Accuracies of all, and for the smallest n the agreement with the limit by depth."""
    random = np.random.RandomState(1717 + seed)
    X, y = draw_circle(n, random)
    X_test, y_test = draw_circle(1500, random)
    models = {
        "deep": on_circle(),
        "limit": on_circle(kind="limit"),
        "hilbert": HilbertKernelClassifier(dimension=1),
        "1nn": on_circle(activation=SQUARE, kind="limit"),
        "majority": on_circle(activation="relu", kind="limit"),
    }
    found = {name: model.fit(X, y).predict(X_test) for name, model in models.items()}
    # The simplex point of a direction; densities 2 (1 - p) and 2 p.
    p = X_test[:, 0] / X_test.sum(1)
    found["bayes"] = (0.4 * (1 - p) > 0.6 * p).astype(int)
    agreement = {}
    if n == SIZES[0]:
        for kind, depths in DEPTHS.items():
            for depth in depths:
                labels = on_circle(kind=kind, depth=depth).fit(X, y).predict(X_test[:500])
                same = labels == found["limit"][:500]
                agreement[f"{kind}-{depth}"] = float(same.mean())
    return {name: float((labels == y_test).mean()) for name, labels in found.items()}, agreement


def one_split(name: str, seed: int) -> tuple[dict, dict, int]:
    """Accuracies, seconds to fit and predict, and the dimension that was estimated."""
    X, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    X, X_test, y, y_test = train_test_split(X, y, test_size=0.3, random_state=seed, stratify=y)
    dimension = DeepKernelClassifier(kind="limit").fit(MinMaxScaler().fit_transform(X), y)
    dimension = dimension.dimension_
    models = {
        "deep": DeepKernelClassifier(),
        "limit": DeepKernelClassifier(kind="limit"),
        "hilbert": HilbertKernelClassifier(dimension=dimension),
        "1nn": KNeighborsClassifier(1),
        "5nn": KNeighborsClassifier(5),
        "svm": SVC(),
    }
    scores, seconds = {}, {}
    for label, model in models.items():
        start = time.perf_counter()
        steps = make_pipeline(MinMaxScaler(clip=True), model).fit(X, y)
        scores[label] = float(steps.score(X_test, y_test))
        seconds[label] = time.perf_counter() - start
    return scores, seconds, dimension


def run() -> dict:
    torch.set_num_threads(1)
    found: dict = {"seeds": list(SEEDS), "circle": {}, "sets": {}}
    for n in SIZES:
        draws = [one_circle(n, seed) for seed in SEEDS]
        found["circle"][str(n)] = compared([scores for scores, _ in draws])
        if n == SIZES[0]:
            by_depth = {k: summary(d[k] for _, d in draws) for k in draws[0][1]}
            found["agreement"] = by_depth
    for name in SETS:
        splits = [one_split(name, seed) for seed in SEEDS]
        entry = compared([scores for scores, _, _ in splits])
        entry["seconds"] = {k: float(np.median([s[k] for _, s, _ in splits])) for k in REAL}
        entry["dimensions"] = sorted({dimension for _, _, dimension in splits})
        found["sets"][name] = entry
    return found


def compared(scores: list[dict]) -> dict:
    """Means, and the paired differences of the deep network and each other."""
    by_seed = {k: {s: scores[s][k] for s in SEEDS} for k in scores[0]}
    gaps = {k: paired(by_seed["deep"], v) for k, v in by_seed.items() if k != "deep"}
    return {
        "methods": {k: summary(v.values()) for k, v in by_seed.items()},
        "paired": {k: {"difference": g.difference, "ci95": g.t_interval} for k, g in gaps.items()},
    }


def summary(values) -> dict:
    mean = mean_ci(values)
    return {"mean": mean.mean, "ci95": mean.interval}


def table(found: dict) -> str:
    seeds, sizes = len(found["seeds"]), list(found["circle"])
    lines = [f"**The circle**, accuracy in % ({seeds} draws, 1500 test points)", ""]
    lines += [f"| | {' | '.join(f'n = {n}' for n in sizes)} | deep - this, n = {sizes[-1]} |"]
    lines += ["|---" * (len(sizes) + 2) + "|"]
    for label, words in CIRCLE.items():
        cells = [entry(found["circle"][n]["methods"][label]) for n in sizes]
        gap = found["circle"][sizes[-1]]["paired"].get(label)
        lines.append(f"| {words} | {' | '.join(cells)} | {entry(gap, '+') if gap else ''} |")
    lines += [
        "",
        f"**Agreement with the limit** on the circle, n = {sizes[0]}, 500 test points, in %",
        "",
    ]
    lines += ["| kernel | depth | same label |", "|---|---|---|"]
    for label, value in found["agreement"].items():
        kind, depth = label.split("-")
        lines.append(f"| {kind.upper()} | {depth} | {entry(value)} |")
    for name, kept in found["sets"].items():
        dimensions = ", ".join(str(d) for d in kept["dimensions"])
        lines += ["", f"**{name.replace('_', ' ')}** ({seeds} splits; dimension {dimensions})", ""]
        lines += [
            "| | accuracy, % | deep - this | seconds, fit and predict (busy) |",
            "|---|---|---|---|",
        ]
        for label, words in REAL.items():
            gap = kept["paired"].get(label)
            cells = [entry(kept["methods"][label]), entry(gap, "+") if gap else ""]
            lines.append(f"| {words} | {' | '.join(cells)} | {kept['seconds'][label]:.2f} |")
    lines += ["", "![Accuracy on the circle](../results/system-wide-and-deep-classifiers.svg)", ""]
    lines += [f"Means over {seeds} draws, 95 % t intervals; all methods see the same draws."]
    return "\n".join(lines)


def entry(found: dict, sign: str = "") -> str:
    mean = found["mean"] if "mean" in found else found["difference"]
    low, high = (f"{100 * end:{sign}.1f}" for end in found["ci95"])
    return f"{100 * mean:{sign}.1f} [{low}, {high}]"


def draw(found: dict, folder: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 3.2))
    sizes = [int(n) for n in found["circle"]]
    styles = {"bayes": ("k", "--"), "deep": ("#0b6e99", "-"), "hilbert": ("#7fb8d0", ":")}
    styles |= {"1nn": ("#c0392b", "-"), "majority": ("0.6", "-")}
    for label, (color, line) in styles.items():
        entries = [found["circle"][str(n)]["methods"][label] for n in sizes]
        means = [one["mean"] for one in entries]
        reach = np.array(
            [
                [m - one["ci95"][0] for m, one in zip(means, entries, strict=True)],
                [one["ci95"][1] - m for m, one in zip(means, entries, strict=True)],
            ]
        )
        # Apart by a hair, so that intervals of methods that agree do not hide each other.
        places = np.array(sizes) * (1.02 if label == "hilbert" else 1.0)
        axis.errorbar(
            places,
            means,
            reach,
            fmt=line,
            color=color,
            marker="o",
            markersize=3,
            capsize=2,
            linewidth=1.2,
            label=CIRCLE[label],
        )
    axis.set_xscale("log")
    axis.set_xticks(sizes, [str(n) for n in sizes])
    axis.minorticks_off()
    axis.set_xlabel("training samples")
    axis.set_ylabel("test accuracy, 95 % interval")
    figure.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(0.6, 0.5))
    figure.tight_layout(rect=(0, 0, 0.6, 1))
    path = folder / "system-wide-and-deep-classifiers.svg"
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
