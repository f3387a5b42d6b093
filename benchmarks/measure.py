"""Time, products and memory of curvature measures, beside the other libraries' in one process.

    python -m venv peers
    peers/bin/pip install -e '.[cli,text]' pytest \\
        curvlinops-for-pytorch hessian-eigenthings pyhessian
    OMP_NUM_THREADS=1 peers/bin/python benchmarks/measure.py
    peers/bin/python benchmarks/measure.py resnet --parts traces memory
    peers/bin/python -m pytest tests/measure/test_peers.py

An environment of its own, since the other libraries bring much that flatminima does without; those
that are not installed are left out. One thread, half an hour or more; networks and parts can be
run one at a time. Writes docs/results/measure.json and, beside it, the machine; `make readme` makes
the docs' tables.

Seconds are CPU seconds of the process, which other work on the machine moves little; the repeats of
a row go round the libraries in turn. All estimators of the trace are unbiased, so the error of one
at a number of products is its standard deviation over seeds, by the mean over all libraries.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure_libraries import LIBRARIES, Flatminima, PyHessian, installed
from measure_memory import TASKS as MEMORY_TASKS
from measure_subjects import NETWORKS, Subject, subject
from torch import nn

import flatminima
from flatminima.files import write_json
from flatminima.measure import Hessian, hessian_trace, top_eigenvalues
from flatminima.objectives import Supervised
from flatminima.training.directory import _version, environment

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs/results"
TARGETS = (0.05, 0.01)
SEEDS, FEWER_SEEDS, MANY, REPEATS = 16, 8, 100, 3
"""Estimates for an error, and of more than so many products; repeats of what is timed."""

MOST_PRODUCTS = 600
PROBES_TIMED = 40
EIGENVALUES, EIGEN_ERROR = (1, 20), 1e-3
PEERS = ("curvlinops-for-pytorch", "hessian-eigenthings", "PyHessian", "scipy")


def described(network: Subject, made: dict[str, Any]) -> dict[str, Any]:
    """The network, and whether its products are right."""
    return {
        "parameters": network.parameters,
        "samples": sum(len(y) for _, y in network.batches),
        "batches": len(network.batches),
        "accuracy": network.accuracy,
        "loss": network.loss,
        "product_errors": product_errors(network, made),
        "gradient_seconds": spread([clocked(lambda: gradient(network)) for _ in range(9)]),
    }


def product_errors(network: Subject, made: dict[str, Any]) -> dict[str, float]:
    """How far the product with a random vector is from the one in float64, relative to it."""
    double = [(x.double() if x.is_floating_point() else x, y) for x, y in network.batches]
    exact = Hessian(copy.deepcopy(network.model).double(), Supervised(), double)
    vector = torch.randn(exact.shape[0], generator=torch.Generator().manual_seed(0))
    truth = exact.matmat(vector.double()[:, None])[:, 0]
    return {
        library: ((one.product(vector).double() - truth).norm() / truth.norm()).item()
        for library, one in made.items()
    }


def traces(network: Subject, made: dict[str, Any]) -> dict[str, Any]:
    """How many products each needs for an error, and their time."""
    found: dict[str, dict[int, list[float]]] = {library: {} for library in made}
    needed: dict[str, dict[float, int | None]] = {}
    for library, one in made.items():
        needed[library] = products_needed(one, found[library])
    values = [value for runs in found.values() for row in runs.values() for value in row]
    rows = []
    for target in TARGETS:
        counts = {library: row[target] for library, row in needed.items()}
        rows.append({"target": target, "libraries": timed_traces(made, counts)})
    return {
        "trace": statistics.median(values),
        "trace_errors": {
            library: {str(m): relative_deviation(row) for m, row in sorted(runs.items())}
            for library, runs in found.items()
        },
        "trace_rows": rows,
    }


def products_needed(one: Any, runs: dict[int, list[float]]) -> dict[float, int | None]:
    """Products until the deviation over seeds is below each target; None if too many."""
    if isinstance(one, PyHessian):
        # Independent probes: their number follows from the deviation of one.
        forms = one.forms(200, seed=0, tol=-math.inf)
        runs[1] = forms
        return {t: math.ceil((relative_deviation(forms) / t) ** 2) for t in TARGETS}

    def error(m: int) -> float:
        if m not in runs:
            seeds = range(SEEDS if m <= MANY else FEWER_SEEDS)
            runs[m] = [one.trace(m, seed) for seed in seeds]
        return relative_deviation(runs[m])

    return {target: _search(error, target, one.multiple, list(runs)) for target in TARGETS}


def _search(
    error: Callable[[int], float], target: float, multiple: int, known: list[int]
) -> int | None:
    """On the line in logarithms through the two tries that are nearest to the target."""
    m, tried = 24, {m: error(m) for m in known}
    while m <= MOST_PRODUCTS:
        tried[m] = error(m)
        near = sorted(tried, key=lambda n: abs(math.log(tried[n] / target)))
        slope = -1.0
        if len(near) > 1:
            slope = math.log(tried[near[0]] / tried[near[1]]) / math.log(near[0] / near[1])
        # No estimator gains less by more products than independent probes do.
        power = (target / tried[near[0]]) ** (1 / min(slope, -0.5))
        m = max(12, math.ceil(near[0] * min(power, 4) / multiple) * multiple)
        if m in tried or (len(near) > 1 and 0.8 < tried[near[0]] / target < 1.25):
            return m
    return None


def timed_traces(made: dict[str, Any], counts: dict[str, int | None]) -> dict[str, Any]:
    """The seconds of each library's number of products; of independent probes, scaled."""
    scales, seconds = {}, {library: [] for library in made}
    gradients: dict[str, int] = {}
    for repeat in range(REPEATS):
        for library, one in made.items():
            m = counts[library]
            if m is None:
                continue
            run = min(m, PROBES_TIMED) if isinstance(one, PyHessian) else m
            scales[library] = m / run
            before = one.gradients
            taken = clocked(lambda one=one, run=run, seed=repeat: one.trace(run, seed))
            gradients[library] = round((one.gradients - before) * m / run)
            seconds[library].append(taken * m / run)
    return {
        library: {
            "method": one.trace_method,
            "products": counts[library],
            "gradients": gradients.get(library),
            "seconds": spread(seconds[library]) if seconds[library] else None,
            "scaled": scales.get(library, 1) > 1,
        }
        for library, one in made.items()
    }


def stop_rules(network: Subject, made: dict[str, Any]) -> dict[str, Any]:
    """What comes out where the library itself says when to stop."""
    rules: dict[str, Callable[[int], tuple[float, int]]] = {}
    ours = made.get("flatminima")
    for asked in TARGETS if isinstance(ours, Flatminima) else ():

        def until(seed: int, asked: float = asked) -> tuple[float, int]:
            run = hessian_trace(ours.operator, probes=2000, rel_error=asked, seed=seed)
            return run.value, run.hvps

        rules[f"flatminima, rel_error={asked:g}"] = until
    if "PyHessian" in made:

        def settled(seed: int) -> tuple[float, int]:
            forms = made["PyHessian"].forms(1000, seed, tol=1e-3)
            return float(np.mean(forms)), len(forms)

        rules["PyHessian, tol=1e-3"] = settled
    return {"stop_rules": {rule: _ruled(run) for rule, run in rules.items()}}


def _ruled(run: Callable[[int], tuple[float, int]]) -> dict[str, Any]:
    values, products, seconds = [], [], []
    for seed in range(FEWER_SEEDS):
        start = time.process_time()
        value, made = run(seed)
        seconds.append(time.process_time() - start)
        values.append(value)
        products.append(made)
    return {
        "values": values,
        "products": statistics.median(products),
        "seconds": spread(seconds),
        "error": relative_deviation(values),
    }


def eigenvalues(network: Subject, made: dict[str, Any]) -> dict[str, Any]:
    """For each k; see `_eigenvalues`."""
    return {"eigenvalues": {str(k): _eigenvalues(made, k) for k in EIGENVALUES}}


def _eigenvalues(made: dict[str, Any], k: int) -> dict[str, Any]:
    """The time at the cheapest setting that is right for every seed, and at the default one."""
    seeds = range(5 if k == 1 else 3)
    operator = made["flatminima"].operator
    truths = {
        which: torch.tensor(top_eigenvalues(operator, k, which=which, tol=1e-5, seed=1000).values)
        for which in ("largest", "magnitude")
    }
    found: dict[str, Any] = {}
    for library, one in made.items():
        slow = isinstance(one, PyHessian) and k > 1
        # Power iteration finds the largest by magnitude.
        which = "magnitude" if isinstance(one, PyHessian) else "largest"
        truth, tried = truths[which], {}
        settings = one.settings[:2] if slow else one.settings
        for setting in dict.fromkeys((*settings, one.default)):
            runs = [_eigen_run(one, k, setting, seed, truth) for seed in seeds[: 1 if slow else 5]]
            tried[setting] = {
                "products": statistics.median(run[1] for run in runs),
                "gradients": statistics.median(run[2] for run in runs),
                "seconds": spread([run[0] for run in runs]),
                "error": max(run[3] for run in runs),
            }
            done = any(row["error"] <= EIGEN_ERROR for row in tried.values())
            if done and one.default in tried:
                break
        right = [s for s, row in tried.items() if row["error"] <= EIGEN_ERROR]
        found[library] = {
            "method": one.eigen_method,
            "reached": right[0] if right else None,
            "default": one.default,
            "which": which,
            "tried": {f"{setting:g}": row for setting, row in tried.items()},
        }
    # Once more in turn, for the times that are compared.
    for _ in range(REPEATS):
        for library, one in made.items():
            setting = found[library]["reached"]
            if setting is not None and not (isinstance(one, PyHessian) and k > 1):
                row = found[library]["tried"][f"{setting:g}"]
                row["repeats"] = [
                    *row.get("repeats", []),
                    clocked(lambda one=one, setting=setting: one.eigenvalues(k, setting, 0)),
                ]
    for row in (row for entry in found.values() for row in entry["tried"].values()):
        if "repeats" in row:
            row["seconds"] = spread(row.pop("repeats"))
    return {"values": truths["largest"].tolist(), "libraries": found}


def _eigen_run(
    one: Any, k: int, setting: float, seed: int, truth: torch.Tensor
) -> tuple[float, int, int, float]:
    products, gradients, start = one.products, one.gradients, time.process_time()
    values = one.eigenvalues(k, setting, seed).double()
    seconds = time.process_time() - start
    error = ((values - truth) / truth).abs().max().item()
    return seconds, one.products - products, one.gradients - gradients, error


def memory(network: Subject, made: dict[str, Any]) -> dict[str, Any]:
    """Resident bytes beyond the model and its data, each in a process of its own."""
    file = str(Path(__file__).with_name("measure_memory.py"))
    found: dict[str, int | None] = {}
    for task, needs in MEMORY_TASKS.items():
        if needs is not None and needs not in made:
            continue
        command = [sys.executable, file, network.name, task]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found[task] = int(done.stdout) if done.returncode == 0 else None
        if done.returncode:
            why = done.stderr.splitlines()[-1]
            print(f"memory of {network.name}, {task}: {why}", file=sys.stderr)
    return {"memory": found}


def gradient(network: Subject) -> None:
    for x, y in network.batches:
        loss = nn.functional.cross_entropy(network.model(x), y)
        torch.autograd.grad(loss, list(network.model.parameters()))


def clocked(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def spread(seconds: list[float]) -> dict[str, float]:
    return {"median": statistics.median(seconds), "low": min(seconds), "high": max(seconds)}


def relative_deviation(values: list[float]) -> float:
    return statistics.stdev(values) / abs(statistics.mean(values))


PARTS: dict[str, Callable[[Subject, dict[str, Any]], dict[str, Any]]] = {
    "network": described,
    "traces": traces,
    "stop_rules": stop_rules,
    "eigenvalues": eigenvalues,
    "memory": memory,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    # Others' warnings, on every product.
    warnings.filterwarnings("ignore", message="Using backward.. with create_graph")
    file = RESULTS / "measure.json"
    found = json.loads(file.read_text()) if file.exists() else {}
    for name in arguments.networks:
        network = subject(name)
        made = {library: LIBRARIES[library][0](network) for library in installed()}
        for one in made.values():  # what is slow only once
            one.trace(12, 0)
        for part in arguments.parts:
            found.setdefault(name, {}).update(PARTS[part](network, made))
            write_json(file, found)
    machine = environment()
    machine["packages"] |= {name: _version(name) for name in PEERS}
    # Also where it is not installed but found on the path.
    machine["packages"]["flatminima"] = flatminima.__version__
    write_json(RESULTS / "measure-environment.json", machine)


if __name__ == "__main__":
    main()
