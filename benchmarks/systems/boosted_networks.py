"""Boosted networks beside scikit-learn's networks and its gradient boosting, on its own data.

Ten splits of 70 % and 30 %, the same for all; classes keep their shares. Nobody is tuned: boosted
networks have settings of the paper's grid, the others scikit-learn's defaults, networks with as
many hidden units of the same kind. Inputs, and for networks targets, are standardized.
"""

from __future__ import annotations

import time
import warnings
from pathlib import Path

import numpy as np
import torch
from sklearn import datasets
from sklearn.compose import TransformedTargetRegressor
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import (
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
)
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import accuracy_score, root_mean_squared_error
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from flatminima import BoostedNetworkClassifier, BoostedNetworkRegressor
from flatminima.study import mean_ci, paired

SEEDS = range(10)
SETS = {
    "diabetes": {"units": 50, "units_per_step": 1, "learning_rate": 0.1},
    "digits": {"units": 100, "units_per_step": 4, "learning_rate": 0.5, "max_iter": 100},
    "breast_cancer": {"units": 60, "units_per_step": 2, "learning_rate": 0.5},
    "wine": {"units": 60, "units_per_step": 2, "learning_rate": 0.5},
}
OWN = {
    "boosted": "boosted network, all units",
    "boosted-60": "boosted network, first 60 % of its units",
    "boosted-held-out": "boosted network, prefix chosen on 20 % held out",
    "boosted-paper": "boosted network, all units, steps not halved (as in the paper)",
}
OTHERS = {
    "mlp-adam": "network of as many units, Adam",
    "mlp-lbfgs": "network of as many units, L-BFGS",
    "gb": "gradient-boosted trees",
    "hist-gb": "histogram gradient boosting",
    "constant": "mean, or largest class",
}


def boosted(regression: bool, seed: int, **options):
    chosen = BoostedNetworkRegressor if regression else BoostedNetworkClassifier
    return chosen(random_state=seed, **options)


def other(name: str, regression: bool, units: int, seed: int):
    if name == "constant":
        return DummyRegressor() if regression else DummyClassifier()
    if name == "gb":
        chosen = GradientBoostingRegressor if regression else GradientBoostingClassifier
        return chosen(random_state=seed)
    if name == "hist-gb":
        chosen = HistGradientBoostingRegressor if regression else HistGradientBoostingClassifier
        return chosen(random_state=seed)
    chosen = MLPRegressor if regression else MLPClassifier
    solver = name.removeprefix("mlp-")
    net = chosen(
        hidden_layer_sizes=(units,),
        activation="logistic",
        solver=solver,
        max_iter=500,
        random_state=seed,
    )
    net = make_pipeline(StandardScaler(), net)
    return TransformedTargetRegressor(net, transformer=StandardScaler()) if regression else net


def one_split(name: str, seed: int) -> tuple[dict, dict, dict, dict]:
    """Scores and seconds of each method; the scores and training losses of prefixes."""
    X, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    regression = name == "diabetes"
    score = root_mean_squared_error if regression else accuracy_score
    strata = None if regression else y
    X, X_test, y, y_test = train_test_split(X, y, test_size=0.3, random_state=seed, stratify=strata)
    scores, seconds = {}, {}

    def timed(label, model):
        start = time.perf_counter()
        model.fit(X, y)
        seconds[label] = time.perf_counter() - start
        scores[label] = float(score(y_test, model.predict(X_test)))
        return model

    model = timed("boosted", boosted(regression, seed, **SETS[name]))
    stages = model.network_.stages
    scores["boosted-60"] = float(score(y_test, model.predict(X_test, stages=round(0.6 * stages))))
    curve = [float(score(y_test, model.predict(X_test, stages=0)))]
    curve += [float(score(y_test, found)) for found in model.staged_predict(X_test)]
    timed("boosted-held-out", boosted(regression, seed, validation_fraction=0.2, **SETS[name]))
    paper = timed("boosted-paper", boosted(regression, seed, monotone=False, **SETS[name]))
    curves = {"boosted": curve, "boosted-paper": [curve[0]]}
    curves["boosted-paper"] += [float(score(y_test, p)) for p in paper.staged_predict(X_test)]
    losses = {"boosted": model.loss_curve_.tolist(), "boosted-paper": paper.loss_curve_.tolist()}
    for label in OTHERS:
        timed(label, other(label, regression, SETS[name]["units"], seed))
    return scores, seconds, curves, losses


def furthest_move(seed: int) -> dict:
    """Of the paper's steps on diabetes, that which moves a training row furthest."""
    X, y = datasets.load_diabetes(return_X_y=True)
    X, _, y, _ = train_test_split(X, y, test_size=0.3, random_state=seed)
    model = boosted(True, seed, monotone=False, **SETS["diabetes"]).fit(X, y)
    predicted = np.array([model.predict(X, stages=0), *model.staged_predict(X)])
    moves = np.abs(np.diff(predicted, axis=0))
    stage = int(moves.max(1).argmax())
    return {
        "stage": stage + 1,
        "furthest": float(moves[stage].max()),
        "below 1": float((moves[stage] < 1).mean()),
        "deviation of targets": float(y.std()),
    }


def run() -> dict:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", ConvergenceWarning)
    found = {"seeds": list(SEEDS), "sets": {}}
    for name, settings in SETS.items():
        splits = [one_split(name, seed) for seed in SEEDS]
        labels = list(splits[0][0])
        by_seed = {label: {s: splits[s][0][label] for s in SEEDS} for label in labels}
        entry = {"settings": settings, "metric": "RMSE" if name == "diabetes" else "accuracy"}
        entry["methods"] = {label: summary(by_seed[label].values()) for label in labels}
        for label in splits[0][1]:
            seconds = float(np.median([split[1][label] for split in splits]))
            entry["methods"][label]["seconds"] = seconds
        for own in ("boosted", "boosted-held-out"):
            entry[f"paired-{own}"] = {
                label: difference(by_seed[own], by_seed[label]) for label in labels if label != own
            }
        for place, curve in ((2, "curves"), (3, "loss_curves")):
            entry[curve] = {
                label: np.mean([split[place][label] for split in splits], axis=0).tolist()
                for label in splits[0][place]
            }
        found["sets"][name] = entry
    found["furthest moves"] = [furthest_move(seed) for seed in SEEDS]
    return found


def summary(values) -> dict:
    mean = mean_ci(values)
    return {"mean": mean.mean, "ci95": mean.interval}


def difference(values, reference) -> dict:
    gap = paired(values, reference)
    return {"difference": gap.difference, "ci95": gap.t_interval}


def table(found: dict) -> str:
    lines = []
    for name, entry in found["sets"].items():
        percent = entry["metric"] == "accuracy"
        factor, unit = (100, "accuracy, %") if percent else (1, "RMSE")
        settings = ", ".join(f"{key} {value}" for key, value in entry["settings"].items())
        lines += [
            "",
            f"**{name.replace('_', ' ')}** ({settings}; {len(found['seeds'])} splits)",
            "",
        ]
        lines += [f"| | {unit} | all units - this | chosen prefix - this | seconds (busy) |"]
        lines += ["|---|---|---|---|---|"]
        for label, words in {**OWN, **OTHERS}.items():
            method = entry["methods"][label]
            gaps = (entry[f"paired-{own}"].get(label) for own in ("boosted", "boosted-held-out"))
            cells = [words, interval(method["mean"], method["ci95"], factor)]
            cells += [
                interval(gap["difference"], gap["ci95"], factor, "+") if gap else "" for gap in gaps
            ]
            cells += [f"{method['seconds']:.2f}" if "seconds" in method else ""]
            lines.append(f"| {' | '.join(cells)} |")
    moves = sorted(found["furthest moves"], key=lambda one: one["furthest"])
    calm = sum(one["below 1"] > 0.9 for one in moves)
    deviation = np.mean([one["deviation of targets"] for one in moves])
    lines += [
        "",
        "Diabetes, steps not halved, the furthest that a stage moves a training row: "
        f"{moves[0]['furthest']:.0f} to {moves[-1]['furthest']:.0f}, by split; targets have a "
        f"deviation of {deviation:.0f}. In {calm} of {len(moves)} splits that stage moves more "
        "than 90 % of the rows by less than 1.",
    ]
    lines += ["", "![Scores of prefixes](../results/system-boosted-networks.svg)", ""]
    said = "bars (all units) and bands are 95 % t intervals"
    lines += [f"Means over {len(found['seeds'])} splits; {said}."]
    return "\n".join(lines)


def interval(mean: float, ends, factor: float, sign: str = "") -> str:
    low, high = (f"{factor * end:{sign}.1f}" for end in ends)
    return f"{factor * mean:{sign}.1f} [{low}, {high}]"


def draw(found: dict, folder: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(found["sets"]), figsize=(11, 3.1))
    for axis, (name, entry) in zip(axes, found["sets"].items(), strict=True):
        per_step = entry["settings"]["units_per_step"]
        for label, color in (("boosted-paper", "#e8a33d"), ("boosted", "#0b6e99")):
            curve = entry["curves"][label]
            words = "boosted" if label == "boosted" else "boosted, steps not halved"
            axis.plot(per_step * np.arange(len(curve)), curve, color=color, label=words)
            # Of prefixes means are kept; the interval is that of the last, all units.
            end = entry["methods"]["boosted" if label == "boosted" else "boosted-paper"]
            units = per_step * (len(curve) - 1)
            reach = [[end["mean"] - end["ci95"][0]], [end["ci95"][1] - end["mean"]]]
            place = units * (1.0 if label == "boosted" else 1.04)
            axis.errorbar(place, end["mean"], reach, color=color, capsize=3, fmt="none")
        for label, style, color in (("mlp-adam", "--", "0.35"), ("gb", ":", "#8e44ad")):
            level = entry["methods"][label]
            axis.axhline(
                level["mean"], color=color, linestyle=style, linewidth=1, label=OTHERS[label]
            )
            axis.axhspan(*level["ci95"], color=color, alpha=0.14, linewidth=0)
        axis.set_title(name.replace("_", " "), fontsize=10)
        axis.set_xlabel("units used")
        axis.set_ylabel(f"test {entry['metric']}")
        if entry["metric"] == "accuracy":
            axis.set_ylim(0.85, 1.005)
    handles, words = axes[0].get_legend_handles_labels()
    figure.legend(handles, words, loc="lower center", ncols=4, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    path = folder / "system-boosted-networks.svg"
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
