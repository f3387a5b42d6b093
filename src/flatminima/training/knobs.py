"""The settings of a recipe that a tuner can set, with their bounds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from flatminima.errors import InputError, unknown
from flatminima.perturb import card, options
from flatminima.training.brackets import parse_brackets
from flatminima.training.data.examples import DataSet
from flatminima.training.methods import specialize
from flatminima.training.recipe import Recipe, flag, parse_method
from flatminima.training.specs import TuneSpec
from flatminima.tuning import Knob
from flatminima.tuning.maid.penalties import KNOBS as OF_THE_HEAD
from flatminima.tuning.maid.penalties import START as START_OF_THE_HEAD

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

OPTIONS = {
    "stn": ("start", "low", "high", "scale"),
    "maid": ("start",),
    "sweep": ("low", "high"),
}
"""What may stand in a knob's brackets: MAID's knobs have no bounds, a grid has no start."""

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
    tuner = recipe.tune.tuner
    strength = card(parse_method(recipe.perturb.perturb)[0]).strength
    for word, name, given in check_knobs_named(recipe.tune.tune or ""):
        if name in ("sigma", "rho"):
            defaults = _strength(recipe, name, strength)
        else:
            defaults = _start_of(recipe, name)
        if tuner == "maid":
            defaults = _of_the_head(recipe, name, defaults)
        _check_used(word, given, tuner)
        asked = {**defaults, **given}
        if tuner == "sweep" and 0 < asked["low"] < asked["high"] < math.inf:
            asked["start"] = math.sqrt(asked["low"] * asked["high"])
        try:
            knobs[name] = Knob(**asked)
        except InputError as error:
            raise InputError(f"--tune {word}: {error}") from None
    return knobs


def check_tuner_is_used(recipe: Recipe) -> None:
    """Refuse settings of a tuner in a run that tunes nothing.

    Raises:
        InputError: there are some.
    """
    tune = specialize(recipe).tune
    if tune.tune is not None and not asked_words(tune.tune):
        raise InputError(f"--tune {tune.tune!r} names no knob: give one, such as weight_decay")
    for name, default in asdict(TuneSpec()).items():
        if tune.tune is None and getattr(tune, name) != default:
            raise InputError(f"{flag(name)} is of a tuner, and nothing is to be tuned: give --tune")


def asked_words(tune: str | None) -> list[str]:
    """The knobs as they were written, brackets and all."""
    return [word for word in (tune or "").replace("+", ",").split(",") if word.strip()]


def check_knobs_named(asked: str) -> list[tuple[str, str, dict[str, float]]]:
    """The knobs of `--tune`, each as written, its name, and the numbers in its brackets.

    Raises:
        InputError: a setting that is no knob, or one named twice; an option that knobs do not have,
            or that is no number.
    """
    found: list[tuple[str, str, dict[str, float]]] = []
    for word in asked_words(asked):
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
            if option not in OPTIONS["stn"]:
                raise unknown(f"option of the knob {name} of --tune", option, OPTIONS["stn"])
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


def _check_used(word: str, given: Mapping[str, Any], tuner: str) -> None:
    for option in given:
        if option not in OPTIONS[tuner]:
            raise InputError(
                f"--tune {word}: --tuner {tuner} makes no use of {option}, only of "
                f"{' and '.join(OPTIONS[tuner])}: leave it out, or take --tuner stn"
            )


def _of_the_head(recipe: Recipe, name: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A knob of MAID's: any number above 0."""
    if name not in OF_THE_HEAD:
        raise InputError(
            f"--tuner maid tunes {' and '.join(OF_THE_HEAD)} of the head, by the gradient of its "
            f"validation loss, and {name} is no part of the head's problem: take --tuner stn or "
            "--tuner sweep"
        )
    own = recipe.optimizer.weight_decay if name == "weight_decay" else 0.0
    return {**defaults, "start": own or START_OF_THE_HEAD, "low": 0.0, "high": math.inf}


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
