"""Greedy block coordinate descent: rules in order, supports, trees, times, memory."""

from __future__ import annotations

import time
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sparse
import torch

from flatminima.optim.block_coordinate import (
    Graph,
    GreedyBCD,
    LabelPropagation,
    LeastSquares,
    Logistic,
    tree_solve,
)
from flatminima.study import mean_ci, paired

SEEDS = range(10)
RULES = (
    ("random", "order", "lb"),
    ("cyclic", "order", "lb"),
    ("gs", "order", "lb"),
    ("gsl", "order", "lb"),
    ("gs", "sort", "lb"),
    ("gsl", "sort", "lb"),
    ("gsd", "sort", "lb"),
    ("random", None, "lb"),
    ("gs", None, "lb"),
    ("gsd", None, "lb"),
    ("random", None, "hb"),
    ("gs", None, "hb"),
    ("gsd", None, "hb"),
    ("gsq", None, "hb"),
)
TREES = {
    "greedy tree": {"block_size": None, "selection": "gs", "partition": None, "update": "tree"},
    "random tree": {"block_size": None, "selection": "random", "partition": None, "update": "tree"},
    "fixed trees": {"block_size": None, "selection": "gs", "partition": "trees", "update": "tree"},
    "red-black": {
        "block_size": None, "selection": "gs", "partition": "red-black", "update": "tree",
    },
    "7 largest gradients": {"block_size": 7, "selection": "gs", "partition": None, "update": "hb"},
}  # fmt: skip
GAP = 1e-6


def run() -> dict[str, Any]:
    torch.set_num_threads(1)
    return {
        "rules": _rules(),
        "support": _support(),
        "lattice": _lattice(),
        "times": _times(),
        "memory": _memory(),
        "message passing": _message_passing(),
    }


def wide(seed: int, n: int = 200, p: int = 500) -> tuple[Any, Any]:
    """Columns that depend on each other, of very different lengths, with entries missing."""
    rng = np.random.default_rng(seed)
    A = (rng.standard_normal((n, p)) + 1) * rng.standard_normal(p) * 10
    A *= rng.random((n, p)) < 10 * np.log(n) / n
    return A, A @ rng.standard_normal(p) + rng.standard_normal(n)


def _rules() -> dict[str, Any]:
    logs: dict[str, list[float]] = {" ".join(map(str, rule)): [] for rule in RULES}
    for seed in SEEDS:
        A, y = wide(seed)
        problem = LeastSquares(A, y)
        best = 0.5 * np.square(A @ np.linalg.lstsq(A, y, rcond=None)[0] - y).sum()
        for rule in RULES:
            selection, partition, update = rule
            solver = GreedyBCD(
                problem, 5, selection=selection, partition=partition, update=update, seed=seed
            )
            first = solver.value() - best
            gap = max((solver.run(500).value - best) / first, 1e-16)
            logs[" ".join(map(str, rule))].append(float(np.log10(gap)))
    pairs = {
        "gsl sort / gs order": ("gsl sort lb", "gs order lb"),
        "gsl order / gs order": ("gsl order lb", "gs order lb"),
        "gsd / random, variable, hb": ("gsd None hb", "random None hb"),
        "gsd variable / gsd sort": ("gsd None lb", "gsd sort lb"),
        "gsq / gsd, variable, hb": ("gsq None hb", "gsd None hb"),
    }
    return {
        "log10 gap": {name: mean_ci(values).to_dict() for name, values in logs.items()},
        "log10 ratio": {name: _paired(logs[a], logs[b]) for name, (a, b) in pairs.items()},
    }


def _support() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for tau in (5, 20, 50):
        for update in ("lb", "tmp"):
            steps, known, exact = [], [], 0
            for seed in SEEDS:
                rng = np.random.default_rng(seed)
                A, truth = rng.standard_normal((100, 200)), np.zeros(200)
                truth[rng.choice(200, 10, replace=False)] = rng.uniform(1, 2, 10)
                problem = LeastSquares(A, A @ truth + 0.1 * rng.standard_normal(100))
                options: dict[str, Any] = {"selection": "gsd", "partition": None}
                options |= {"l1": 20.0, "bounds": (0, None)}
                best = GreedyBCD(problem, 200, update="tmp", **options).run(500, 1e-10)
                solver = GreedyBCD(problem, tau, update=update, **options)
                first = solver.value() - best.value
                while solver.value() - best.value > 1e-10 * first and solver.steps < 5000:
                    solver.step()
                steps.append(solver.steps)
                known.append(solver.identified_at)
                exact += int(np.array_equal(solver.x != 0, best.x != 0))
            found[f"{update} {tau}"] = {
                "steps": mean_ci(steps).to_dict(),
                "identified at": mean_ci(known).to_dict(),
                "exact supports": exact,
            }
    return found


def _lattice(side: int = 20) -> dict[str, Any]:
    line = sparse.diags([1.0, 1.0], [-1, 1], shape=(side, side))
    eye = sparse.identity(side)
    weights = (sparse.kron(line, eye) + sparse.kron(eye, line)).tocsc()
    gaps: dict[str, dict[int, list[float]]] = {name: {20: [], 60: []} for name in TREES}
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        labels = np.full(side * side, np.nan)
        labels[rng.choice(side * side, 20, replace=False)] = rng.choice([-1.0, 1.0], 20)
        problem = LabelPropagation(weights, labels)
        best = GreedyBCD(problem, problem.size, partition="order").run(1).value
        for name, options in TREES.items():
            solver = GreedyBCD(problem, seed=seed, **options)
            for steps in (20, 60):
                gap = (solver.run(steps - solver.steps).value - best) / abs(best)
                gaps[name][steps].append(float(gap))
    return {
        "gap": {
            name: {str(k): mean_ci(v).to_dict() for k, v in by.items()} for name, by in gaps.items()
        },
        "greedy tree - random tree": {
            str(k): _paired(gaps["greedy tree"][k], gaps["random tree"][k]) for k in (20, 60)
        },
    }


def _times() -> dict[str, Any]:
    from sklearn.linear_model import LogisticRegression

    def lasso(seed: int, correlated: float = 0.0) -> tuple[Any, ...]:
        rng = np.random.default_rng(seed)
        A, truth = rng.standard_normal((300, 1000)), np.zeros(1000)
        A = np.sqrt(1 - correlated) * A + np.sqrt(correlated) * rng.standard_normal((300, 1))
        truth[:20] = rng.uniform(-1, 1, 20)
        y = A @ truth + 0.1 * rng.standard_normal(300)
        return _lasso(A, y)

    def sparse_lasso(seed: int) -> tuple[Any, ...]:
        rng = np.random.default_rng(seed)
        A = sparse.random(2000, 5000, 0.01, format="csc", random_state=rng)
        y = A @ (rng.random(5000) < 0.02).astype(float) + 0.1 * rng.standard_normal(2000)
        return _lasso(A, y)

    def logistic(seed: int, scales: float = 0.0) -> tuple[Any, ...]:
        rng = np.random.default_rng(seed)
        A = rng.standard_normal((1000, 200)) * 10 ** rng.uniform(-scales, scales, 200)
        y = np.sign(A @ rng.standard_normal(200) + rng.standard_normal(1000))
        other = LogisticRegression(C=1.0, fit_intercept=False, max_iter=10**5)
        return lambda: Logistic(A, y, l2=1.0), 0.0, A, y, other

    def l1_logistic(seed: int) -> tuple[Any, ...]:
        rng = np.random.default_rng(seed)
        A = rng.standard_normal((500, 1000))
        y = np.sign(A[:, :10].sum(1) + rng.standard_normal(500))
        other = LogisticRegression(
            C=0.2, l1_ratio=1.0, solver="liblinear", fit_intercept=False, max_iter=10**5
        )
        return lambda: Logistic(A, y), 5.0, A, y, other

    problems: dict[str, Callable[[int], tuple[Any, ...]]] = {
        "Lasso, 300 x 1000": lasso,
        "Lasso, columns correlated 0.9": lambda seed: lasso(seed, 0.9),
        "Lasso, 2000 x 5000, 1 % non-zero": sparse_lasso,
        "logistic, l2, 1000 x 200": logistic,
        "logistic, l2, columns of 0.01 to 100": lambda seed: logistic(seed, 2.0),
        "logistic, l1, 500 x 1000": l1_logistic,
    }
    found = {}
    for name, problem in problems.items():
        mine, theirs, peer = [], [], ""
        for seed in SEEDS:
            build, l1, A, y, other = problem(seed)
            peer = type(other).__name__ + (f" ({other.solver})" if hasattr(other, "solver") else "")
            made = _maker(build, l1)
            reference = made(200)
            best = reference.run(20_000, 1e-9 * reference.violation()).value
            first = made().value() - best
            mine.append(_own_time(made, best + GAP * first))
            theirs.append(_other_time(other, A, y, build(), l1, best + GAP * first))
        found[name] = {
            "peer": peer,
            "seconds": mean_ci(mine).to_dict(),
            "peer seconds": mean_ci(theirs).to_dict(),
            "difference": _paired(mine, theirs),
        }
    return found


def _lasso(A: Any, y: Any) -> tuple[Any, ...]:
    from sklearn.linear_model import Lasso

    l1 = 0.02 * float(np.abs(A.T @ y).max())
    other = Lasso(alpha=l1 / len(y), fit_intercept=False, max_iter=10**5)
    return lambda: LeastSquares(A, y), l1, A, y, other


def _maker(build: Callable[[], Any], l1: float) -> Callable[..., GreedyBCD]:
    def made(block_size: int = 50) -> GreedyBCD:
        options = {"selection": "gsd", "partition": None, "update": "tmp"}
        return GreedyBCD(build(), block_size, l1=l1, **options)

    return made


def _own_time(made: Callable[..., GreedyBCD], goal: float) -> float:
    start = time.process_time()
    solver = made()
    while solver.value() > goal:
        solver.step()
    return time.process_time() - start


def _other_time(other: Any, A: Any, y: Any, objective: Any, l1: float, goal: float) -> float:
    """The time of the loosest tolerance of ten that reaches the goal."""
    for tol in np.logspace(-1, -10, 10):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            start = time.process_time()
            other.set_params(tol=tol).fit(A, y)
            took = time.process_time() - start
        x = np.ravel(other.coef_)
        if objective.value(x, objective.margins(x)) + l1 * np.abs(x).sum() <= goal:
            return took
    raise RuntimeError(f"{other} does not reach the goal")


def _memory() -> dict[str, Any]:
    size, nonzeros, peaks = 5000, [], []
    for density in (0.002, 0.005, 0.01, 0.02, 0.04):
        rng = np.random.default_rng(0)
        count = int(density * size * size)
        places = rng.integers(size, size=(2, count))
        A = sparse.coo_matrix((rng.random(count), places), shape=(size, size)).tocsc()
        y = rng.standard_normal(size)
        tracemalloc.start()
        solver = GreedyBCD(LeastSquares(A, y), 20, selection="gsd", partition=None)
        solver.run(50)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        nonzeros.append(A.nnz)
    slope, constant = np.polyfit(nonzeros, peaks, 1)
    left = peaks - (slope * np.array(nonzeros) + constant)
    return {
        "rows and columns": size,
        "nonzeros": nonzeros,
        "peak bytes": peaks,
        "bytes for each nonzero": float(slope),
        "constant bytes": float(constant),
        "r squared": float(1 - np.var(left) / np.var(peaks)),
    }


def _message_passing() -> dict[str, Any]:
    sizes, seconds, dense = [1000, 4000, 16000, 64000], [], {}
    for size in sizes:
        rng = np.random.default_rng(size)
        parents = (rng.random(size - 1) * np.arange(1, size)).astype(int)
        children = np.arange(1, size)
        edges = sparse.coo_matrix((-np.ones(size - 1), (children, parents)), shape=(size, size))
        M = (edges + edges.T).tocsc()
        diagonal = -np.asarray(M.sum(1)).ravel() + 0.1
        c, graph, took = rng.standard_normal(size), Graph(M), []
        for _ in range(3):
            start = time.process_time()
            x = tree_solve(graph.forest(np.arange(size)), diagonal, c)
            took.append(time.process_time() - start)
        seconds.append(min(took))
        if size <= 4000:
            whole = M.toarray() + np.diag(diagonal)
            start = time.process_time()
            wanted = np.linalg.solve(whole, c)
            dense[str(size)] = time.process_time() - start
            assert np.abs(x - wanted).max() < 1e-10 * np.abs(wanted).max()
    slope = float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])
    return {"sizes": sizes, "seconds": seconds, "exponent": slope, "dense seconds": dense}


def _paired(values: list[float], reference: list[float]) -> dict[str, Any]:
    found = paired(dict(enumerate(values)), dict(enumerate(reference)))
    assert found.t_interval is not None
    return {"mean": found.difference, "interval": list(found.t_interval)}


def table(found: dict[str, Any]) -> str:
    parts = (_rules_table, _support_table, _lattice_table, _times_table, _memory_lines)
    return "\n\n".join(part(found) for part in parts)


def _rules_table(found: dict[str, Any]) -> str:
    lines = [
        "**Least squares, 200 x 500, blocks of 5, 500 steps from 0.** The gap in parts of the "
        "first one: geometric mean and 95 % interval over 10 seeds.",
        "",
        "| rule | blocks | update | gap |",
        "|---|---|---|---|",
    ]
    for name, log in found["rules"]["log10 gap"].items():
        rule, blocks, update = name.split()
        blocks = "variable" if blocks == "None" else f"fixed, {blocks}"
        lines.append(f"| {rule} | {blocks} | {update} | {_power(log)} |")
    lines += ["", "| gaps of one seed, divided | geometric mean | wins |", "|---|---|---|"]
    for name, log in found["rules"]["log10 ratio"].items():
        low, high = log["interval"]
        verdict = "first" if high < 0 else "second" if low > 0 else "tie"
        lines.append(f"| {name} | {_power(log)} | {verdict} |")
    return "\n".join(lines)


def _support_table(found: dict[str, Any]) -> str:
    lines = [
        "**Non-negative Lasso, 100 x 200, 10 true non-zeros.** Blocks until the gap is 1e-10 of "
        "the first, and the block since which the support is the last one.",
        "",
        "| update | block size | blocks | support known at | exact supports |",
        "|---|---|---|---|---|",
    ]
    for name, row in found["support"].items():
        update, tau = name.split()
        update = {"lb": "proximal gradient", "tmp": "two-metric"}[update]
        counts = f"{_plain(row['steps'])} | {_plain(row['identified at'])}"
        lines.append(f"| {update} | {tau} | {counts} | {row['exact supports']} of 10 |")
    return "\n".join(lines)


def _lattice_table(found: dict[str, Any]) -> str:
    lines = [
        "**Label propagation on a 20 x 20 lattice, 20 labels.** The gap in parts of |f*|.",
        "",
        "| blocks | after 20 | after 60 |",
        "|---|---|---|",
    ]
    for name, by in found["lattice"]["gap"].items():
        lines.append(f"| {name} | {_small(by['20'])} | {_small(by['60'])} |")
    for steps, pair in found["lattice"]["greedy tree - random tree"].items():
        low, high = pair["interval"]
        lines += ["", f"Greedy less random trees after {steps}: {pair['mean']:.2g} "
                  f"[{low:.2g}, {high:.2g}]."]  # fmt: skip
    return "\n".join(lines)


def _times_table(found: dict[str, Any]) -> str:
    lines = [
        "**Processor seconds to 1e-6 of the first gap, one thread.** Ours: two-metric, "
        "variable blocks of 50 by gsd. Theirs: the loosest tolerance of 0.1, 0.01, ... that gets "
        "there.",
        "",
        "| problem | ours | scikit-learn's | its solver | difference | faster |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in found["times"].items():
        low, high = row["difference"]["interval"]
        winner = "ours" if high < 0 else "scikit-learn" if low > 0 else "tie"
        lines.append(
            f"| {name} | {_small(row['seconds'])} | {_small(row['peer seconds'])} | {row['peer']} "
            f"| {row['difference']['mean']:+.2g} [{low:+.2g}, {high:+.2g}] | {winner} |"
        )
    return "\n".join(lines)


def _memory_lines(found: dict[str, Any]) -> str:
    memory, passing = found["memory"], found["message passing"]
    dense = passing["dense seconds"]["4000"]
    return (
        f"**Memory.** Over {memory['nonzeros'][0]:,} to {memory['nonzeros'][-1]:,} non-zeros of a "
        f"{memory['rows and columns']:,} x {memory['rows and columns']:,} matrix the peak beyond "
        f"the matrix is {memory['constant bytes'] / 1e6:.2g} MB and "
        f"{memory['bytes for each nonzero']:.3g} bytes for each non-zero "
        f"(R² {memory['r squared']:.4f}; the matrix has 12).\n\n"
        f"**Message passing.** {passing['sizes'][0]:,} to {passing['sizes'][-1]:,} variables take "
        f"{1e3 * passing['seconds'][0]:.2g} to {1e3 * passing['seconds'][-1]:.3g} ms: time grows "
        f"as size to the power {passing['exponent']:.2f}. 4,000 variables: "
        f"{1e3 * passing['seconds'][1]:.2g} ms, by a dense solve {1e3 * dense:.3g} ms."
    )


def _power(log: dict[str, Any]) -> str:
    low, high = (10**bound for bound in log["interval"])
    return f"{10 ** log['mean']:.1e} [{low:.1e}, {high:.1e}]"


def _plain(mean: dict[str, Any]) -> str:
    return f"{mean['mean']:.1f} ± {(mean['interval'][1] - mean['interval'][0]) / 2:.1f}"


def _small(mean: dict[str, Any]) -> str:
    return f"{mean['mean']:.2g} ± {(mean['interval'][1] - mean['interval'][0]) / 2:.1g}"


def draw(found: dict[str, Any], folder: Path) -> None:
    import matplotlib.pyplot as plt

    logs = found["rules"]["log10 gap"]
    names = [n.replace("None", "variable") for n in logs]
    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    means = np.array([log["mean"] for log in logs.values()])
    ends = np.array([log["interval"] for log in logs.values()])
    axes.errorbar(means, names, xerr=np.abs(ends.T - means), fmt="o", capsize=3)
    axes.invert_yaxis()
    axes.set_xlabel("log10 of the gap after 500 steps, in parts of the first")
    axes.set_title("Least squares, 200 x 500, blocks of 5", fontsize=10)
    name = "system-greedy-block-coordinate-descent-rules.svg"
    figure.savefig(folder / name, metadata={"Date": None})
    plt.close(figure)
