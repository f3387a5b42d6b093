"""One-pass NSO against its relatives: batch sizes, sigmas, equal epochs and equal gradients.

python benchmarks/one_pass.py digits pydocs matrix-sensing

Writes docs/results/one-pass-TASK.json: for every batch size and method the test accuracy of each
of 10 seeds, 5 for pydocs (of matrix sensing the normalized test error). Strengths are a grid.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import flatminima
from flatminima.files import write_json
from flatminima.study.compare import compare
from flatminima.training.directory import environment
from flatminima.training.recipe import Recipe, read

ROOT = Path(__file__).parents[1]
SEEDS = 10

NOISY = {
    "one-point": "wp-sgd",
    "alternate": "nso:signs=alternate",
    "split": "nso-one-pass",
    "paired": "nso",
}
"""Names on the page, and the methods they are."""

DIGITS = {
    "epochs": 60,
    "sigmas": (0.05, 0.1, 0.2),
    "batches": (8, 16, 32, 64, 128),
    "seeds": 10,
}
PYDOCS = {"epochs": 20, "sigmas": (0.005, 0.01), "batches": (16, 64), "seeds": 5}


def grid(task: dict[str, Any]) -> dict[str, list[str]]:
    """The methods of a task by their names on the page; `paired/2` has half the epochs."""
    values = {
        name: [f"{method}:sigma={sigma}" for sigma in task["sigmas"]]
        for name, method in NOISY.items()
    }
    half = f":epochs={task['epochs'] // 2}"
    return {
        "plain": ["plain"],
        "plain/2": ["plain" + half],
        **values,
        "paired/2": [method + half for method in values["paired"]],
    }


def train(name: str, task: dict[str, Any], recipe: dict[str, Any]) -> dict[str, Any]:
    """The test accuracies of every batch size and method."""
    found: dict[str, Any] = {}
    methods = grid(task)
    for batch in task["batches"]:
        asked = Recipe.from_flat(
            {
                **recipe,
                "epochs": task["epochs"],
                "batch_size": batch,
                "measure": False,
                "keep_checkpoints": False,
            }
        )
        out = ROOT / "runs" / f"one-pass-{name}-{batch}"
        summary = compare(
            asked, [m for group in methods.values() for m in group], task["seeds"], out
        )
        found[str(batch)] = {
            group: {
                method: {
                    key: summary["methods"][method][key]["values"]
                    for key in ("test_accuracy", "test_loss")
                }
                for method in chosen
            }
            for group, chosen in methods.items()
        }
    return {"seeds": task["seeds"], "epochs": task["epochs"], "batches": found}


class Sensing(nn.Module):
    """<A_i, W W'> of d x d weights, A_i symmetric and half-vectorized."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(d, d))
        rows, columns = torch.triu_indices(d, d)
        self.register_buffer("index", torch.stack([rows, columns]))

    def forward(self, a: Tensor) -> Tensor:
        """The measurements, shape (m,), by `a`, shape (m, d (d + 1) / 2)."""
        product = self.weight @ self.weight.T
        return a @ product[self.index[0], self.index[1]]


def measurements(m: int, d: int, generator: torch.Generator) -> Tensor:
    """Symmetric Gaussian A_i, the weights of off-diagonal entries 2 folded in."""
    g = torch.randn(m, d, d, generator=generator)
    a = (g + g.mT) / 2
    rows, columns = torch.triu_indices(d, d)
    return a[:, rows, columns] * torch.where(rows == columns, 1.0, 2.0)


def sense(method: str, seed: int, iterations: int) -> float:
    """The normalized test error of a matrix of rank 2 found from 400 of 820 measurements."""
    d, rank, m, rate, sigma = 40, 2, 400, 0.005, 0.08
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(d, rank, generator=generator)
    rows, columns = torch.triu_indices(d, d)
    truth = (factor @ factor.T)[rows, columns]
    a, test = measurements(m, d, generator), measurements(m, d, generator)
    y, test_y = a @ truth, test @ truth
    torch.manual_seed(seed)
    model = Sensing(d)
    base = torch.optim.SGD(model.parameters(), lr=rate)
    options = {
        "one-point": {"two_point": False},
        "alternate": {"signs": "alternate"},
        "split": {"signs": "split"},
        "paired": {},
        "paired/2": {},
        "one-point x2": {"two_point": False, "num_perturbations": 2},
    }
    optimizer: Any = (
        base
        if method == "plain"
        else flatminima.NSO(base, sigma=sigma, seed=seed, **options[method])
    )
    errors = []
    for step in range(iterations):
        # 1/4m of the sum of squares, as the spec's gradient is scaled.
        if method == "plain":
            ((model(a) - y).square().mean() / 4).backward()
        else:
            parts = (
                optimizer.passes(a, y)
                if method == "split"
                else ((a, y) for _ in optimizer.passes())
            )
            for a_, y_ in parts:
                ((model(a_) - y_).square().mean() / 4).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step >= iterations - 500 and step % 50 == 49:
            with torch.no_grad():
                error = (model(test) - test_y).square().mean() / test_y.square().mean()
            errors.append(error.item())
    return sum(errors) / len(errors)


def matrix_sensing() -> dict[str, Any]:
    """The test errors at 4000 iterations, and of `paired/2` at half of them."""
    methods = ("plain", "one-point", "one-point x2", "alternate", "split", "paired", "paired/2")
    found = {
        method: [
            sense(method, seed, 2000 if method == "paired/2" else 4000) for seed in range(SEEDS)
        ]
        for method in methods
    }
    return {"seeds": SEEDS, "iterations": 4000, "methods": found}


def main(tasks: list[str]) -> None:
    """Run the tasks, and write what they gave."""
    known = {
        "digits": lambda: train(
            "digits",
            DIGITS,
            {k: v for k, v in read(ROOT / "recipes/demo.yaml").items() if k not in NOT_COMMON},
        ),
        "pydocs": lambda: train(
            "pydocs",
            PYDOCS,
            {
                "data": "pydocs",
                "model": "bert-small",
                "train_size": 200,
                "max_length": 32,
                "label_noise": 0.2,
            },
        ),
        "matrix-sensing": matrix_sensing,
    }
    torch.set_num_threads(1)
    for task in tasks or list(known):
        results = ROOT / "docs/results"
        write_json(results / f"one-pass-{task}.json", known[task]())
        write_json(results / f"one-pass-{task}-environment.json", environment())


NOT_COMMON = ("perturb", "seeds", "sigma", "rho", "batch_size", "epochs")
"""What the recipe of `make demo` says of its own study."""


if __name__ == "__main__":
    main(sys.argv[1:])
