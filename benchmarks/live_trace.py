"""What the live trace costs, and how close it comes to the exact trace along a run.

    python benchmarks/live_trace.py cost run

On one core: 5 minutes. Writes docs/results/live-trace.json and, beside it, the machine and a
picture. `make readme` makes the docs' tables.

Cost: steps of three models without a meter, with one that looks at each step, with one as it is by
default, and the last with its estimate read after each step as the training loop does. They take
turns in blocks of steps; a block's time is that of the thread on the CPU, and is compared with
that of the block without a meter in the same turn. Of large models the difference drowns in noise,
so the time inside the meter's own calls, when it looks at each step, is taken too.

Run: the recipe of recipes/demo.yaml with NSO at two sigmas. Every so many steps, on the whole
training set: the exact Hessian trace; the trace of the smoothed loss F, which is the mean of the
gradient form; and the smoothed curvature, which is that of the loss form.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from flatminima import NSO, LiveTrace, Supervised, hessian_trace
from flatminima.files import write_json
from flatminima.measure import Hessian
from flatminima.training import loop
from flatminima.training.assemble import assemble, make_accelerator
from flatminima.training.curvature import measured_batches
from flatminima.training.directory import RunDirectory, environment
from flatminima.training.networks import MLP
from flatminima.training.prepared import prepare
from flatminima.training.recipe import Recipe, read
from flatminima.training.state import State

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs/results"
Step = Callable[[], None]


def mlp() -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    return MLP(64, 10), (torch.randn(32, 64), torch.randint(10, (32,)))


def resnet() -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32, 64], depths=[2, 2, 2], layer_type="basic"
    )
    config.num_labels = 10
    batch = torch.randn(32, 3, 64, 64), torch.randint(10, (32,))
    return ResNetForImageClassification(config), batch


def bert() -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=5000,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=1024,
        num_labels=4,
    )
    batch = torch.randint(5000, (16, 64)), torch.randint(4, (16,))
    return BertForSequenceClassification(config), batch


MODELS = {
    "MLP, batch 32": (mlp, 100, 60),
    "ResNet, batch 32 of 64 x 64": (resnet, 10, 12),
    "BERT, batch 16 of 64 tokens": (bert, 10, 8),
}
"""What makes a model, how many steps a block has, and how many turns are taken."""


class Timed(LiveTrace):
    """Adds up the time of its own calls."""

    own = 0.0

    def begin(self, *arguments: Any) -> bool:
        return self._timed(super().begin, *arguments)

    def start(self, *arguments: Any) -> None:
        self._timed(super().start, *arguments)

    def end(self, *arguments: Any) -> None:
        self._timed(super().end, *arguments)

    def stepped(self) -> None:
        self._timed(super().stepped)

    def _timed(self, method: Callable[..., Any], *arguments: Any) -> Any:
        started = time.thread_time()
        found = method(*arguments)
        self.own += time.thread_time() - started
        return found


METERS: dict[str, dict[str, Any]] = {
    "none": {},
    "each step": {"every": 1},
    "default": {"every": None},
    "default, read each step": {"every": None, "read": True},
}


def stepper(
    build: Callable[[], Any],
    every: int | None = 0,
    read: bool = False,
    kind: type[LiveTrace] = LiveTrace,
) -> Step:
    """What takes one step of NSO."""
    torch.manual_seed(0)
    model, (x, y) = build()
    optimizer = NSO(torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9), sigma=0.01, seed=0)
    meter = None
    if every != 0:
        meter = kind(optimizer) if every is None else kind(optimizer, every=every)

    def step() -> None:
        for inputs, targets in optimizer.passes(x, y):
            found = model(inputs)
            cross_entropy(getattr(found, "logits", found), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        if read and meter is not None:
            meter.estimate()

    step()
    step.meter = meter  # type: ignore[attr-defined]
    step.weights = sum(p.numel() for p in model.parameters())  # type: ignore[attr-defined]
    step.tensors = len(list(model.parameters()))  # type: ignore[attr-defined]
    return step


def cost(build: Callable[[], Any], block: int, turns: int) -> dict[str, Any]:
    """Milliseconds of a step without a meter, and percent that meters add to it."""
    steppers = {name: stepper(build, **settings) for name, settings in METERS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steppers}
    for _ in range(turns):
        for name, step in steppers.items():
            started = time.thread_time()
            for _ in range(block):
                step()
            seconds[name].append((time.thread_time() - started) / block)
    watched = stepper(build, every=1, kind=Timed)
    started = time.thread_time()
    for _ in range(2 * block):
        watched()
    inside = watched.meter.own / (time.thread_time() - started)  # type: ignore[attr-defined]
    plain = seconds.pop("none")
    found: dict[str, Any] = {
        "weights": steppers["none"].weights,  # type: ignore[attr-defined]
        "tensors": steppers["none"].tensors,  # type: ignore[attr-defined]
        "step_ms": 1000 * statistics.median(plain),
        "inside_percent": 100 * inside,
        "percent": {},
    }
    for name, own in seconds.items():
        added = [100 * (a / b - 1) for a, b in zip(own, plain, strict=True)]
        low, middle, high = statistics.quantiles(added, n=4)
        found["percent"][name] = {"median": middle, "quartiles": [low, high]}
    return found


SIGMAS, MEASURE_EVERY, PAIRS = (0.1, 0.03), 20, 300


def along_a_run(sigma: float) -> dict[str, Any]:
    """The curvatures along a run, and what meters said of them."""
    exact, live = run(sigma, every=1, measure=True)
    _, default = run(sigma, every=10, measure=False)
    return {"sigma": sigma, "exact": exact, "every 1": live, "every 10": default}


def run(sigma: float, every: int, measure: bool) -> tuple[list[Any], list[Any]]:
    """Train by the demo's recipe, and look at the model and at the meter on the way."""
    said = read(ROOT / "recipes/demo.yaml")
    recipe = Recipe.from_flat(
        {k: v for k, v in said.items() if k not in ("perturb", "seeds", "sigma", "rho")}
    ).but(
        perturb="nso:running_statistics=clean",  # the MLP has none; for the pass at W
        sigma=sigma,
        live_trace=True,
        live_trace_every=every,
    )
    prepared = prepare(recipe)
    exact: list[Any] = []
    told: list[Any] = []
    with tempfile.TemporaryDirectory() as out:
        directory = RunDirectory(Path(out))
        going = assemble(prepared, directory, make_accelerator(recipe))
        batches = measured_batches(prepared, torch.device("cpu"))
        whole = {k: torch.cat([batch[k] for batch in batches]) for k in batches[0]}

        def look(stage: str, done: int, total: int, beside: str = "") -> None:
            assert going.meter is not None
            if done % MEASURE_EVERY == 0 or done == total:
                meter = going.meter
                found = {
                    "trace": meter.estimate(),
                    "smoothed": meter.smoothed_curvature(),
                    "corrected": meter.corrected(),
                }
                told.append({"step": done} | {k: pair(v) for k, v in found.items()})
                if measure:
                    exact.append({"step": done} | curvatures(going.model, whole, sigma))

        loop.train(going, State(), look)
    return exact, told


def curvatures(model: nn.Module, batch: Any, sigma: float) -> dict[str, Any]:
    """Exact trace, trace of the smoothed loss, smoothed curvature, with their errors."""
    found = hessian_trace(Hessian(model, Supervised(), [batch]), rel_error=0.01)
    still = copy.deepcopy(model)
    optimizer = NSO(
        torch.optim.SGD(still.parameters(), lr=0.0),
        sigma=sigma,
        seed=1,
        running_statistics="clean",
    )
    meter = LiveTrace(optimizer, every=1, memory=1e12)
    for _ in range(PAIRS):
        for _ in optimizer.passes():
            loss = Supervised()(still, batch)
            loss.backward()
            meter.saw(loss)
        optimizer.step()
        optimizer.zero_grad()
    return {
        "hessian_trace": pair(found),
        "trace": pair(meter.estimate()),
        "smoothed": pair(meter.smoothed_curvature()),
        "corrected": pair(meter.corrected()),
        "loss": Supervised()(still, batch).item(),
    }


def pair(estimate: Any) -> list[float | None]:
    """An estimate's value and error."""
    found = estimate.to_dict()
    return [found["value"], found["stderr"]]


def plot(runs: list[dict[str, Any]], file: Path) -> None:
    """The curvatures along the runs; points are measured, lines are the meter's."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "flatminima"
    import matplotlib.pyplot as plt

    colors = {"hessian_trace": "black", "trace": "C1", "smoothed": "C0"}
    words = {
        "hessian_trace": "exact Hessian trace",
        "trace": "trace of the smoothed loss",
        "smoothed": "smoothed curvature",
    }
    meters = {"trace": "estimate()", "smoothed": "smoothed_curvature()", "corrected": "corrected()"}
    figure, panels = plt.subplots(1, len(runs), figsize=(9, 3.4), sharey=True)
    for panel, found in zip(panels, runs, strict=True):
        for name, color in colors.items():
            rows = found["exact"]
            panel.plot(
                [row["step"] for row in rows],
                [row[name][0] for row in rows],
                ".",
                color=color,
                label=words[name],
            )
        for name, label in meters.items():
            color = colors.get(name, "black")
            rows = [row for row in found["every 1"] if row[name][1] is not None]
            steps, values = [row["step"] for row in rows], [row[name][0] for row in rows]
            errors = [row[name][1] for row in rows]
            panel.plot(steps, values, color=color, linewidth=1, label=label)
            bands = list(zip(values, errors, strict=True))
            low, high = [v - e for v, e in bands], [v + e for v, e in bands]
            panel.fill_between(steps, low, high, color=color, alpha=0.12, linewidth=0)
        panel.set(title=f"sigma {found['sigma']:g}", xlabel="step")
    panels[0].set(ylabel="curvature", ylim=(0, None))
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="lower center", ncols=3, frameon=False
    )
    figure.tight_layout(rect=(0, 0.14, 1, 1))
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="+", choices=("cost", "run"))
    parts = parser.parse_args().parts
    torch.set_num_threads(1)
    file = RESULTS / "live-trace.json"
    found = json.loads(file.read_text()) if file.exists() else {}
    if "cost" in parts:
        found["cost"] = {name: cost(*settings) for name, settings in MODELS.items()}
    if "run" in parts:
        found["runs"] = [along_a_run(sigma) for sigma in SIGMAS]
    if "runs" in found:
        plot(found["runs"], RESULTS / "live-trace.svg")
    write_json(file, found)
    write_json(RESULTS / "live-trace-environment.json", environment())


if __name__ == "__main__":
    main()
