"""From a recipe to its data and its model, new or trained."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flatminima.perturb import card
from flatminima.progress import Progress, silent
from flatminima.training import models
from flatminima.training.built import Built
from flatminima.training.checkpoint import AVERAGED, BAKED, Checkpoint
from flatminima.training.data.examples import DataSet
from flatminima.training.data.load import load as load_data
from flatminima.training.knobs import asked_knobs, check_data
from flatminima.training.language_models import TINY
from flatminima.training.methods import specialize
from flatminima.training.minimized import check_encoding, objective
from flatminima.training.pretrain import pretrain
from flatminima.training.prompting import PromptClassifier
from flatminima.training.recipe import Recipe, parse_method
from flatminima.training.reparametrized import reparam, reparam_named
from flatminima.training.tasks import Task, task_of
from flatminima.training.threads import fitting_threads


@dataclass
class Prepared:
    """A recipe turned into data and model.

    Attributes:
        recipe: With its defaults filled in.
        data: The data set.
        built: The model on the CPU, pretrained, and what it needs of its inputs.
        tuned: What a tuner before the run found; None where none was asked for.
    """

    recipe: Recipe
    data: DataSet
    built: Built
    tuned: dict[str, Any] | None = None

    @property
    def task(self) -> Task:
        """What it is scored by."""
        return task_of(self.data).read_by(self.data, self.built.encoding)


def prepare(recipe: Recipe, progress: Progress = silent) -> Prepared:
    """Load the data and build the model of a recipe, from its seed.

    Raises:
        InputError: the data or the model cannot be had, or do not fit.
    """
    recipe = specialize(recipe)
    own_base = card(parse_method(recipe.perturb.perturb)[0]).base
    seed = recipe.loop.seed
    data = load_data(recipe.data, seed, progress)
    recipe = recipe.but(objective=recipe.objective.objective or task_of(data).objective)
    minimized = objective(recipe, data)
    reparam_named(recipe)
    name = recipe.model.model or models.default_model(data)
    torch.manual_seed(seed)
    built = models.build(name, data, new_head=recipe.model.new_head)
    check_encoding(minimized, built.encoding)
    places = {"data": recipe.data.data, "model": name}
    recipe = recipe.but(**{key: _absolute(place) for key, place in places.items()})
    recipe = recipe.resolved(built.family, built.random_weights, own_base)
    if recipe.tune.tune:
        check_data(asked_knobs(recipe), data)
    of_ours = built.family == "builtin" or isinstance(built.model, PromptClassifier)
    starts_anew = name == TINY or (of_ours and built.random_weights)
    if starts_anew and recipe.model.pretrain and data.source is not None:
        with fitting_threads(built.model):
            pretrain(built.model, data, built.encoding, seed, task_of(data), progress)
        torch.manual_seed(seed)  # what follows is the same whether that was cached or not
    return Prepared(recipe, data, built)


def _absolute(place: str) -> str:
    """A path that holds wherever a run is resumed from; names and hub ids as they are."""
    prefix, colon, file = place.rpartition("config:")
    path = Path(file).expanduser()
    return f"{prefix}{colon}{path.resolve()}" if path.exists() else place


def restore(prepared: Prepared, found: Checkpoint) -> None:
    """Put a checkpoint's weights into the model, and leave it an ordinary one.

    Raises:
        InputError: the checkpoint is of another model.
    """
    model = prepared.built.model
    ordinary = {BAKED, AVERAGED} if reparam_named(prepared.recipe).averages_baked else {BAKED}
    if found.folder.name in ordinary:
        found.load_model(model)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about weights that are replaced at once
        free = reparam(prepared.recipe, model)
    found.load_model(model)
    free.bake(model)
