"""What a recipe file asks for, refused with the line of what is wrong before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flatminima.cli import flags
from flatminima.cli.places import Places
from flatminima.errors import InputError, unknown
from flatminima.training.recipe import Recipe, option_types, read

BESIDE = ("perturb", "seeds", "vary", "small", "about")
"""The keys of an experiment that are no fields of a recipe."""

ABOUT = ("title", "purpose", "paper", "needs", "shows", "along", "verdict")
"""What a recipe says of itself: words, but for two lists of metrics."""

LISTS = ("shows", "along")


@dataclass(frozen=True)
class Asked:
    """An experiment as its file asks for it.

    Attributes:
        content: The keys of the file, those under `small` over them if it is to be small.
        recipe: What all runs have in common.
        methods: As users write them.
        seeds: How many.
        grid: Field to its values, None where nothing is varied.
        about: What the file says of itself.
    """

    content: dict[str, Any]
    recipe: Recipe
    methods: list[str]
    seeds: int
    grid: dict[str, list[Any]] | None
    about: dict[str, Any]


def experiment(file: Path, *, small: bool) -> dict[str, Any]:
    """The keys of a recipe file, those under `small` over them if it is to be small.

    Raises:
        InputError: a key that is none of an experiment, with its line and the nearest that is; a
            key given twice; `small`, `vary` or `about` is no mapping, or there is no `small`.
    """
    whole = read(file)
    if not whole:
        raise InputError(
            f"the recipe {file} is empty: say at least what to train on, as data: digits"
        )
    places = Places(file)
    _check_keys(places, whole)
    smaller = whole.pop("small", None)
    if smaller is not None and not isinstance(smaller, Mapping):
        raise InputError(
            f"{places.where('small')}: the recipe key 'small' must hold a mapping of names to "
            "values"
        )
    if small and smaller is None:
        raise InputError("the recipe has no 'small' version: leave --small out")
    _check_keys(places, smaller or {}, "small")
    asked = {**whole, **smaller} if small and smaller is not None else whole
    for key, holds in (("vary", "a field and its values"), ("about", "title, purpose, ...")):
        content = asked.get(key, {"": None})
        if not isinstance(content, Mapping) or not content:
            raise InputError(
                f"{_where(places, key, small=small)}: the recipe key {key!r} must hold a mapping: "
                f"{holds}"
            )
    _check_about(places, asked.get("about", {}))
    return asked


def parse(file: Path, *, small: bool) -> Asked:
    """A recipe file as values of the right types and methods that exist, with no data read.

    Raises:
        InputError: as `experiment`; a value of the wrong type or out of range, settings that
            contradict each other, a method or an option that does not exist, one given twice, a
            field that cannot be varied; each with the line.
    """
    from flatminima.training.named import check_named

    content = experiment(file, small=small)
    places = Places(file)
    fields = {key: value for key, value in content.items() if key not in BESIDE}
    try:
        recipe = Recipe.from_flat(fields)
    except InputError as error:
        raise InputError(f"{_culprit(places, fields, error, small)}: {error}") from error
    try:
        check_named(recipe)
    except InputError as error:
        raise InputError(f"{_named(places, error, 'data', small)}: {error}") from error
    with places.naming(*_way(places, "seeds", small=small)):
        seeds = flags.whole("seeds", content.get("seeds", 1))
        if seeds < 1:
            raise InputError(f"--seeds is {seeds}: give at least 1")
    methods = _methods(places, content.get("perturb", "plain"), small)
    _check_methods(places, recipe, content, methods, small)
    grid = content.get("vary")
    if grid is not None:
        _check_once(places, fields, grid, small)
        _check_grid(places, recipe, methods, grid, small)
    _check_used(places, recipe, methods, grid or {}, small)
    return Asked(fields, recipe, methods, seeds, grid, content.get("about") or {})


def placed(file: Path, error: InputError, *, small: bool) -> InputError:
    """An error of a recipe that is met only with its data, with its line where a key is named."""
    where = Places(file).of_flags(str(error), small=small)
    return error if where == str(file) else InputError(f"{where}: {error}")


def _check_keys(places: Places, asked: Mapping[str, Any], *way: str) -> None:
    known = [*option_types(), *(key for key in BESIDE if not way or key not in ("small", "about"))]
    for key in asked:
        if key not in known:
            raise InputError(f"{places.where(*way, key)}: {unknown('recipe key', str(key), known)}")


def _check_about(places: Places, about: Mapping[str, Any]) -> None:
    from flatminima.training.metrics import metric_names

    for key, value in about.items():
        where = places.where("about", str(key))
        if key not in ABOUT:
            raise InputError(f"{where}: {unknown('key of about', str(key), ABOUT)}")
        several = isinstance(value, list) and all(isinstance(metric, str) for metric in value)
        if not (several if key in LISTS else isinstance(value, str)):
            holds = "a list of metrics" if key in LISTS else "words"
            raise InputError(f"{where}: {key!r} is {value!r}: give {holds}")
        for index, metric in enumerate(value if key in LISTS else ()):
            if metric not in (known := metric_names()):
                where = places.where("about", str(key), index)
                raise InputError(f"{where}: {unknown(f'metric of {key}', metric, known)}")


def _way(places: Places, key: str, *, small: bool) -> tuple[str, ...]:
    return ("small", key) if small and places.has("small", key) else (key,)


def _where(places: Places, key: str, *, small: bool) -> str:
    return places.where(*_way(places, key, small=small))


def _culprit(places: Places, fields: Mapping[str, Any], error: InputError, small: bool) -> str:
    """The place of the value that is wrong by itself, else of one that the error names."""
    for key, value in fields.items():
        try:
            Recipe.from_flat({key: value})
        except InputError as own:
            if str(own) == str(error):
                return _where(places, key, small=small)
    return places.of_flags(str(error), small=small)


def _named(places: Places, error: InputError, otherwise: str, small: bool) -> str:
    """The place of the first key that an error names, else of another one."""
    named = places.of_flags(str(error), small=small)
    return _where(places, otherwise, small=small) if named == str(places.file) else named


def _methods(places: Places, asked: Any, small: bool) -> list[str]:
    """The methods of `perturb`: words with commas between, or a list."""
    way = _way(places, "perturb", small=small)
    if isinstance(asked, str):
        asked = [method.strip() for method in asked.split(",") if method.strip()]
    if asked == []:
        raise InputError(f"{places.where(*way)}: --perturb names no method: give at least one")
    if not isinstance(asked, list):
        raise InputError(
            f"{places.where(*way)}: --perturb is {asked!r}: give a list of methods, as - nso"
        )
    for index, method in enumerate(asked):
        if not isinstance(method, str):
            # YAML reads `- nso: sigma=0.1` as a mapping.
            raise InputError(
                f"{places.where(*way, index)}: {method!r} is no method: write it as words without "
                "spaces, as in - nso:sigma=0.1"
            )
    return asked


def _check_methods(
    places: Places, recipe: Recipe, content: Mapping[str, Any], methods: Sequence[str], small: bool
) -> None:
    from flatminima.training.checks import check_method, check_shared, check_twice
    from flatminima.training.methods import check_strengths

    of_data = ("data", "task", "text_column", "image_column", "label_noise", "augment")
    for key in ("objective", "reparam"):
        shared = {k: content[k] for k in (key, *of_data) if content.get(k) is not None}
        try:
            check_method(Recipe.from_flat(shared), "plain")
        except InputError as error:
            raise InputError(f"{_named(places, error, key, small)}: {error}") from error
    way = _way(places, "perturb", small=small)
    for index, method in enumerate(methods):
        with places.naming(*way, index):
            check_method(recipe, method)
    for index in range(len(methods)):
        with places.naming(*way, index):
            check_twice(methods[: index + 1])
    try:
        check_shared(recipe, methods)
        check_strengths(content, methods)
    except InputError as error:
        raise InputError(f"{places.of_flags(str(error), small=small)}: {error}") from error


def _check_once(
    places: Places, fields: Mapping[str, Any], grid: Mapping[str, Any], small: bool
) -> None:
    """Refuse a key that is both set and varied, of which one would be lost."""
    for name in grid:
        if fields.get(str(name)) is not None:
            raise InputError(
                f"{places.where(*_way(places, 'vary', small=small), str(name))}: {name!r} is "
                f"varied, and set in {_where(places, str(name), small=small).split(', ')[-1]}: "
                "leave one out (null unsets it)"
            )


def _check_used(
    places: Places, recipe: Recipe, methods: Sequence[str], grid: Mapping[str, Any], small: bool
) -> None:
    from flatminima.training.checks import check_used, of_method

    varied = [(k, value) for k, values in grid.items() if values != "all" for value in values]
    points = [recipe, *(recipe.but(**{name: value}) for name, value in varied)]
    try:
        check_used(recipe, (of_method(point, method) for point in points for method in methods))
    except InputError as error:
        raise InputError(f"{places.of_flags(str(error), small=small)}: {error}") from error


def _check_grid(
    places: Places, recipe: Recipe, methods: Sequence[str], grid: Mapping[str, Any], small: bool
) -> None:
    from flatminima.study.vary import check_field
    from flatminima.training.checks import check_method

    way = _way(places, "vary", small=small)
    for name, values in grid.items():
        with places.naming(*way, str(name)):
            check_field(recipe, str(name), values)
        taken = []
        for index, value in enumerate(() if values == "all" else values):
            with places.naming(*way, str(name), index):
                own = recipe.but(**{name: value})
                taken.append(own.flat()[name])
                if taken[-1] in taken[:-1]:
                    raise InputError(f"{name}={taken[-1]} is given twice: leave one out")
                for method in methods:
                    check_method(own, method)
