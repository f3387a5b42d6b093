"""Whether NormGrad finds the digit: energy and hits inside its box, and care for the class.

Canvases of noise with six blocks of clutter and one small digit, a small convolutional network, and
maps of the network's true class at three depths, against Grad-CAM and gradient saliency.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from flatminima.explain import NormGrad, class_sensitivity, meta_saliency, saliency_plot
from flatminima.study.statistics import mean_ci, paired

SEEDS, CANVAS, SIDE, CLASSES = range(10), 32, 8, 4
STEPS, BATCH, LR = 350, 64, 2e-3
TESTED, ASKED = 200, 64
DEPTHS = {"conv 2": "3", "conv 4": "8", "conv 5": "11"}
META = (0.001, 0.0025, 0.01)


def run() -> dict[str, Any]:
    """Train a network a seed, and look where it looks."""
    torch.set_num_threads(1)
    found: dict[str, dict[int, float]] = {}
    for seed in SEEDS:
        for name, value in _one(seed).items():
            found.setdefault(name, {})[seed] = value
    differences = {
        "product - best layer": (
            found["energy norm-grad product"],
            {s: max(found[f"energy norm-grad {d}"][s] for d in DEPTHS) for s in SEEDS},
        ),
        **{
            f"norm-grad - grad-cam, {d}": (
                found[f"energy norm-grad {d}"],
                found[f"energy grad-cam {d}"],
            )
            for d in DEPTHS
        },
        "hits norm-grad - gradient": (found["hits norm-grad"], found["hits gradient"]),
        "meta 0.0025 - 0.8 plain": (
            found["likeness meta 0.0025"],
            {s: 0.8 * v for s, v in found["likeness plain"].items()},
        ),
    }
    return {
        "seeds": list(SEEDS),
        "steps": STEPS,
        "tested": TESTED,
        "asked": ASKED,
        "chance": SIDE**2 / CANVAS**2,
        "values": {name: list(by_seed.values()) for name, by_seed in found.items()},
        "means": {name: mean_ci(by_seed.values()).to_dict() for name, by_seed in found.items()},
        "paired": {name: paired(*two).to_dict() for name, two in differences.items()},
    }


def table(found: dict[str, Any]) -> str:
    """What was found, as Markdown."""
    mean = {name: _said(one) for name, one in found["means"].items()}
    lines = [
        f"Means over {len(found['seeds'])} seeds with 95 % t intervals, {found['tested']} test "
        f"images each; test accuracy {mean['accuracy']}.",
        "",
        f"| energy of the map inside the digit's box (chance {found['chance']:.4f}) | "
        + " | ".join(DEPTHS)
        + " | product of the three |",
        "|---|" + "---|" * (len(DEPTHS) + 1),
    ]
    for method in ("norm-grad", "grad-cam"):
        cells = [mean[f"energy {method} {depth}"] for depth in (*DEPTHS, "product")]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "| the map's highest point lies in the box, at the last convolution | part of images |",
        "|---|---|",
        f"| norm-grad | {mean['hits norm-grad']} |",
        f"| gradient (bias, max_abs) | {mean['hits gradient']} |",
        "",
        f"| Spearman correlation of the maps for the most and the least probable class, last "
        f"convolution, {found['asked']} images | |",
        "|---|---|",
        f"| norm-grad | {mean['likeness plain']} |",
        f"| selective | {mean['likeness selective']} |",
    ]
    lines += [f"| norm-grad, meta step {lr} | {mean[f'likeness meta {lr}']} |" for lr in META]
    lines += ["", "| difference, paired over seeds | mean | 95 % t interval |", "|---|---|---|"]
    for name, one in found["paired"].items():
        low, high = one["t_interval"]
        lines.append(f"| {name} | {one['difference']:+.3f} | [{low:+.3f}, {high:+.3f}] |")
    return "\n".join(lines)


def draw(found: dict[str, Any], folder: Any) -> None:
    """Six canvases of the first seed with their maps."""
    model, images, targets, _ = _trained(0)
    images, targets = images[:6], targets[:6]
    maps = {
        name: NormGrad(model, layer).attribute(images, targets) for name, layer in DEPTHS.items()
    }
    maps["product"] = NormGrad(model, list(DEPTHS.values())).attribute(images, targets)
    maps["Grad-CAM"] = NormGrad.of("grad-cam", model, DEPTHS["conv 5"]).attribute(images, targets)
    titles = [f"digit {int(t)}" for t in targets]
    figure = saliency_plot(images, maps, titles, power={"product": 1 / len(DEPTHS)})
    figure.savefig(folder / "system-normgrad.png", dpi=90, metadata={"Software": None})


def _one(seed: int) -> dict[str, float]:
    model, images, targets, boxes = _trained(seed)
    with torch.no_grad():
        accuracy = (model(images).argmax(1) == targets).float().mean().item()
    found = {"accuracy": accuracy}
    for method in ("norm-grad", "grad-cam"):
        for depth, layer in (*DEPTHS.items(), ("product", list(DEPTHS.values()))):
            maps = NormGrad.of(method, model, layer).attribute(images, targets)
            found[f"energy {method} {depth}"] = _energy(maps, boxes)
    last = DEPTHS["conv 5"]
    for method in ("norm-grad", "gradient"):
        maps = NormGrad.of(method, model, last).attribute(images, targets)
        highest = maps.flatten(1).argmax(1)
        found[f"hits {method}"] = boxes.flatten(1).gather(1, highest[:, None]).float().mean().item()
    plain = NormGrad(model, last).attribute
    selective = NormGrad.of("selective", model, last).attribute
    found["likeness plain"] = class_sensitivity(plain, model, images[:ASKED]).value
    found["likeness selective"] = class_sensitivity(selective, model, images[:ASKED]).value
    for lr in META:
        stepped = partial(meta_saliency, plain, model, lr=lr)
        found[f"likeness meta {lr}"] = class_sensitivity(stepped, model, images[:ASKED]).value
    return found


def _energy(maps: Tensor, boxes: Tensor) -> float:
    """The part of the map inside the box; of an empty map (layers that share no place) chance."""
    inside, whole = (maps * boxes).flatten(1).sum(1), maps.flatten(1).sum(1)
    return torch.where(whole > 0, inside / whole, SIDE**2 / CANVAS**2).mean().item()


def _trained(seed: int) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A network, and test images, classes and boxes."""
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    digits, labels = load_digits(n_class=CLASSES, return_X_y=True)
    order = generator.permutation(len(labels))
    digits, labels = digits[order].reshape(-1, SIDE, SIDE) / 16, labels[order]
    half = len(labels) // 2
    model = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 48, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(48, 48, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(48, 64, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES)),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    for _ in range(STEPS):
        images, targets, _ = _canvases(generator, digits[:half], labels[:half], BATCH)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), targets).backward()
        optimizer.step()
    model.eval()
    return model, *_canvases(generator, digits[half:], labels[half:], TESTED)


def _canvases(
    generator: np.random.Generator, digits: Any, labels: Any, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    images = generator.uniform(0, 0.3, (count, CANVAS, CANVAS))
    boxes = np.zeros((count, 1, CANVAS, CANVAS), dtype=bool)
    chosen = generator.integers(len(labels), size=count)
    for image, box, which in zip(images, boxes, chosen, strict=True):
        for row, column in generator.integers(CANVAS - 4, size=(6, 2)):
            image[row : row + 4, column : column + 4] = generator.uniform(0, 1, (4, 4))
        row, column = generator.integers(CANVAS - SIDE, size=2)
        image[row : row + SIDE, column : column + SIDE] = digits[which]
        box[0, row : row + SIDE, column : column + SIDE] = True
    return (
        torch.from_numpy(images).float().unsqueeze(1),
        torch.from_numpy(labels[chosen]).long(),
        torch.from_numpy(boxes),
    )


def _said(mean: dict[str, Any]) -> str:
    low, high = mean["interval"]
    return f"{mean['mean']:.3f} ± {(high - low) / 2:.3f}"
