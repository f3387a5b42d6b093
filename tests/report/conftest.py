"""Studies made of files alone, as runs leave them."""

import base64
import io
import json
import math
import zlib
from pathlib import Path

import pytest
from PIL import Image

CLASSES = ["cat", "dog", "cow"]
SAMPLES = 30


def png() -> str:
    file = io.BytesIO()
    Image.new("L", (8, 8), 200).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def estimate(value: float) -> dict:
    return {"value": value, "stderr": 0.01 * value, "samples": 50, "method": "Hutchinson"}


def curvature(trace: float, density: bool = True) -> dict:
    points = [
        {
            "sigma": sigma,
            "rounding": 1e-9,
            "two_sided": estimate(sigma**2 / 2 * trace),
            "one_sided": estimate(sigma**2 / 2 * trace),
            "predicted": estimate(sigma**2 / 2 * trace),
        }
        for sigma in (0.05, 0.1, 0.2)
    ]
    nodes = [[-0.1, 0.0, 1.0, 4.0]] * 2
    return {
        "loss": 0.3,
        "trace": {
            **estimate(trace),
            "blocks": {"1.weight": estimate(0.7 * trace), "1.bias": estimate(0.3 * trace)},
        },
        "noise_stability": {"points": points},
        "density": {"nodes": nodes, "weights": [[0.1, 0.6, 0.2, 0.1]] * 2} if density else None,
    }


def landscape(points: int = 9) -> dict:
    at = [2 * i / (points - 1) - 1 for i in range(points)]
    axis = {"values": at, "length": 1.0, "normalization": "filter", "biases": "ignore"}
    return {
        "axes": [{**axis, "name": "random, seed 0"}, {**axis, "name": "random, seed 1"}],
        "loss": [[0.2 + x * x + 2 * y * y for y in at] for x in at],
        "samples": 200,
        "batchnorm": "",
        "corners": [],
    }


def predictions(seed: int, wrong: int, text: bool = False) -> dict:
    ids = [f"sample{i}" for i in range(SAMPLES)]
    labels = [i % 3 for i in range(SAMPLES)]
    missed = {(seed * 7 + i) % SAMPLES for i in range(wrong)}
    predicted = [(y + 1) % 3 if i in missed else y for i, y in enumerate(labels)]
    example = {"text": "a text"} if text else {"png": png()}
    return {
        "classes": CLASSES,
        "id": ids,
        "label": labels,
        "predicted": predicted,
        "confidence": [0.5] * SAMPLES,
        "examples": {ids[i]: example for i in missed},
    }


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_run(
    place: Path,
    method: str,
    seed: int,
    accuracy: float,
    *,
    gradients: float = 100,
    trace: float = 20.0,
    steps: int = 40,
) -> None:
    metrics = {
        "test_accuracy": accuracy,
        "test_loss": 1 - accuracy,
        "train_loss": 0.2,
        "hessian_trace": trace,
        "top_eigenvalue": trace / 5,
        "perturbation_gap": trace / 200,
        "gradients": gradients,
        "seconds_per_step": 0.001,
        "peak_bytes": 1e8,
    }
    results = {"task": "animals", "method": method, "seed": seed, "metrics": metrics}
    write(place / "results.json", {**results, "curvature": curvature(trace, density=False)})
    write(place / "environment.json", {"python": "3.11", "packages": {"torch": "2.13"}})
    write(place / "data.json", {"name": "animals", "train": {"count": 200, "origin": "given"}})
    (place / "recipe.yaml").write_text(f"data: animals\nperturb: {method}\nseed: {seed}\n")
    lines = [
        {
            "step": step,
            "epoch": step / 10,
            "loss": 2 * math.exp(-step / 20) + 0.01 * seed,
            "gradients": step * gradients / steps,
            "live_trace": trace,
        }
        for step in range(1, steps + 1)
    ]
    lines.append({"step": steps, "epoch": steps / 10, "validation_accuracy": accuracy})
    (place / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write(place / "predictions.json", predictions(seed, wrong=round(SAMPLES * (1 - accuracy))))


def write_study(folder: Path, methods: dict[str, float], seeds: int, **settings) -> Path:
    """A study whose methods reach about these accuracies, each on each seed."""
    for method, accuracy in methods.items():
        home = folder / method.replace(":", ",")
        for seed in range(seeds):
            own = zlib.crc32(f"{method}{seed}".encode()) % 10
            of_seed = accuracy + 0.01 * (seed % 3) + 0.001 * own
            write_run(home / f"seed-{seed}", method, seed, of_seed, **settings)
    common = {"data": "animals", "sigma": 0.1, "label_noise": None}
    write(
        folder / "study.json",
        {"methods": list(methods), "seeds": list(range(seeds)), "recipe": common},
    )
    return folder


@pytest.fixture
def study(tmp_path) -> Path:
    """Three methods on five seeds, with everything that a report can show."""
    folder = write_study(tmp_path / "animals", {"plain": 0.6, "nso": 0.8, "sam": 0.7}, seeds=5)
    for method in ("plain", "nso"):
        first = folder / method / "seed-0"
        write(first / "measure.json", curvature(20.0))
        write(first / "landscape.json", landscape())
        terms = ("loss_term", "noise_term", "distance_term", "confidence_term", "value")
        bound = {"terms": dict.fromkeys(terms, 1.5), "delta": 0.05, "vacuous": True}
        write(first / "bound.json", bound)
    return folder
