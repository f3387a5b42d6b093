"""A sigma to start from, for a recipe: one plain epoch, then a few forward passes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from flatminima.errors import InputError
from flatminima.files import write_json
from flatminima.measure import start_sigma
from flatminima.training import checkpoint, run
from flatminima.training.curvature import measured_batches
from flatminima.training.methods import SHARED_OPTIONS
from flatminima.training.prepared import prepare, restore
from flatminima.training.recipe import Recipe
from flatminima.training.threads import fitting_threads

WARM_UP = {
    **SHARED_OPTIONS,
    "perturb": "plain",
    "sigma": None,
    "rho": None,
    "epochs": 1,
    "equal": "epochs",
    "warmup": 0.0,
    "keep": "last",
    "early_stopping": None,
    "tune": None,
    "measure": False,
}
"""What a recipe's first epoch is without a method; the rest of it stays as it is."""


PART, LEAST = 0.1, 0.01
"""Of what is learned, how much noise may undo; and of the loss, how much must be learned for it."""


def job(payload: Mapping[str, Any], directory: Path) -> None:
    """Measure a recipe's start value, as a job of a study: `payload` is a flat recipe.

    With f_0 the loss before and f_1 after one plain epoch, on the training samples that the recipe
    measures on, noise may raise f_1 by a tenth of min(f_1, f_0 - f_1). Where a new head has learned
    little, a tenth of f_1 itself would be more than it has learned.

    Leaves the epoch, an ordinary run, in `directory/run`; and in `directory/results.json` the
    `StartSigma`, whose fraction is of f_1, and f_0 as "loss_before".

    Raises:
        InputError: something in the recipe cannot work, the epoch lowers the loss by less than 1 %,
            or no sigma has such a gap.
    """
    recipe = Recipe.from_flat(payload).but(**WARM_UP)
    home = directory / "run"
    run.job(recipe.flat(), home)
    prepared = prepare(recipe)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = prepared.built.model.to(device)
    batches = measured_batches(prepared, device)
    with fitting_threads(model):
        before = prepared.task.score(model, batches, device)["loss"]
        restore(prepared, checkpoint.find(home / "checkpoints", ("last", "previous")))
        after = prepared.task.score(model, batches, device)["loss"]
        learned = (before - after) / after
        if not learned >= LEAST:
            raise InputError(
                f"one plain epoch changed the loss from {before:.4g} to {after:.4g}, too little to "
                "measure noise by"
            )
        found = start_sigma(
            model,
            prepared.task.loss,
            batches,
            fraction=PART * min(1.0, learned),
            seed=recipe.loop.seed,
        )
    write_json(directory / "results.json", {**found.to_dict(), "loss_before": before})
