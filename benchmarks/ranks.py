"""What data-parallel training sends: two gloo processes measured, and a model for 8 to 1024 GPUs.

python benchmarks/ranks.py

Writes docs/results/ranks.json and its machine, and docs/results/ranks.svg, the model's plot. `make
readme` puts the table into docs/performance.md.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

import flatminima
from flatminima.files import write_json
from flatminima.training.directory import environment

ROOT = Path(__file__).parents[1]
RANKS, ROUNDS, STEPS = 2, 7, 4
METHODS: dict[str, dict[str, Any]] = {
    "plain": {},
    "nso-one-pass": {"sigma": 0.01},
    "nso": {"sigma": 0.01},
    "nso, no synchronizing()": {"sigma": 0.01},
    "sam": {"rho": 0.05},
    "sam, shared_ascent": {"rho": 0.05, "shared_ascent": True},
    "asam": {"rho": 0.5},
    "gsam": {"rho": 0.05},
    "friendly-sam": {"rho": 0.05},
    "looksam": {"rho": 0.05},
}
GPUS = (8, 16, 32, 64, 128, 256, 512, 1024)
BANDWIDTHS = (3, 12.5, 50)
"""GB/s of all-reduce between nodes, per GPU, that the model is drawn for (25 to 400 Gbit/s)."""


def network() -> nn.Module:
    """4.2 million weights, so that sending them takes a while."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(256, 2048), nn.GELU(), nn.Linear(2048, 1792), nn.Linear(1792, 10)
    )


def measured(rank: int) -> dict[str, Any]:
    """Seconds, all-reduces and bytes of a step of each method, interleaved over rounds."""
    runs: dict[str, Any] = {}
    x, y = torch.randn(64, 256), torch.randint(0, 10, (64,))
    for name, options in METHODS.items():
        model = network()
        net = DistributedDataParallel(model)
        sent: list[int] = []

        def hook(state, bucket):  # DDP takes no other annotations than its own
            state.append(bucket.buffer().numel() * bucket.buffer().element_size())
            return allreduce_hook(None, bucket)

        net.register_comm_hook(sent, hook)
        base = torch.optim.SGD(model.parameters(), lr=1e-3)
        optimizer = flatminima.make(name.split(",")[0], base, **options)
        runs[name] = (net, optimizer, sent, [], "no sync" in name)
    for round_ in range(ROUNDS + 1):
        for net, optimizer, sent, seconds, everywhere in runs.values():
            distributed.barrier()
            start = time.perf_counter()
            for _ in range(STEPS):
                for x_, y_ in optimizer.passes(x, y):
                    if everywhere:
                        nn.functional.cross_entropy(net(x_), y_).backward()
                        continue
                    with optimizer.synchronizing(net):
                        nn.functional.cross_entropy(net(x_), y_).backward()
                optimizer.step()
                optimizer.zero_grad()
            if round_:
                seconds.append((time.perf_counter() - start) / STEPS)
            else:
                sent.clear()  # the first round warms up, and DDP sorts its buckets anew
    steps = ROUNDS * STEPS
    found = {}
    for name, (_, _, sent, seconds, _) in runs.items():
        ratios = [s / p for s, p in zip(seconds, runs["plain"][3], strict=True)]
        found[name] = {
            "all_reduces": len(sent) / steps,
            "bytes": sum(sent) / steps,
            "seconds": statistics.median(seconds),
            "ratio": statistics.median(ratios),
            "ratio_range": [min(ratios), max(ratios)],
        }
    return found


def process(rank: int, folder: str) -> None:
    """One of the two."""
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=RANKS)
    found = measured(rank)
    if rank == 0:
        Path(folder, "found.json").write_text(json.dumps(found))
    distributed.barrier()
    distributed.destroy_process_group()
    os._exit(0)  # threads of gloo may abort an interpreter that winds down


def modelled() -> dict[str, Any]:
    """Step times on paper, in seconds: compute plus what of the all-reduce it cannot hide.

    A ring all-reduce of B bytes between n GPUs takes 2 (n - 1)/n B / bandwidth + 2 (n - 1) latency.
    DDP hides it behind the backward pass that it follows, two thirds of a gradient; the rest waits.
    """
    weights, gradient, latency = 1.5e9, 0.35, 5e-6
    sent = 2 * weights  # bf16
    kinds = {  # gradients a step, all-reduces a step
        "plain, one-pass NSO": (1, 1),
        "NSO, SAM": (2, 1),
        "reducing in each pass": (2, 2),
    }
    curves: dict[str, Any] = {}
    for bandwidth in BANDWIDTHS:
        for kind, (gradients, reduces) in kinds.items():
            hidden = 2 / 3 * gradient
            row = []
            for n in GPUS:
                reduce = 2 * (n - 1) / n * sent / (bandwidth * 1e9) + 2 * (n - 1) * latency
                row.append(gradients * gradient + reduces * max(0.0, reduce - hidden))
            curves.setdefault(str(bandwidth), {})[kind] = row
    return {
        "gpus": GPUS,
        "weights": weights,
        "bytes": sent,
        "gradient_seconds": gradient,
        "latency": latency,
        "seconds": curves,
    }


def plot(model: dict[str, Any], file: Path) -> None:
    """The model's step times, a panel for each bandwidth."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "flatminima"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(BANDWIDTHS), figsize=(10, 3.2), sharey=True)
    for ax, (bandwidth, curves) in zip(axes, model["seconds"].items(), strict=True):
        for kind, seconds in curves.items():
            ax.plot(model["gpus"], seconds, marker="o", markersize=3, label=kind)
        ax.set(xscale="log", title=f"{bandwidth} GB/s per GPU", xlabel="GPUs")
        ax.set_xticks(model["gpus"][::2], model["gpus"][::2])
        ax.minorticks_off()
    axes[0].set(ylabel="seconds a step, on paper", ylim=(0, None))
    axes[-1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    """Measure, model, write."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(process, (folder,), nprocs=RANKS)
        found = json.loads(Path(folder, "found.json").read_text())
    model = modelled()
    results = ROOT / "docs/results"
    parameters = sum(p.numel() for p in network().parameters())
    write_json(
        results / "ranks.json",
        {"ranks": RANKS, "parameters": parameters, "methods": found, "model": model},
    )
    write_json(results / "ranks-environment.json", {**environment(), "threads": 1})
    plot(model, results / "ranks.svg")
    for name, row in found.items():
        print(
            f"{name:<24} {row['all_reduces']:.2f} all-reduces, {row['bytes'] / 1e6:.1f} MB, "
            f"{row['ratio']:.2f} x plain"
        )


if __name__ == "__main__":
    main()
