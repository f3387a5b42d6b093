"""What a step of each method costs beside a step of plain training: time, memory, gradients.

    python benchmarks/steps.py                          # ResNet-18 and a BERT of 23 M weights
    python benchmarks/steps.py vit-small:2 vit-small:16 gpt2-small --minutes 3
    python benchmarks/steps.py --peer nsm=PATH --peer sam=PATH
    python benchmarks/steps.py resnet-50 gpt2-medium --device cuda --precision bf16

A case is a network, or NETWORK:BATCH_SIZE. All contenders take turns within one process, in a new
order each round, so what else the machine does falls on all alike; ratios are of medians, with a
bootstrap interval over rounds. Each case takes `--minutes` (default 4). Cases are added to
docs/results/steps.json (of a GPU to steps-cuda.json), and `make readme` writes the tables of
docs/performance.md from it.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from step_anatomy import anatomy, peak_bytes
from step_contenders import Contender, Gradient, Step, contenders, from_file
from step_models import TASKS, Batch, Task
from step_picture import plot
from torch import nn

from flatminima.files import write_json
from flatminima.training.directory import environment

ROOT = Path(__file__).parents[1]
WARM_UP = 2
LEAST_ROUNDS = 5
DISSECTED = ("nso", "nso, noise='table'", "nso-one-pass", "sam")


def compare(
    name: str, samples: int, minutes: float, peers: Sequence[str], device: str, precision: str
) -> dict[str, Any]:
    """One case: every contender on one network."""
    task = TASKS[name]
    torch.manual_seed(0)
    model = task.build().train().to(device)
    batch = {name: tensor.to(device) for name, tensor in task.batch(samples).items()}
    taken = partial(Gradient, model, samples, precision)
    rivals = [*contenders(), *map(from_file, peers)]
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    memory = {rival.name: _memory(rival, taken(), task, batch) for rival in rivals}
    gradients = {rival.name: taken() for rival in rivals}
    steps = {rival.name: rival.build(gradients[rival.name], task) for rival in rivals}
    for step in steps.values():
        for _ in range(WARM_UP):
            step(batch)
            model.zero_grad()
    for gradient in gradients.values():
        gradient.calls, gradient.batches = 0, 0.0
    wall, cpu, faults = _rounds(steps, model, batch, 60 * minutes)
    rounds = len(wall["plain"])
    found = {
        rival.name: {
            "mathematics": rival.mathematics,
            "peer": rival.peer,
            "passes": gradients[rival.name].calls / rounds,
            "gradients": gradients[rival.name].batches / rounds,
            "wall": _against(wall[rival.name], wall["plain"]),
            "cpu": _against(cpu[rival.name], cpu["plain"]),
            "page_faults": float(np.median(faults[rival.name])),
            "peak_bytes": memory[rival.name],
            "copies": (memory[rival.name] - memory["plain"]) / weights,
        }
        for rival in rivals
    }
    return {
        "title": task.title,
        "samples": samples,
        "weights": sum(p.numel() for p in model.parameters()),
        "base": task.base.__name__,
        "device": device,
        "precision": precision,
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "contenders": found,
        # On a GPU the parts of a step run behind the host's back, and cannot be told apart so.
        "anatomy": {
            rival.name: anatomy(rival.build, taken(), task, batch, rounds=min(30, rounds))
            for rival in rivals
            if rival.name in DISSECTED and device == "cpu"
        },
    }


def _memory(rival: Contender, gradient: Gradient, task: Task, batch: Batch) -> int:
    """Bytes at the peak of a second step, of which the model and the batch are no part."""

    def run() -> None:
        step = rival.build(gradient, task)
        step(batch)
        step(batch)

    gradient.model.zero_grad()
    return peak_bytes(run, next(gradient.model.parameters()).device)


def _rounds(
    steps: dict[str, Step], model: nn.Module, batch: Batch, seconds: float
) -> tuple[dict[str, list[float]], ...]:
    """Wall seconds, CPU seconds and page faults of each contender's steps."""
    found: tuple[dict[str, list[float]], ...] = tuple({n: [] for n in steps} for _ in range(3))
    order, begin = list(steps), time.perf_counter()
    shuffle = random.Random(0)
    while len(found[0]["plain"]) < LEAST_ROUNDS or time.perf_counter() - begin < seconds:
        shuffle.shuffle(order)
        for name in order:
            model.zero_grad()  # some peers leave gradients of zeros behind
            for numbers, number in zip(found, _spent(steps[name], batch), strict=True):
                numbers[name].append(number)
    return found


def _spent(step: Step, batch: Batch) -> tuple[float, float, int]:
    """Wall seconds, CPU seconds and page faults of a step."""
    wall, cpu, faults = time.perf_counter(), time.process_time(), _page_faults()
    step(batch)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - cpu, _page_faults() - faults


def _page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def _against(seconds: list[float], plain: list[float]) -> dict[str, Any]:
    """Median milliseconds, and the ratio of medians to plain training's."""
    ours, theirs = np.array(seconds), np.array(plain)
    drawn = np.random.default_rng(0).integers(0, len(ours), (2000, len(ours)))
    ratios = np.median(ours[drawn], axis=1) / np.median(theirs[drawn], axis=1)
    return {
        "ms": round(1e3 * float(np.median(ours)), 3),
        "quartiles_ms": [round(1e3 * float(q), 3) for q in np.quantile(ours, (0.25, 0.75))],
        "least_ms": round(1e3 * float(ours.min()), 3),
        "ratio": float(np.median(ours) / np.median(theirs)),
        "ci95": [float(q) for q in np.quantile(ratios, (0.025, 0.975))],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", default=["resnet-18", "bert-23m"], metavar="CASE")
    parser.add_argument("--minutes", type=float, default=4.0, help="of rounds, for each case")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="autocast")
    parser.add_argument("--out", type=Path, help="default: docs/results/steps.json, or -cuda.json")
    arguments = parser.parse_args()
    device = arguments.device
    out = arguments.out or ROOT / f"docs/results/steps{'' if device == 'cpu' else '-cuda'}.json"
    torch.set_num_threads(arguments.threads)
    found = json.loads(out.read_text()) if out.exists() else {}
    for case in arguments.cases:
        name, _, samples = case.partition(":")
        if name not in TASKS:
            raise SystemExit(f"no network {name!r}: choose of {', '.join(TASKS)}")
        size = int(samples) if samples else TASKS[name].batch_size
        if size < 2:
            raise SystemExit(f"{case}: give at least 2 samples, since one-pass NSO halves them")
        found[f"{name}:{size}"] = compare(
            name, size, arguments.minutes, arguments.peer, device, arguments.precision
        )
        write_json(out, found)
        plot(found, out.with_suffix(".svg"))
        _show(found[f"{name}:{size}"])
    machine = {**environment(), "threads": arguments.threads}
    write_json(out.with_name(f"{out.stem}-environment.json"), machine)


def _show(case: dict[str, Any]) -> None:
    print(f"{case['title']}, {case['samples']} samples, {case['rounds']} rounds")
    for name, row in case["contenders"].items():
        wall, cpu = row["wall"], row["cpu"]
        print(
            f"  {name:<36} {wall['ms']:8.1f} ms  {wall['ratio']:.3f} "
            f"[{wall['ci95'][0]:.3f}, {wall['ci95'][1]:.3f}]  cpu {cpu['ratio']:.3f} "
            f"[{cpu['ci95'][0]:.3f}, {cpu['ci95'][1]:.3f}]  {row['gradients']:.2f} gradients  "
            f"{row['copies']:+.2f} copies"
        )
    for name, parts in case["anatomy"].items():
        shown = ", ".join(f"{part} {ms:.1f}" for part, ms in parts.items())
        print(f"  anatomy of {name} (ms): {shown}")


if __name__ == "__main__":
    main()
