"""Whether to draw the next step's noise on another thread while a gradient is taken.

    python benchmarks/draw_ahead.py

Compares, in turns within one process: a gradient, then noise on all weights as the library adds it;
and a gradient beside which another thread draws that noise into a buffer, which is then added.
Writes docs/results/draw-ahead.json; docs/performance.md says what it found.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from step_contenders import SIGMA
from step_models import TASKS

from flatminima.files import write_json
from flatminima.perturb.drawing import Draw, add_all
from flatminima.perturb.noise import Noise
from flatminima.training.directory import environment

ROOT = Path(__file__).parents[1]
WARM_UP, LEAST_ROUNDS = 2, 5


def compare(name: str, seconds: float) -> dict[str, Any]:
    """Median milliseconds of a gradient alone, with noise after it, and with noise beside it."""
    task = TASKS[name]
    torch.manual_seed(0)
    model, batch = task.build().train(), task.batch(task.batch_size)
    weights = [parameter.detach() for parameter in model.parameters()]
    noise = Noise.named("normal")
    draws = [Draw(noise, seed, SIGMA) for seed in range(len(weights))]
    buffers = [torch.empty_like(weight) for weight in weights]

    def gradient() -> None:
        model(**batch).loss.backward()

    def draw_into_buffers() -> None:
        for buffer, draw in zip(buffers, draws, strict=True):
            noise.sample(buffer, torch.Generator().manual_seed(draw.seed)).mul_(SIGMA)

    def after() -> None:
        gradient()
        add_all(weights, draws)

    def beside() -> None:
        with ThreadPoolExecutor(1) as pool:
            drawn = pool.submit(draw_into_buffers)
            gradient()
            drawn.result()
        torch._foreach_add_(weights, buffers)

    ways = {"gradient": gradient, "noise after it": after, "noise beside it": beside}
    spent: dict[str, list[float]] = {way: [] for way in ways}
    begin = time.perf_counter()
    while len(spent["gradient"]) < WARM_UP + LEAST_ROUNDS or time.perf_counter() - begin < seconds:
        home = [weight.clone() for weight in weights]
        for way, run in ways.items():
            model.zero_grad()
            start = time.perf_counter()
            run()
            spent[way].append(1e3 * (time.perf_counter() - start))
            torch._foreach_copy_(weights, home)
    kept = {way: np.array(times[WARM_UP:]) for way, times in spent.items()}
    gain = kept["noise after it"] - kept["noise beside it"]
    drawn = np.random.default_rng(0).integers(0, len(gain), (2000, len(gain)))
    return {
        "title": task.title,
        "samples": task.batch_size,
        "rounds": len(gain),
        "ms": {way: float(np.median(times)) for way, times in kept.items()},
        "gain_ms": float(np.median(gain)),
        "gain_ci95": [float(q) for q in np.quantile(np.median(gain[drawn], 1), (0.025, 0.975))],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=40.0, help="of rounds, for each network")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/draw-ahead.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    found = {name: compare(name, arguments.seconds) for name in ("resnet-18", "bert-23m")}
    write_json(arguments.out, found)
    machine = {**environment(), "threads": arguments.threads}
    write_json(arguments.out.with_name(f"{arguments.out.stem}-environment.json"), machine)
    for row in found.values():
        print(f"{row['title']}: {row['ms']}, gain {row['gain_ms']:.1f} ms {row['gain_ci95']}")


if __name__ == "__main__":
    main()
