"""The settings of a recipe that a tuner can set, with their bounds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flatminima.errors import InputError, unknown
from flatminima.perturb import card, options
from flatminima.training.brackets import parse_brackets
from flatminima.training.data.examples import DataSet
from flatminima.training.recipe import Recipe, parse_method
from flatminima.tuning import Knob

# The draws of a penalty are about a factor of 2 from where it stands.
PENALTY = {"start": 1e-3, "low": 1e-6, "high": 1.0, "log": True, "shared": True, "scale": 0.2}
DEFAULTS: dict[str, dict[str, Any]] = {
    "weight_decay": PENALTY,
    "distance_penalty": PENALTY,
    "label_smoothing": {"start": 0.1, "low": 0.0, "high": 0.9},
    "input_noise": {"start": 0.1, "low": 1e-3, "high": 3.0, "log": True, "scale": 0.3},
}
AROUND = 10.0
"""Bounds of sigma and rho: the recipe's value over and times this."""

NO_RESPONSE = {
    "lr": "it does not change what training converges to, only how fast",
    "momentum": "it does not change what training converges to, only how fast",
    "epochs": "it is the length of the run in which it would be tuned",
    "batch_size": "it is counted, and weights do not answer to it",
    "num_perturbations": "it is the price of a step, and weights do not answer to it",
}


def asked_knobs(recipe: Recipe) -> dict[str, Knob]:
    """The knobs that a recipe, with its defaults filled in, asks to tune; {} where it asks none.

    Raises:
        InputError: a setting that is no knob, bounds that cannot be, a method or another setting
            that leaves it without effect.
    """
    knobs: dict[str, Knob] = {}
    strength = card(parse_method(recipe.perturb.perturb)[0]).strength
    for word, name, given in check_knobs_named(recipe.tune.tune or ""):
        if name in ("sigma", "rho"):
            defaults = _strength(recipe, name, strength)
        else:
            defaults = _start_of(recipe, name)
        try:
            knobs[name] = Knob(**{**defaults, **given})
        except InputError as error:
            raise InputError(f"--tune {word}: {error}") from None
    return knobs


def check_knobs_named(asked: str) -> list[tuple[str, str, dict[str, float]]]:
    """The knobs of `--tune`, each as written, its name, and the numbers in its brackets.

    Raises:
        InputError: a setting that is no knob, or one named twice; an option that knobs do not have,
            or that is no number.
    """
    found: list[tuple[str, str, dict[str, float]]] = []
    for word in filter(None, asked.replace("+", ",").split(",")):
        name, given = parse_brackets(word)
        name = name.replace("-", "_")
        if name in (before for _, before, _ in found):
            raise InputError(f"--tune names {name} twice: leave one out")
        known = [*DEFAULTS, "sigma", "rho"]
        if name not in known:
            reason = NO_RESPONSE.get(name)
            why = f": {reason}" if reason else ""
            raise InputError(f"{unknown('knob of --tune', name, known)}{why}")
        for option, value in given.items():
            if option not in ("start", "low", "high", "scale"):
                raise unknown(
                    f"option of the knob {name} of --tune", option, ("start", "low", "high")
                )
            if isinstance(value, str | bool):
                raise InputError(f"--tune {word}: {option} is {value!r}, give a number")
        found.append((word, name, given))
    return found


def with_values(recipe: Recipe, values: Mapping[str, float]) -> Recipe:
    """The recipe with knobs set, and nothing left to tune."""
    changes: dict[str, Any] = {"tune": None}
    for name, value in values.items():
        if name == "distance_penalty":
            changes["reparam"] = f"distance-penalty(weight={value!r})"
        elif name == "label_smoothing":
            changes["objective"] = f"label-smoothing(alpha={value!r})"
        else:
            changes[name] = value
    return recipe.but(**changes)


def check_data(names: Mapping[str, Any], data: DataSet) -> None:
    """Refuse to tune without validation samples, or what the data have no room for.

    Raises:
        InputError: so it is.
    """
    if names and not len(data.validation):
        raise InputError(
            f"--tune learns from validation samples, and {data.name} has none: set "
            "--validation-fraction, such as 0.2"
        )
    if "label_smoothing" in names and data.task != "classification":
        raise InputError(f"--tune label_smoothing is for classes, and {data.name} has none")


def _strength(recipe: Recipe, name: str, strength: str) -> dict[str, Any]:
    method = recipe.perturb.perturb
    if name != strength:
        raise InputError(
            f"--tune {name}: {method!r} has {strength or 'no strength'}: choose a method with "
            f"--perturb that is set by {name}"
        )
    if name in parse_method(method)[1] or name not in options(parse_method(method)[0]):
        raise InputError(f"--tune {name}: {method!r} sets {name} itself: leave it out there")
    start = getattr(recipe.perturb, name)
    if not start:
        raise InputError(f"--tune {name} starts at --{name}, which is {start}: give one above 0")
    bounds = {"low": start / AROUND, "high": start * AROUND}
    return {"start": start, **bounds, "log": True, "shared": True}


def _start_of(recipe: Recipe, name: str) -> dict[str, Any]:
    """A knob's defaults, begun at the recipe's value where it has one."""
    found = dict(DEFAULTS[name])
    if name == "distance_penalty" and recipe.reparam.reparam != "none":
        raise InputError(
            f"--tune distance_penalty takes the place of --reparam {recipe.reparam.reparam}: "
            "leave one out"
        )
    if name == "label_smoothing":
        objective, given = parse_brackets(recipe.objective.objective or "cross-entropy")
        if objective not in ("cross-entropy", "ce", "label-smoothing"):
            raise InputError(
                f"--tune label_smoothing smooths the cross-entropy, and --objective is {objective}"
            )
        found["start"] = given.get("alpha", found["start"])
    own = {
        "weight_decay": recipe.optimizer.weight_decay,
        "input_noise": recipe.objective.input_noise,
    }.get(name)
    return {**found, "start": own} if own else found
