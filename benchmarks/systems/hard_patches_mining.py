"""Whether Hard Patches Mining knows which patches it will reconstruct badly, and hides those.

The digits of scikit-learn (8 x 8), each placed at random on a black canvas of 16 x 16, which is 16
patches of 4 x 4, 12 of them hidden; 1200 to train on, 597 to test on. A ViT of two layers, width
48, and decoders of one layer. 400 steps of 32 images, AdamW with a learning rate of 4e-3 (50 of
warm-up, then a cosine), betas 0.9 and 0.95, weight decay 0.05. Two trainings a seed, on the same
images, from the same weights: Hard Patches Mining, whose teacher looks at complementary masks, and
a masked autoencoder, whose masks are random and whose predictor is not trained. And a longer
training of Hard Patches Mining, of three seeds: 1500 steps of 64 images, a learning rate of 2e-3.

The baseline is the position alone: the mean loss of each of the 16 places over the training images
under random masks, the same for every image. It says how much of what a predictor knows is that
digits are seldom at the border.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from transformers import ViTConfig, ViTModel

from flatminima import HardPatchesMining, HardPatchMasker, MaskedViT
from flatminima.models.hard_patches import begin_with_positions
from flatminima.models.hard_patches.picture import mask_plot
from flatminima.objectives import Setting
from flatminima.objectives.hard_patches import fold_scores, patch_losses, ranking_agreement
from flatminima.study import mean_ci, paired

SEEDS = range(10)
LONG_SEEDS = range(3)
EPOCHS, TRAINED = 20, 1200
LONG: dict[str, Any] = {"steps": 1500, "batch": 64, "warm_up": 100, "rate": 2e-3}
MINING, RANDOM = "hard patches mining", "masked autoencoder"
ARMS: dict[str, dict[str, Any]] = {
    MINING: {"score": "folds"},
    RANDOM: {"alpha": 0.0, "weight": 0.0},
}
METRICS = {
    "agreement": "ranking agreement",
    "agreement_position": "ranking agreement of the position alone",
    "hardness": "loss under hard masks / random masks, folds",
    "hardness_full": "the same, full",
    "hardness_position": "the same, by the position alone",
    "ink": "ink patches hidden, %, folds",
    "ink_full": "the same, full",
    "ink_position": "the same, by the position alone",
    "ink_random": "the same, random masks",
    "loss": "loss under random masks",
}
AGAINST_POSITION = ("agreement", "hardness", "ink")
MASKER = HardPatchMasker(0.75, 0.5)


def digits(seed: int) -> tuple[Tensor, Tensor]:
    """Those to train on and those to test on, (n, 8, 8) in [0, 1]."""
    images = torch.tensor(load_digits().images, dtype=torch.float32) / 16
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return images[order[:TRAINED]], images[order[TRAINED:]]


def on_canvas(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each at a random place, (n, 1, 16, 16)."""
    place = torch.randint(0, 9, (len(images), 2), generator=generator)[..., None]
    rows, columns = (place + torch.arange(8)).unbind(1)
    canvas = torch.zeros(len(images), 1, 16, 16)
    every = torch.arange(len(images))[:, None, None]
    canvas[every, 0, rows[:, :, None], columns[:, None, :]] = images
    return canvas


def network(seed: int) -> MaskedViT:
    torch.manual_seed(seed)
    config = ViTConfig(
        image_size=16,
        patch_size=4,
        num_channels=1,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=192,
    )
    vit = ViTModel(config, add_pooling_layer=False)
    begin_with_positions(vit)
    return MaskedViT(vit)


def train(
    seed: int,
    given: dict[str, Any],
    steps: int = 400,
    batch: int = 32,
    warm_up: int = 50,
    rate: float = 4e-3,
) -> MaskedViT:
    images, _ = digits(seed)
    model, objective = network(seed), HardPatchesMining(**given)
    # Without its loss it would learn nothing; this spares the time to find that out.
    model.predictor.requires_grad_(objective.weight > 0)
    objective.begin(Setting(TRAINED, 1, steps, steps // EPOCHS, model))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.05, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1, (step + 1) / warm_up) * (1 + math.cos(math.pi * step / steps)) / 2,
    )
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        chosen = torch.randint(TRAINED, (batch,), generator=generator)
        objective(model, {"inputs": on_canvas(images[chosen], generator)}).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        objective.after_step()
    return model.eval()


@torch.no_grad()
def scores(model: MaskedViT, seed: int) -> dict[str, float]:
    """On the test images, with masks that do not depend on the model where they are random."""
    generator = torch.Generator().manual_seed(1000 + seed)
    images = on_canvas(digits(seed)[1], generator)
    random = MASKER(torch.zeros(len(images), model.patch_count), 0.0, generator)
    found = model(images, random)
    losses = patch_losses(found.reconstruction, found.patches)
    ink = found.patches.amax(-1) > 0
    shape = len(images), -1
    place = by_position(model, seed).expand(len(images), -1)
    values = {
        "agreement": agreement(found.predicted[random].view(shape), losses[random].view(shape)),
        "agreement_position": agreement(place[random].view(shape), losses[random].view(shape)),
        "loss": losses[random].mean().item(),
        "ink_random": hidden_ink(random, ink),
    }
    seen = {
        "": fold_scores(model, images, MASKER.ratio, generator),
        "_full": model.predict(images),
        "_position": place,
    }
    for how, hardness in seen.items():
        hard = MASKER(hardness, 1.0, generator)
        again = model(images, hard)
        loss = patch_losses(again.reconstruction, again.patches)[hard].mean().item()
        values[f"hardness{how}"] = loss / values["loss"]
        values[f"ink{how}"] = hidden_ink(hard, ink)
    return values


def by_position(model: MaskedViT, seed: int) -> Tensor:
    """The mean loss of each place over the training images under random masks, (1, L)."""
    generator = torch.Generator().manual_seed(2000 + seed)
    images = on_canvas(digits(seed)[0], generator)
    hidden = MASKER(torch.zeros(len(images), model.patch_count), 0.0, generator)
    found = model(images, hidden)
    losses = patch_losses(found.reconstruction, found.patches) * hidden
    return losses.sum(0, keepdim=True) / hidden.sum(0, keepdim=True)


def agreement(predicted: Tensor, losses: Tensor) -> float:
    agreed, pairs = ranking_agreement(predicted, losses)
    return (agreed / pairs).item()


def hidden_ink(mask: Tensor, ink: Tensor) -> float:
    return 100 * ((mask & ink).sum() / ink.sum()).item()


def run() -> dict[str, Any]:
    torch.set_num_threads(1)
    long = {seed: scores(train(seed, ARMS[MINING], **LONG), seed) for seed in LONG_SEEDS}
    return together({seed: of_seed(seed) for seed in SEEDS}, long)


def of_seed(seed: int) -> dict[str, dict[str, float]]:
    return {arm: scores(train(seed, given), seed) for arm, given in ARMS.items()}


def together(
    by_seed: dict[int, dict[str, dict[str, float]]], long: dict[int, dict[str, float]]
) -> dict[str, Any]:
    values = {arm: {seed: found[arm] for seed, found in by_seed.items()} for arm in ARMS}
    return {
        "seeds": list(SEEDS),
        "arms": {
            arm: {m: summary([run[m] for run in runs.values()]) for m in METRICS}
            for arm, runs in values.items()
        },
        "paired": {m: difference(values[MINING], values[RANDOM], m, m) for m in METRICS},
        "against position": over_position(values[MINING]),
        "long": {m: summary([run[m] for run in long.values()]) for m in METRICS},
        "long seeds": list(long),
        "long against position": over_position(long),
    }


def over_position(runs: dict[int, dict[str, float]]) -> dict[str, Any]:
    return {m: difference(runs, runs, m, f"{m}_position") for m in AGAINST_POSITION}


def summary(values: list[float]) -> dict[str, Any]:
    found = mean_ci(values)
    return {"mean": found.mean, "ci95": found.interval, "values": values}


def difference(one: Any, other: Any, metric: str, reference: str) -> dict[str, Any]:
    found = paired(
        {seed: run[metric] for seed, run in one.items()},
        {seed: run[reference] for seed, run in other.items()},
    )
    return {"difference": found.difference, "ci95": found.t_interval, "p": found.p_value}


def digits_of(metric: str) -> str:
    return ".1f" if metric.startswith("ink") else ".4f" if metric == "loss" else ".3f"


def number(entry: dict[str, Any], metric: str, sign: str = "") -> str:
    digits = digits_of(metric)
    value = entry.get("mean", entry.get("difference"))
    low, high = (format(bound, sign + digits) for bound in entry["ci95"])
    return f"{format(value, sign + digits)} [{low}, {high}]"


def table(found: dict[str, Any]) -> str:
    few = len(found["long seeds"])
    head = f"| | {MINING} | {RANDOM} | difference | {MINING}, longer, {few} seeds |"
    lines = [head, "|---|---|---|---|---|"]
    for metric, title in METRICS.items():
        cells = [number(found["arms"][arm][metric], metric) for arm in ARMS]
        cells.append(number(found["paired"][metric], metric, "+"))
        cells.append(number(found["long"][metric], metric))
        lines.append(f"| {title} | {' | '.join(cells)} |")
    lines += ["", "| less the position alone | 400 steps | longer |", "|---|---|---|"]
    for metric in AGAINST_POSITION:
        gaps = (found[part][metric] for part in ("against position", "long against position"))
        cells = [number(gap, metric, "+") for gap in gaps]
        lines.append(f"| {METRICS[metric]} | {' | '.join(cells)} |")
    seeds = f"{len(found['seeds'])} seeds, of the longer training {few},"
    lines += ["", f"Means over {seeds} with 95 % intervals (Student's t)."]
    return "\n".join(lines)


def draw(found: dict[str, Any], folder: Path) -> None:
    torch.set_num_threads(1)
    picture(train(0, ARMS[MINING], **LONG), folder)


def picture(model: MaskedViT, folder: Path) -> None:
    images = on_canvas(digits(0)[1][:10], torch.Generator().manual_seed(1))
    figure = mask_plot(model, images, HardPatchesMining(score="folds"))
    figure.savefig(folder / "system-hard-patches-mining.png", dpi=110, metadata={"Software": None})
