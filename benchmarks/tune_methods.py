"""Choose each method's strength on the digits by validation, on seeds that no comparison uses.

python benchmarks/tune_methods.py

Writes docs/results/methods-digits-tuning.json: the mean validation loss of every value, at equal
epochs and at equal gradients, over 5 seeds from 100 on. The best ones stand in
recipes/methods-digits.yaml and recipes/methods-digits-gradients.yaml.
"""

from __future__ import annotations

from pathlib import Path

from flatminima.files import write_json
from flatminima.study.compare import compare
from flatminima.training.directory import environment
from flatminima.training.recipe import Recipe, read

ROOT = Path(__file__).parents[1]
SIGMAS = ("0.02", "0.035", "0.05", "0.07", "0.1", "0.14", "0.2")
RHOS = ("0.01", "0.02", "0.05", "0.1", "0.2", "0.4", "0.8")
PRECISE_RHOS = ("0.001", "0.003", "0.01", "0.03", "0.1", "0.3", "1")
GRIDS = {
    "wp-sgd:sigma={}": SIGMAS,
    "wp-sgd:num_perturbations=2:sigma={}": SIGMAS,
    "nso-one-pass:sigma={}": SIGMAS,
    "nso:signs=alternate:sigma={}": SIGMAS,
    "nso:sigma={}": SIGMAS,
    "nso:keep=swa:sigma={}": SIGMAS,
    "sam:rho={}": RHOS,
    "m-sam:m=8:rho={}": RHOS,
    "usam:rho={}": RHOS,
    "asam:rho={}": ("0.06", "0.12", "0.25", "0.5", "1", "2", "4"),
    "rsam:rho={}": RHOS,
    "bsam:optimizer=variational-adam:lr=0.1:rho={}": (
        "0.001",
        "0.003",
        "0.01",
        "0.03",
        "0.1",
        "0.3",
        "1",
    ),
    "bsam:optimizer=variational-adam:lr=0.3:rho={}": (
        "0.001",
        "0.003",
        "0.01",
        "0.03",
        "0.1",
        "0.3",
        "1",
    ),
    "gsam:rho={}": RHOS,
    "looksam:rho={}": RHOS,
    "friendly-sam:rho={}": RHOS,
}
SEEDS, FIRST_SEED = 5, 100


def main() -> None:
    """Run the grids, and write what they gave."""
    demo = {k: v for k, v in read(ROOT / "recipes/demo.yaml").items() if k not in NOT_COMMON}
    found: dict[str, dict[str, dict[str, float]]] = {}
    for equal in ("epochs", "gradients"):
        recipe = Recipe.from_flat(
            {
                **demo,
                "equal": equal,
                "measure": False,
                "validation_fraction": 0.3,
                "keep_checkpoints": False,
            }
        ).but(seed=FIRST_SEED)
        methods = [grid.format(value) for grid, values in GRIDS.items() for value in values]
        out = ROOT / "runs" / f"tune-methods-{equal}"
        summary = compare(recipe, methods, SEEDS, out)
        found[equal] = {
            grid: {
                value: summary["methods"][grid.format(value)]["validation_loss"]["mean"]
                for value in values
            }
            for grid, values in GRIDS.items()
        }
        for grid, losses in found[equal].items():
            best = min(losses, key=losses.__getitem__)
            shown = ", ".join(f"{value}: {loss:.3f}" for value, loss in losses.items())
            print(f"equal {equal}: {grid.format(best):<55} {shown}")
    results = ROOT / "docs/results"
    write_json(results / "methods-digits-tuning.json", {"seeds": SEEDS, "validation_loss": found})
    write_json(results / "methods-digits-tuning-environment.json", environment())


NOT_COMMON = ("perturb", "seeds", "sigma", "rho")
"""What the recipe of `make demo` says of its own methods."""


if __name__ == "__main__":
    main()
