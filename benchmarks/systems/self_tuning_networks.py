"""Self-Tuning Networks: knobs against the truth, and dropout rates against a sweep."""

from __future__ import annotations

from pathlib import Path

import torch
from systems import self_tuning_digits, self_tuning_ridge

from flatminima.study import mean_ci, paired

SEEDS = range(10)
SWEEPS = {
    "fixed": "best of 5 fixed rates by validation loss",
    "short": "the same at the cost of one tuned run, a fifth each",
}


def run() -> dict:
    torch.set_num_threads(1)
    found: dict = {"seeds": list(SEEDS)}
    for name, part in (("ridge", self_tuning_ridge), ("digits", self_tuning_digits)):
        found[name] = []
        for number in SEEDS:
            found[name].append(part.seed(number))
            print(name, number, flush=True)
    return found | {"paired": _compared(found["digits"])}


def _compared(seeds: list[dict]) -> dict:
    """Tuned, the mean over its starts, less the best of a sweep; below 0 the loss is lower."""
    compared = {}
    for sweep in SWEEPS:
        for metric in ("validation_loss", "test_loss", "test_accuracy"):
            ours = {i: _over_starts(s, metric) for i, s in enumerate(seeds)}
            theirs = {i: self_tuning_digits.chosen(s[sweep])[metric] for i, s in enumerate(seeds)}
            compared[f"{sweep}_{metric}"] = paired(ours, theirs).to_dict()
    return compared


def _over_starts(seed: dict, metric: str) -> float:
    values = [run[metric] for run in seed["tuned"].values()]
    return sum(values) / len(values)


def table(found: dict) -> str:
    return "\n\n".join([_ridge(found["ridge"]), _digits(found)])


def _ridge(seeds: list[dict]) -> str:
    runs = [(seed, run) for seed in seeds for run in seed["continuous"]]
    errors = [abs(run["found"] - seed["best"]) for seed, run in runs]
    lines = [
        "### Input noise of a linear model, whose best strength is known",
        "",
        "| seed | best log noise | found from -2.5 | found from 1.5 | validation loss: best "
        "possible, found, at the starts | best step of 16 | found from 3 |",
        "|---|---|---|---|---|---|---|",
    ]
    for i, seed in enumerate(seeds):
        low, high = seed["continuous"]
        losses = (
            f"{seed['best_validation']:.3f}; {low['validation']:.3f}, {high['validation']:.3f}; "
            f"{low['start_validation']:.2f}, {high['start_validation']:.2f}"
        )
        lines.append(
            f"| {i} | {seed['best']:.3f} | {low['found']:.3f} | {high['found']:.3f} | {losses} | "
            f"{seed['best_step']} | {seed['whole']['found']:.0f} |"
        )
    cosines = [run["cosine"] for _, run in runs]
    steps = [abs(seed["whole"]["found"] - seed["best_step"]) for seed in seeds]
    within = sum(error < 0.2 for error in errors)
    return "\n".join(
        [
            *lines,
            "",
            f"Within 0.2 of the best log noise: {within} of {len(errors)} runs; largest error "
            f"{max(errors):.2f}. The whole knob: {sum(s == 0 for s in steps)} of {len(steps)} runs "
            f"on the best step, {sum(s <= 1 for s in steps)} within one of it. Cosine between W' "
            f"and the true derivative of the best response: {min(cosines):.2f} to "
            f"{max(cosines):.2f}. Scale of the draws at the end, from 0.5: "
            f"{mean_ci(run['scale'] for _, run in runs)}.",
        ]
    )


def _digits(found: dict) -> str:
    seeds = found["digits"]
    lines = [
        "### Three dropout rates on 300 digits, a fifth of the labels drawn anew",
        "",
        "| | gradients | validation loss | test loss | test accuracy |",
        "|---|---|---|---|---|",
    ]
    for kind, words in (("tuned", "tuned from"), ("fixed", "all fixed at")):
        for start, run in seeds[0][kind].items():
            means = [_mean([s[kind][start] for s in seeds], m) for m in METRICS]
            lines.append(f"| {words} {start} | {run['gradients']} | {' | '.join(means)} |")
    for sweep, words in SWEEPS.items():
        chosen = [self_tuning_digits.chosen(s[sweep]) for s in seeds]
        cost = sum(run["gradients"] for run in seeds[0][sweep].values())
        means = [_mean(chosen, m) for m in METRICS]
        lines.append(f"| {words} | {cost} | {' | '.join(means)} |")
    lines += ["", "Tuned, the mean over its three starts, less the best of a sweep:", ""]
    lines += ["| sweep | validation loss | test loss | test accuracy |", "|---|---|---|---|"]
    for sweep, words in SWEEPS.items():
        cells = [_difference(found["paired"][f"{sweep}_{metric}"]) for metric in METRICS]
        lines.append(f"| {words} | {' | '.join(cells)} |")
    spreads = {
        kind: [
            max(r["validation_loss"] for r in s[kind].values())
            - min(r["validation_loss"] for r in s[kind].values())
            for s in seeds
        ]
        for kind in ("tuned", "fixed")
    }
    worst = [
        max(r["validation_loss"] for r in s["tuned"].values())
        - self_tuning_digits.chosen(s["fixed"])["validation_loss"]
        for s in seeds
    ]
    return "\n".join(
        [
            *lines,
            "",
            f"Spread of the validation loss over the starts: {mean_ci(spreads['tuned'])}, at most "
            f"{max(spreads['tuned']):.2f}; over the fixed rates: {mean_ci(spreads['fixed'])}. "
            f"The worst start less the best fixed rate: at most {max(worst):+.2f}.",
        ]
    )


METRICS = ("validation_loss", "test_loss", "test_accuracy")


def _mean(runs: list[dict], metric: str) -> str:
    found = mean_ci(run[metric] for run in runs)
    return f"{found.mean:.3f} ± {found.half_width:.3f}"


def _difference(one: dict) -> str:
    low, high = one["t_interval"]
    return f"{one['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"


def draw(found: dict, folder: Path) -> None:
    """Found against best, and validation loss by where dropout starts or stays."""
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    best = [s["best"] for s in found["ridge"]]
    left.axline((min(best), min(best)), slope=1, color="0.7", linewidth=1)
    for i, start in enumerate(self_tuning_ridge.STARTS):
        ends = [s["continuous"][i]["found"] for s in found["ridge"]]
        left.plot(best, ends, "os"[i], label=f"from {start}")
    left.set_xlabel("best log noise")
    left.set_ylabel("found")
    left.legend(frameon=False)
    for kind, words in (("fixed", "fixed"), ("tuned", "start of a tuned run")):
        rates = [float(rate) for rate in found["digits"][0][kind]]
        means = [
            mean_ci(s[kind][rate]["validation_loss"] for s in found["digits"])
            for rate in found["digits"][0][kind]
        ]
        right.errorbar(
            rates,
            [m.mean for m in means],
            [m.half_width for m in means],
            marker="o",
            capsize=3,
            label=words,
        )
    right.set_xlabel("dropout rate")
    right.set_ylabel("validation loss")
    right.set_ylim(bottom=0)
    right.legend(frameon=False)
    figure.savefig(folder / "system-self-tuning-networks.svg", metadata={"Date": None})
    pyplot.close(figure)
