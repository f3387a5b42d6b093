"""How close the start value of sigma comes to the best of a sweep, on digits and on pydocs.

    python benchmarks/start_sigma.py digits pydocs

On one core of a busy machine: 4 minutes for digits, 25 for pydocs. Writes
docs/results/start-sigma.json and, beside it, the machine; the same command again continues.
`make readme` makes the docs' table.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from flatminima.files import write_json
from flatminima.study import mean_ci, tune_sigma
from flatminima.study.tune import start_value
from flatminima.training.directory import environment
from flatminima.training.recipe import Recipe, read

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs/results"
TASKS: dict[str, dict[str, Any]] = {
    "digits": {
        "recipe": "recipes/demo.yaml",
        "method": "nso",
        "values": (0.025, 0.035, 0.05, 0.07, 0.1, 0.14, 0.2, 0.28),
        "seeds": 10,
    },
    "pydocs": {
        "recipe": "recipes/tune-pydocs.yaml",
        "method": "nso-one-pass",
        "values": (0.005, 0.01, 0.02, 0.04, 0.08),
        "seeds": 3,
    },
}


def measure(task: str, out: Path, workers: int) -> dict[str, Any]:
    """The start value of each seed, and a sweep whose values hold that of the first seed."""
    settings = TASKS[task]
    said = read(ROOT / settings["recipe"])
    recipe = Recipe.from_flat({k: v for k, v in said.items() if k not in ("perturb", "seeds")})
    starts = [
        start_value(recipe.but(seed=seed), out / f"start-{seed}")
        for seed in range(settings["seeds"])
    ]
    start = float(f"{starts[0]['value']:.2g}")
    values = sorted({*settings["values"], start})
    sweep = tune_sigma(
        recipe, settings["method"], values, settings["seeds"], out=out / "sweep", workers=workers
    )
    return {
        "recipe": settings["recipe"],
        "start": start,
        "start_over_seeds": mean_ci(found["value"] for found in starts).to_dict(),
        "starts": starts,
        "sweep": sweep,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="+", choices=TASKS)
    parser.add_argument("--out", type=Path, default=ROOT / "runs/start-sigma")
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    file = RESULTS / "start-sigma.json"
    found = json.loads(file.read_text()) if file.exists() else {}
    for task in arguments.tasks:
        found[task] = measure(task, arguments.out / task, arguments.workers)
        write_json(file, found)
    write_json(RESULTS / "start-sigma-environment.json", environment())


if __name__ == "__main__":
    main()
