"""A comparison repeated along a setting: methods times seeds for each value of a field."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flatminima.errors import InputError
from flatminima.files import read_json, write_json, write_text
from flatminima.study.compare import compare
from flatminima.study.domains import across_domains
from flatminima.study.jobs import Outcome
from flatminima.study.runs import STUDY
from flatminima.study.table import markdown_table
from flatminima.training.checks import for_methods
from flatminima.training.data.load import domains_of
from flatminima.training.recipe import Recipe, flag

VARIED = "vary.json"

FIXED = ("seed", "perturb")
"""What a study sets for each of its runs."""


def vary(
    recipe: Recipe,
    methods: Sequence[str],
    seeds: int,
    grid: Mapping[str, Sequence[Any]],
    out: Path,
    *,
    workers: int | None = None,
    ray: str | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    on_outcome: Callable[[Outcome], None] | None = None,
) -> dict[str, Any]:
    """Compare methods at each value of a field, or at each pair of values of two.

    Each point is a study of its own in `out/FIELD=VALUE`, as `compare` leaves it. Called again,
    finished runs are kept.

    Args:
        recipe: What all points have in common.
        methods: As on the command line; the first is the reference.
        seeds: How many, at each point the same.
        grid: Field of the recipe to its values; "all" for the domains of `test_domain`.
        out: Where to write; `vary.json` and `table.md` among it.
        workers: Processes; default: one for each core.
        ray: The address of a Ray cluster to run on instead.
        progress: Told how many runs of a point are done.
        on_outcome: Told of each run as it ends.

    Returns:
        The content of `vary.json`: "grid"; "points", for each its "at", field to value, its
        "folder" and its "summary", what `compare` returns; and "domains" where the only field is
        `test_domain`, see `across_domains`.

    Raises:
        InputError: a field that cannot be varied, or none; no value, or one given twice; a point
            whose recipe cannot run, found before any point runs; as `compare`.
    """
    grid = _resolved(recipe, grid)
    points = _points(recipe, methods, grid)
    _check_free(out, grid)
    write_json(out / VARIED, {"grid": dict(grid), "points": []})
    found: list[dict[str, Any]] = []
    for number, (at, own) in enumerate(points.items(), 1):

        def told(stage: str, done: int, total: int, number: int = number) -> None:
            if progress is not None:
                progress(f"{stage} of point {number} of {len(points)}", done, total)

        summary = compare(
            own,
            methods,
            seeds,
            out / at,
            workers=workers,
            ray=ray,
            progress=told,
            on_outcome=on_outcome,
        )
        values = {name: own.flat()[name] for name in grid}
        found.append({"at": values, "folder": at, "summary": summary})
        write_json(out / VARIED, {"grid": dict(grid), "points": found})
    result: dict[str, Any] = {"grid": dict(grid), "points": found}
    if list(grid) == ["test_domain"]:
        result["domains"] = across_domains([point["summary"] for point in found])
        write_json(out / VARIED, result)
    write_text(out / "table.md", varied_markdown(result))
    return result


def varied_markdown(result: Mapping[str, Any]) -> str:
    """The table of each point, one below the other."""
    parts = []
    for point in result["points"]:
        parts.append(f"### {name_of(point['at'])}\n\n{markdown_table(point['summary'])}")
    if "domains" in result:
        parts.insert(0, f"### Over all left-out domains\n\n{markdown_table(result['domains'])}")
    return "\n".join(parts)


def name_of(at: Mapping[str, Any]) -> str:
    """A point in words: `train_size 50, lr 0.1`."""
    return ", ".join(f"{name} {value}" for name, value in at.items())


def _resolved(recipe: Recipe, grid: Mapping[str, Sequence[Any]]) -> Mapping[str, Sequence[Any]]:
    """The grid with the names of the domains where all of them are asked for."""
    if grid.get("test_domain") != "all":
        return grid
    return {**grid, "test_domain": list(domains_of(recipe.data, recipe.loop.seed))}


def check_field(recipe: Recipe, name: str, values: Any) -> None:
    """Refuse to vary what is no field of a recipe, or over no list of values.

    Raises:
        InputError: a study sets the field for each of its runs, there is none of that name, or its
            values are no list.
    """
    if name in FIXED:
        raise InputError(f"{flag(name)} is set for each run of a study: vary another field")
    if name not in recipe.flat():
        # Says which field is meant.
        recipe.but(**{name: None})
    all_domains = name == "test_domain" and values == "all"
    if not all_domains and (not isinstance(values, list | tuple) or not values):
        raise InputError(f"{flag(name)} is varied over {values!r}: give a list of values")


def _points(
    recipe: Recipe, methods: Sequence[str], grid: Mapping[str, Sequence[Any]]
) -> dict[str, Recipe]:
    """The recipe of each point, by its folder."""
    if not grid:
        raise InputError("there is nothing to vary: give a field and its values")
    for name, values in grid.items():
        check_field(recipe, name, values)
    points: dict[str, Recipe] = {}
    for combination in itertools.product(*grid.values()):
        at = dict(zip(grid, combination, strict=True))
        own = recipe.but(**at)
        folder = ",".join(f"{name}={own.flat()[name]}" for name in grid).replace("/", "-")
        if folder in points:
            raise InputError(f"{folder} is given twice: leave one out")
        for_methods(own, methods)
        points[folder] = own
    return points


def _check_free(out: Path, grid: Mapping[str, Sequence[Any]]) -> None:
    """Refuse a directory that holds something other than this."""
    if (out / STUDY).exists() or (out / "recipe.yaml").exists():
        raise InputError(f"{out} holds a study or a run: choose another --out")
    if not (out / VARIED).exists():
        return
    before = read_json(out / VARIED)["grid"]
    lost = [f"{n}={v}" for n, values in before.items() for v in values if v not in grid.get(n, ())]
    if lost or set(before) != set(grid):
        what = ", ".join(lost) or ", ".join(before)
        raise InputError(
            f"{out} holds a comparison along {what}, which this would lose: choose another --out, "
            "or ask for that and more"
        )
