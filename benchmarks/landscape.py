"""What a point of a landscape costs, beside the package loss-landscapes.

    python benchmarks/landscape.py
    python -m venv /tmp/peer && /tmp/peer/bin/pip install torch loss-landscapes
    /tmp/peer/bin/python benchmarks/landscape.py --peer

The network of the demo (64-64-64-10, GELU) and 200 samples in one batch, one thread, 51 x 51
points. The first line measures ours, the second loss-landscapes; the smallest of twenty
repeats counts. Both write into docs/results/landscape.json. Only the first imports flatminima,
so that the peer can have an environment of its own.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

FILE = Path(__file__).parents[1] / "docs/results/landscape.json"
POINTS, SAMPLES, REPEATS = 51, 200, 20


def task() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 10)
    )
    return model, torch.rand(SAMPLES, 64), torch.randint(10, (SAMPLES,))


def fastest(run: Callable[[], Any]) -> float:
    run()
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def ours() -> dict[str, Any]:
    from flatminima import Supervised
    from flatminima.landscape import around, loss_slice, random_directions

    model, x, y = task()
    found = {}
    for name, objective, at_once in (
        ("loss and accuracy", Supervised(), 1),
        ("loss", lambda m, batch: nn.functional.cross_entropy(m(batch[0]), batch[1]), 1),
        ("loss and accuracy, 16 points at once", Supervised(), 16),
    ):

        def run(objective: Any = objective, at_once: int = at_once) -> None:
            frame = around(random_directions(model, 2))
            loss_slice(model, objective, [(x, y)], frame, points=POINTS, at_once=at_once)

        found[name] = {"seconds": fastest(run)}
    return {"package": "flatminima", "version": version("flatminima"), "slices": found}


def peer() -> dict[str, Any]:
    import loss_landscapes
    from loss_landscapes.metrics import Loss

    model, x, y = task()
    metric = Loss(nn.functional.cross_entropy, x, y)

    def run() -> None:
        loss_landscapes.random_plane(
            model, metric, distance=1.0, steps=POINTS, normalization="filter", deepcopy_model=True
        )

    def without_gradients() -> None:
        with torch.no_grad():
            run()

    found = {
        "loss": {"seconds": fastest(run)},
        "loss, inside torch.no_grad()": {"seconds": fastest(without_gradients)},
    }
    return {"package": "loss-landscapes", "version": version("loss-landscapes"), "slices": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", action="store_true", help="measure loss-landscapes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = peer() if arguments.peer else ours()
    for one in result["slices"].values():
        one["microseconds_per_point"] = 1e6 * one["seconds"] / POINTS**2
    result |= {"torch": torch.__version__, "machine": platform.machine(), "threads": 1}
    saved = (
        json.loads(FILE.read_text()) if FILE.exists() else {"points": POINTS, "samples": SAMPLES}
    )
    saved[result["package"]] = result
    FILE.write_text(json.dumps(saved, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
