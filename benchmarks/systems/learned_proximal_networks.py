"""Learned proximal networks: a prior that is known, and photographs."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import torch
from systems import lpn_images as images
from systems import lpn_laplace as laplace

from flatminima.study import mean_ci, paired

SEEDS = range(10)
LOSSES = {"L2": "squared error", "L1": "absolute error", "PM": "proximal matching"}
CASES = ("denoising", *images.TASKS)
OBJECTIVE_DIGITS, IMAGE_DIGITS = 1e-14, 1e-15
"""Below it a curve is the rounding of float64: of an objective near 3, of pixels up to 1."""

COLOURS = {"L2": "#999999", "L1": "#56b4e9", "PM": "#d55e00"}


def run() -> dict:
    torch.set_num_threads(1)
    found: dict = {"seeds": list(SEEDS), "laplace": [], "weights": images.tuned(), "images": []}
    print(found["weights"], flush=True)
    for number in SEEDS:
        found["laplace"].append(laplace.seed(number))
        found["images"].append(images.seed(number, found["weights"]))
        print(number, {k: found["images"][-1][k] for k in CASES}, flush=True)

    def against(part: str, one, other) -> dict:
        values, reference = (
            {i: pick(s) for i, s in enumerate(found[part])} for pick in (one, other)
        )
        return paired(values, reference).to_dict()

    def entry(*names: str):
        return lambda s: s[names[0]][names[1]]

    found["paired"] = {
        f"{task} {other}": against("images", entry(task, "LPN"), entry(task, other))
        for task in CASES
        for other in ("TV", "plain")
    } | {
        f"laplace {other}": against(
            "laplace", entry("PM", "R from |x|"), entry(other, "R from |x|")
        )
        for other in ("L2", "L1")
    }
    return found


def table(found: dict) -> str:
    return "\n\n".join([_laplace(found), _images(found), _checks(found)])


def _laplace(found: dict) -> str:
    lines = [
        "### Laplace samples",
        "",
        "| trained by | mean distance of f from soft-thresholding, abs(y) <= 3 | from the mean of "
        "x given y | f(1), prox 0 | R(1) - R(0), prior 1 | R(2) - R(0), prior 2 | mean distance of "
        "R from abs(x), abs(x) <= 2 |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, words in LOSSES.items():
        keys = ("from soft", "from mean", "f(1)", "R(1)", "R(2)", "R from |x|")
        cells = (_mean([seed[name][key] for seed in found["laplace"]], 3) for key in keys)
        lines.append(f"| {words} | " + " | ".join(cells) + " |")
    ratios = [
        max(seed["PM"]["from soft"] / seed[name]["from soft"] for seed in found["laplace"])
        for name in ("L1", "L2")
    ]
    return "\n".join(
        [
            *lines,
            "",
            f"Distance from soft-thresholding, proximal matching over absolute error at most "
            f"{ratios[0]:.2f}, over squared error at most {ratios[1]:.2f}, each seed by itself. "
            "Distance of R from abs(x), proximal matching less absolute error "
            f"{_difference(found, 'laplace L1', 3)}, less squared error "
            f"{_difference(found, 'laplace L2', 3)}.",
        ]
    )


def _images(found: dict) -> str:
    lines = [
        "### Photographs",
        "",
        "Peak signal-to-noise ratio in dB on crops of the photograph that nothing was trained or "
        "tuned on:",
        "",
        "| | given | total variation | plain denoiser | LPN | LPN less total variation | LPN less "
        "plain |",
        "|---|---|---|---|---|---|---|",
    ]
    for task in CASES:
        cells = [
            _mean([seed[task][name] for seed in found["images"]], 2)
            for name in ("given", "TV", "plain", "LPN")
        ]
        cells += [_difference(found, f"{task} {other}", 2) for other in ("TV", "plain")]
        lines.append(f"| {task} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _checks(found: dict) -> str:
    seeds = found["images"]
    checks = [seed["checks"] for seed in seeds]
    rises = {name: max(seed["curves"][name]["rise"] for seed in seeds) for name in images.METHODS}
    kinds = checks[0]["R"]
    shown = "; ".join(f"{kind} {_mean([c['R'][kind] for c in checks], 1)}" for kind in kinds)
    changes = {
        name: [
            max(seed["curves"][name][kind][-1] for seed in seeds)
            for kind in ("change", "plain change")
        ]
        for name in images.METHODS
    }
    ends = "; ".join(
        f"{name.upper()} {one:.0e} and {two:.0e}" for name, (one, two) in changes.items()
    )
    return "\n".join(
        [
            "### What must hold",
            "",
            f"Jacobians of all {len(seeds)} trained networks at 4 patches each: asymmetry at most "
            f"{max(c['asymmetry'] for c in checks):.0e}, eigenvalues from "
            f"{min(c['least'] for c in checks):.5f} (2 alpha is 0.002) to "
            f"{max(c['most'] for c in checks):.2f}. Prior at 32 patches a seed: R known to "
            f"{max(c['error'] for c in checks):.0e} by its own bound; means of R / sigma^2: "
            f"{shown}.",
            "",
            "Largest rise of the objective in a step, deblurring at weight 1, 60 steps, float64: "
            f"proximal gradient {max(rises['pgd'], 0):.0e}, half-quadratic splitting "
            f"{max(rises['hqs'], 0):.0e} (ADMM promises none: {max(rises['admm'], 0):.0e}). Change "
            f"of the last step, at most, LPN and plain denoiser: {ends}.",
        ]
    )


def _mean(values: list[float], digits: int) -> str:
    found = mean_ci(values)
    return f"{found.mean:.{digits}f} ± {found.half_width:.{digits}f}"


def _difference(found: dict, name: str, digits: int) -> str:
    one = found["paired"][name]
    low, high = one["t_interval"]
    return f"{one['difference']:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def draw(found: dict, folder: Path) -> None:
    """Laplace curves; convergence of the first seed; before and after, at a seed of its own."""
    from matplotlib import pyplot

    _draw_laplace(found, pyplot, folder)
    _draw_convergence(found, pyplot, folder)
    _draw_images(found, pyplot, folder)


def _draw_laplace(found: dict, pyplot, folder: Path) -> None:
    y, x = laplace.Y[::10, 0], laplace.X[:, 0]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    left.plot(y, laplace.soft(y), "k--", lw=1.2, label="soft-thresholding")
    right.plot(x, x.abs(), "k--", lw=1.2, label="|x|")
    for name, words in LOSSES.items():
        for i, seed in enumerate(found["laplace"]):
            style = {"color": COLOURS[name], "lw": 1, "alpha": 0.7}
            words_once = {"label": words} if i == 0 else {}
            left.plot(y, seed[name]["f"], **style, **words_once)
            right.plot(x, seed[name]["R"], **style, **words_once)
    left.set(xlabel="y", ylabel="f(y)", title="the network")
    right.set(xlabel="x", ylabel="R(x) - R(0)", title="its prior")
    left.legend(fontsize=8)
    right.legend(fontsize=8)
    file = folder / "system-learned-proximal-networks-laplace.svg"
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


def _draw_convergence(found: dict, pyplot, folder: Path) -> None:
    curves = found["images"][0]["curves"]
    names = {"pgd": "proximal gradient", "hqs": "half-quadratic splitting", "admm": "ADMM"}
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for (key, words), colour in zip(names.items(), ("#0072b2", "#009e73", "#d55e00"), strict=True):
        one = curves[key]
        steps = range(1, len(one["change"]) + 1)
        # Against the last value the last gaps would fall to 0, which no method does; what a step
        # lowers it by needs no limit.
        falls = [a - b for a, b in pairwise(one["objective"])]
        left.semilogy(steps[1:], _above(falls, OBJECTIVE_DIGITS), color=colour, label=words)
        right.semilogy(steps, _above(one["change"], IMAGE_DIGITS), color=colour, label=words)
        plain = _above(one["plain change"], IMAGE_DIGITS)
        right.semilogy(steps, plain, color=colour, ls=":", label=f"{words}, plain denoiser")
    left.set(xlabel="step", ylabel="fall of the objective", title="what each method minimizes")
    right.set(xlabel="step", ylabel="root mean square change", title="how far the image moves")
    left.legend(fontsize=8)
    right.legend(fontsize=7)
    file = folder / "system-learned-proximal-networks-convergence.svg"
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


def _above(values: list[float], rounding: float) -> list[float]:
    """The values; where only rounding is left, nothing is drawn."""
    return [value if value > rounding else math.nan for value in values]


def _draw_images(found: dict, pyplot, folder: Path) -> None:
    torch.set_num_threads(1)
    net, plain = images.trained(0)
    clean = images.photograph("flower")[None, None, 150:278, 240:368]
    figure, axes = pyplot.subplots(3, 5, figsize=(10, 6.4), layout="constrained")
    for row, task in zip(axes, ("denoising", "deblurring", "inpainting"), strict=True):
        for ax, (name, image) in zip(row, _shown(task, found, net, plain, clean), strict=True):
            said = "" if name == "clean" else f", {images.decibels(image, clean):.1f} dB"
            ax.imshow(image[0, 0].clamp(0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            ax.set_title(name + said, size=9)
            ax.axis("off")
    file = folder / "system-learned-proximal-networks.png"
    figure.savefig(file, dpi=120, metadata={"Software": None})
    pyplot.close(figure)


@torch.no_grad()
def _shown(task: str, found: dict, net, plain, clean) -> list:
    weights = found["weights"][task]
    if task == "denoising":
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(3000))
        given, operator = clean + images.SIGMA * noise, images.identity()
        one = images.Averaged(plain, 1)(given)
        two = images.PatchLPN(net, images.SIDE)(given)
    else:
        operator, given = images.measured(task, clean, 3000)
        one = images.restored(images.Averaged(plain, 2), task, clean, 3000, weights["plain"])
        two = images.restored(
            images.PatchLPN(net, images.SIDE, 2), task, clean, 3000, weights["LPN"]
        )
    tv = images.by_tv(operator, given, weights["TV"])
    names = {"denoising": "noisy", "deblurring": "blurred", "inpainting": "40 % of the pixels"}
    shown = {names[task]: given, "total variation": tv, "plain denoiser": one, "LPN": two}
    return list({**shown, "clean": clean}.items())
