"""Which weights a recipe frees."""

from __future__ import annotations

import warnings

import torch

from flatminima.errors import InputError
from flatminima.reparam import Reparam, check_reparam, make_reparam
from flatminima.training.brackets import parse_brackets
from flatminima.training.knobs import asked_knobs
from flatminima.training.recipe import Recipe
from flatminima.training.self_tuned import SelfTunedWeights, check_self_tuned
from flatminima.tuning import Knob


def reparam(recipe: Recipe, model: torch.nn.Module) -> Reparam:
    """Which weights are free, and where.

    Args:
        recipe: Names it.
        model: Its weights as training begins.

    Raises:
        InputError: no such reparametrization, or options that it does not have.
    """
    knobs = self_tuned_knobs(recipe)
    if knobs:
        return SelfTunedWeights(model, len(knobs), recipe.loop.seed)
    name, given = parse_brackets(recipe.reparam.reparam)
    return make_reparam(name, model, **given)


def check_values(recipe: Recipe) -> None:
    """Refuse values of a reparametrization's options that no model could save.

    They are tried on two small layers; what these layers are no match for is not refused.

    Raises:
        InputError: a value of a wrong type or out of its range.
    """
    name, given = parse_brackets(recipe.reparam.reparam)
    layers = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    own = {option: value for option, value in given.items() if option != "targets"}
    try:
        with warnings.catch_warnings():
            # What is said of these layers means nothing for the model.
            warnings.simplefilter("ignore")
            make_reparam(name, layers, **own)
    except InputError as error:
        if any(repr(value) in str(error) for value in own.values()):
            raise


def self_tuned_knobs(recipe: Recipe) -> dict[str, Knob]:
    """The knobs that are tuned while training, {} where none are.

    Raises:
        InputError: something that cannot be tuned so.
    """
    if not recipe.tune.tune or recipe.tune.tuner != "stn":
        return {}
    check_self_tuned(recipe)
    return asked_knobs(recipe)


def reparam_named(recipe: Recipe) -> type[Reparam]:
    """The class of the reparametrization that a recipe names.

    Raises:
        InputError: there is none of that name, or it does not have the options.
    """
    name, given = parse_brackets(recipe.reparam.reparam)
    return check_reparam(name, **given)
