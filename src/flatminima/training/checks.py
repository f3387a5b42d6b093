"""Whether the methods of a study can run, as far as can be told beforehand."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields

import torch

from flatminima.errors import InputError
from flatminima.objectives import make_objective
from flatminima.perturb import card, options
from flatminima.training.brackets import parse_brackets
from flatminima.training.data.load import check_augmentation
from flatminima.training.knobs import asked_knobs, check_data
from flatminima.training.methods import SHARED_OPTIONS, perturbed, specialize
from flatminima.training.minimized import check_encoding, check_kind, check_task, objective
from flatminima.training.named import check_choosing, check_named, known
from flatminima.training.optimizers import base_optimizer
from flatminima.training.prepared import prepare
from flatminima.training.recipe import Recipe, flag, parse_method
from flatminima.training.reparametrized import (
    check_values,
    reparam,
    reparam_named,
    self_tuned_knobs,
)
from flatminima.training.specs import TuneSpec

USED: dict[str, tuple[str, Callable[[Recipe], bool]]] = {
    "lr_step": ("--lr-schedule step", lambda recipe: recipe.optimizer.lr_schedule == "step"),
    "swa_lr": ("--keep swa", lambda recipe: recipe.loop.keep == "swa"),
    "ema_decay": ("--keep ema", lambda recipe: recipe.loop.keep == "ema"),
    "average_from": ("--keep swa or ema", lambda recipe: recipe.loop.keep in ("swa", "ema")),
    "live_trace_every": ("--live-trace", lambda recipe: recipe.loop.live_trace),
    **{
        field.name: ("--tune", lambda recipe: bool(recipe.tune.tune))
        for field in fields(TuneSpec)
        if field.name != "tune"
    },
}
"""Settings that say nothing by themselves: what each is for, and whether a recipe has that."""


def for_methods(recipe: Recipe, methods: Sequence[str]) -> dict[str, Recipe]:
    """The recipe of each method of a study, found able to run as far as can be told beforehand.

    An option that the recipe sets for all is left out where a method does not have it.

    Raises:
        InputError: a method, an option, the data or the model cannot be, or an option is set that
            none of the methods has.
    """
    if not methods:
        raise InputError("--perturb names no method: give at least one")
    check_twice(methods)
    for method in methods:
        check_method(recipe, method)
    said = recipe.flat()
    takes = check_shared(recipe, methods)
    prepared = prepare(recipe.but(pretrain=False, perturb="plain", tune=None, **SHARED_OPTIONS))
    recipes = {}
    for method, own in takes.items():
        foreign = {k: v for k, v in SHARED_OPTIONS.items() if k not in own}
        recipes[method] = recipe.but(perturb=method, **foreign)
        shared = {k: said[k] for k in (*SHARED_OPTIONS, "optimizer", "lr")}
        ready = specialize(prepared.recipe.but(perturb=method, **{**shared, **foreign}))
        family, random_weights = prepared.built.family, prepared.built.random_weights
        ready = ready.resolved(family, random_weights, card(parse_method(method)[0]).base)
        perturbed(base_optimizer(torch.nn.Linear(1, 1), ready.optimizer, samples=1), ready)
        check_augmentation(ready.data.augment, prepared.data)
        check_encoding(objective(ready, prepared.data), prepared.built.encoding)
        ready = ready.but(tune=ready.tune.tune or said["tune"])
        if ready.tune.tune:
            check_data(asked_knobs(ready), prepared.data)
            self_tuned_knobs(ready)
        if ready.reparam.reparam != "none":
            reparam(ready, copy.deepcopy(prepared.built.model))
        if not len(prepared.data.validation):
            check_choosing(ready, prepared.data.name)
    return recipes


def check_shared(recipe: Recipe, methods: Sequence[str]) -> dict[str, list[str]]:
    """Refuse an option that is set for all methods and that none of them has.

    Returns:
        The options of each.

    Raises:
        InputError: there is one.
    """
    said = recipe.flat()
    takes = {method: options(parse_method(method)[0]) for method in methods}
    for option, default in SHARED_OPTIONS.items():
        if said[option] != default and not any(option in own for own in takes.values()):
            raise InputError(
                f"--{option.replace('_', '-')} is an option that none of {', '.join(methods)} has: "
                "leave it out"
            )
    return takes


def check_used(recipe: Recipe, own: Iterable[Recipe]) -> None:
    """Refuse a setting that no run of a study would use.

    Args:
        recipe: What all runs have in common.
        own: That of each method, see `of_method`, at each value of what is varied.

    Raises:
        InputError: there is one.
    """
    said, usual = recipe.flat(), Recipe().flat()
    runs = list(own)
    for name, (needs, uses) in USED.items():
        if said[name] != usual[name] and not any(map(uses, runs)):
            raise InputError(
                f"{flag(name)} is for {needs}, which nothing here sets: set that, or leave "
                f"{flag(name)} out"
            )


def check_twice(methods: Sequence[str]) -> None:
    """Refuse a method that is given twice, by an alias too.

    Raises:
        InputError: one is.
    """
    meant = {(card(name).name, str(own)) for name, own in map(parse_method, methods)}
    if len(meant) < len(methods):
        raise InputError(f"--perturb names a method twice: {', '.join(methods)}")


def of_method(recipe: Recipe, method: str) -> Recipe:
    """A recipe with the settings that a method brings, without options that it does not have."""
    takes = options(parse_method(method)[0])
    foreign = {k: v for k, v in SHARED_OPTIONS.items() if k not in takes}
    return specialize(recipe.but(perturb=method, **foreign))


def check_method(recipe: Recipe, method: str) -> None:
    """Refuse what no data could save, before any are read: names, options, contradictions.

    Raises:
        InputError: no such method, objective or reparametrization, or an option that it does not
            have; a value out of range; what the recipe says of its data does not go with it.
    """
    name, _ = parse_method(method)
    ready = of_method(recipe, method).resolved("transformers", True, card(name).base)
    perturbed(base_optimizer(torch.nn.Linear(1, 1), ready.optimizer, samples=1), ready)
    reparam_named(ready)
    check_values(ready)
    check_named(ready)
    data = known(ready.data)
    if ready.objective.objective is not None:
        objective_name, given = parse_brackets(ready.objective.objective)
        make_objective(objective_name, **given)
        if data.task:
            check_task(objective_name, data.task, ready.data.data)
        if data.kind:
            check_kind(objective_name, data.kind, ready.data.data)
    if data.kind not in ("", "image", "captioned") and ready.data.augment != "none":
        raise InputError(
            f"--augment {ready.data.augment} changes images, and {ready.data.data} holds "
            f"{data.kind}s: leave it out"
        )
    if data.task not in ("", "classification") and ready.data.label_noise:
        raise InputError(
            f"--label-noise draws classes anew, and {ready.data.data} is for {data.task}: "
            "leave it out"
        )
