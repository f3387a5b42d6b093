"""How much memory one measurement takes: printed in bytes, by a process that does nothing else.

    python benchmarks/measure_memory.py resnet "flatminima, trace"

It is the most resident memory (Linux' VmHWM, set back before the run) less that before the run,
with model and data loaded and the same done once on 8 samples, so that code, and what is kept for
ever, are not counted. Run with one batch of 512 samples, so that activations are what it is about.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SAMPLES, PRODUCTS = 512, 20
TASKS: dict[str, str | None] = {
    "training step": None,
    "flatminima, trace": "flatminima",
    "flatminima, trace by differences": "flatminima",
    "curvlinops, trace": "curvlinops",
    "hessian-eigenthings, trace": "hessian-eigenthings",
    "PyHessian, trace": "PyHessian",
}
"""What is measured, and the library that it needs."""


def run(task: str, network: Any) -> None:
    """A training step with AdamW, or a trace from 20 products."""
    import torch
    from measure_libraries import LIBRARIES
    from torch import nn

    from flatminima.measure import Hessian, hessian_trace
    from flatminima.objectives import Supervised

    if task == "training step":
        network.model.train()
        optimizer = torch.optim.AdamW(network.model.parameters(), lr=0.0)
        for x, y in network.batches:
            nn.functional.cross_entropy(network.model(x), y).backward()
            optimizer.step()
        network.model.eval()
        optimizer.zero_grad()
    elif task == "flatminima, trace by differences":
        operator = Hessian(network.model, Supervised(), network.batches, backend="differences")
        hessian_trace(operator, probes=PRODUCTS)
    else:
        library = LIBRARIES[task.removesuffix(", trace")][0](network)
        # A multiple of what each can divide.
        library.trace(PRODUCTS // library.multiple * library.multiple, 0)


def resident(field: str) -> int:
    """A line of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"no {field} in /proc/self/status: this needs Linux")


def main() -> None:
    if os.environ.get("MALLOC_MMAP_THRESHOLD_") is None:
        # Large tensors get pages of their own, which go back at once: no fragments are counted.
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
        raise SystemExit(subprocess.run([sys.executable, *sys.argv], env=environment).returncode)
    import torch
    from measure_subjects import Subject, subject

    name, task = sys.argv[1:]
    torch.set_num_threads(1)
    network = subject(name, samples=SAMPLES, batch=SAMPLES)
    (x, y), *_ = network.batches
    small = Subject(name, network.model, [(x[:8], y[:8])], network.accuracy, network.loss)
    run(task, small)
    network.model.zero_grad()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    run(task, network)
    print(resident("VmHWM") - before)


if __name__ == "__main__":
    main()
