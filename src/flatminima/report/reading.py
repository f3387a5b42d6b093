"""Results files, read as far as they can be: what is damaged is left out and noted."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flatminima.errors import InputError

STUDY, RESULTS, RECIPE = "study.json", "results.json", "recipe.yaml"

EXTRAS = ("predictions", "measure", "bound", "explain")
"""Further files of a run, `NAME.json`, that some commands write."""

LARGEST = 1e30
"""Larger numbers are of runs that diverged, and leave no room for others in a picture."""


@dataclass(frozen=True)
class Run:
    """One run, as its files tell of it.

    Attributes:
        method: What it is compared as.
        seed: Its seed.
        folder: Where its files are, for people to read.
        results: The content of `results.json`.
        records: The lines of `metrics.jsonl`.
        recipe: The text of `recipe.yaml`; "" where there is none.
        environment: The content of `environment.json`.
        data: The content of `data.json`.
        extras: The content of the files in `EXTRAS` that there are.
        landscapes: The content of its landscapes, by their kind: "" is that of `landscape.json`,
            "between" that of `landscape-between.json`.
    """

    method: str
    seed: int
    folder: str
    results: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]] = ()
    recipe: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    extras: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    landscapes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def curvature(self) -> Mapping[str, Any]:
        """What was measured at the end: by `flatminima measure` where it was, else by the run."""
        return self.extras.get("measure") or _mapping(self.results.get("curvature"))


@dataclass(frozen=True)
class Study:
    """What a report is about.

    Attributes:
        task: What the data are called.
        runs: Method to seed to run, the reference method first.
        values: Metric to method to seed to its finite value.
        failed: The runs that failed, each `{"method": ..., "seed": ..., "error": ...}`.
        common: The settings that all runs share; empty for runs that are no study.
        notes: What is missing or damaged, a line each.
        planned: The seeds that were asked for; empty for runs that are no study.
    """

    task: str
    runs: Mapping[str, Mapping[int, Run]]
    values: Mapping[str, Mapping[str, Mapping[int, float]]]
    failed: Sequence[Mapping[str, Any]]
    common: Mapping[str, Any]
    notes: list[str]
    planned: Sequence[int] = ()

    @property
    def methods(self) -> list[str]:
        """The methods, the reference first."""
        return list(self.runs)

    @property
    def reference(self) -> str:
        """What the others are compared with: the first method that has results."""
        known = {m for by_method in self.values.values() for m, v in by_method.items() if v}
        return next((method for method in self.runs if method in known), self.methods[0])

    @property
    def seeds(self) -> list[int]:
        """All seeds that some run has."""
        found = {seed for by_seed in self.runs.values() for seed in by_seed}
        for by_method in self.values.values():
            found |= {seed for by_seed in by_method.values() for seed in by_seed}
        return sorted(found)

    def all_runs(self) -> list[Run]:
        """The runs, method by method."""
        return [run for by_seed in self.runs.values() for run in by_seed.values()]

    def count(self) -> int:
        """How many runs there are results of."""
        return max(
            (sum(map(len, by_method.values())) for by_method in self.values.values()), default=0
        )


def read(targets: Sequence[Path]) -> Study:
    """Read a study, the results file of one, or runs that are to be compared.

    Runs of one method and recipe are told apart by their seeds; those of one method and several
    recipes, or one seed, are compared under the names of their folders.

    Args:
        targets: One study, one file of a study's results, or one or more runs.

    Raises:
        InputError: a target is none of these or is given twice, nothing in it can be read, or runs
            are of several tasks.
    """
    notes: list[str] = []
    if len({target.resolve() for target in targets}) < len(targets):
        raise InputError(f"a run is given twice: {', '.join(map(str, targets))}")
    if len(targets) == 1 and targets[0].is_file():
        study = _from_summary(targets[0], notes)
    elif len(targets) == 1 and (targets[0] / STUDY).is_file():
        study = _from_study(targets[0], notes)
    else:
        study = _from_runs(targets, notes)
    if not study.values:
        raise InputError(
            f"nothing to report in {', '.join(map(str, targets))}: " + "; ".join(notes or ["empty"])
        )
    return study


def _from_summary(file: Path, notes: list[str]) -> Study:
    """A study of which only the results are at hand."""
    summary = _object(file, notes)
    try:
        seeds, methods = [int(seed) for seed in summary["seeds"]], dict(summary["methods"])
        by_method = {name: _by_seed(metrics, seeds) for name, metrics in methods.items()}
    except (AttributeError, KeyError, TypeError, ValueError):
        raise InputError(
            f"{file} holds no results of a study: give the folder of a study or of runs, or the "
            "results.json of a study"
        ) from None
    notes.append(f"Made from {file.name} alone: it has no curves, pictures or recipe.")
    failed = summary.get("failed")
    return Study(
        task=str(summary.get("task", file.stem)),
        runs={name: {} for name in methods},
        values=_turned(by_method),
        failed=failed if isinstance(failed, list) else [],
        common={},
        notes=notes,
    )


def _from_study(folder: Path, notes: list[str]) -> Study:
    told = _object(folder / STUDY, notes)
    methods, planned = told.get("methods"), told.get("seeds")
    whole = isinstance(methods, list) and isinstance(planned, list)
    if not whole or not all(isinstance(seed, int) for seed in planned or []):
        methods = sorted({path.parent.name for path in folder.glob("*/seed-*")})
        planned = []
        notes.append(f"{STUDY} is damaged: methods are named by their folders.")
    seeds: list[int] = list(planned or [])
    runs: dict[str, dict[int, Run]] = {str(method): {} for method in methods or []}
    missing = []
    for method in runs:
        home = folder / method.replace(":", ",")
        places = {seed: p for p in home.glob("seed-*") if (seed := _number(p)) is not None}
        for seed, place in sorted(places.items()):
            if seeds and seed not in seeds:
                notes.append(f"{place} is of no seed of the study: left out.")
                continue
            run = _run(place, notes, method, seed)
            if run is not None:
                runs[method][seed] = run
        missing += [f"{method}, seed {s}" for s in seeds if s not in runs[method]]
    summary = _object(folder / RESULTS, notes) if (folder / RESULTS).is_file() else {}
    failed = summary.get("failed")
    failed = [run for run in failed if isinstance(run, dict)] if isinstance(failed, list) else []
    told_of = {f"{run.get('method')}, seed {run.get('seed')}" for run in failed}
    missing = [name for name in missing if name not in told_of]
    if missing and not any(runs.values()) and summary:
        return _from_summary(folder / RESULTS, notes)
    if missing:
        notes.append(f"Without results, and left out: {'; '.join(missing)}.")
    some = next((run for by_seed in runs.values() for run in by_seed.values()), None)
    return Study(
        task=str(some.results.get("task", folder.name)) if some else folder.name,
        runs=runs,
        values=_values(runs, notes),
        failed=failed,
        common=_mapping(told.get("recipe")),
        notes=notes,
        planned=seeds,
    )


def _from_runs(targets: Sequence[Path], notes: list[str]) -> Study:
    found: list[Run] = []
    for target in targets:
        if not (target / RECIPE).is_file() and not (target / RESULTS).is_file():
            raise InputError(
                f"{target} is no study and no run: it has neither {STUDY} nor {RECIPE} nor "
                f"{RESULTS}"
            )
        if (target / STUDY).is_file():
            raise InputError(f"{target} is a study: report it alone, or give runs in it")
        run = _run(target, notes)
        if run is not None:
            found.append(run)
        elif not any(str(target) in note for note in notes):
            notes.append(f"{target} is not finished: it has no {RESULTS}.")
    tasks = list(dict.fromkeys(str(run.results.get("task")) for run in found))
    if len(tasks) > 1:
        raise InputError(f"runs on different data are not compared: {', '.join(tasks)}")
    keys = [(run.method, run.seed) for run in found]
    recipes: dict[str, set[str]] = {}
    for run in found:
        recipes.setdefault(run.method, set()).add(_but_seed(run.recipe))
    runs: dict[str, dict[int, Run]] = {}
    for run, key in zip(found, keys, strict=True):
        alone = keys.count(key) == 1 and len(recipes[run.method]) == 1
        name = run.method if alone else f"{run.method} ({run.folder})"
        # Whatever a section says of a run has to tell it from the others.
        runs.setdefault(name, {})[run.seed] = replace(run, method=name)
    return Study(", ".join(tasks), runs, _values(runs, notes), [], {}, notes)


def _but_seed(recipe: str) -> str:
    """A recipe without the line that tells runs of one method apart."""
    return "\n".join(line for line in recipe.splitlines() if not line.startswith("seed:"))


def _run(
    place: Path, notes: list[str], method: str | None = None, seed: int | None = None
) -> Run | None:
    """What the files of a run say; None where its results are missing or damaged."""
    if not (place / RESULTS).is_file():
        return None
    results = _object(place / RESULTS, notes)
    if not isinstance(results.get("metrics"), Mapping):
        if results:
            notes.append(f"{place / RESULTS} has no metrics: left out.")
        return None
    extras = {
        name: found
        for name in EXTRAS
        if (place / f"{name}.json").is_file() and (found := _object(place / f"{name}.json", notes))
    }
    landscapes = {
        file.stem.removeprefix("landscape").removeprefix("-"): found
        for file in sorted(place.glob("landscape*.json"))
        if not file.stem.endswith("-partial") and (found := _object(file, notes))
    }
    recipe, own_seed = place / RECIPE, results.get("seed")
    if seed is None:
        seed = own_seed if isinstance(own_seed, int) else 0
    elif own_seed != seed:
        notes.append(f"{place / RESULTS} says that its seed is {own_seed}, and its folder {seed}.")
    return Run(
        method=method or str(results.get("method", place.name)),
        seed=seed,
        folder=str(place),
        results=results,
        records=_records(place / "metrics.jsonl", notes),
        recipe=recipe.read_text(encoding="utf-8", errors="replace") if recipe.is_file() else "",
        environment=_object(place / "environment.json", notes),
        data=_object(place / "data.json", notes),
        extras=extras,
        landscapes=landscapes,
    )


def _values(
    runs: Mapping[str, Mapping[int, Run]], notes: list[str]
) -> dict[str, dict[str, dict[int, float]]]:
    by_method: dict[str, dict[str, dict[int, float]]] = {}
    for method, by_seed in runs.items():
        of_method = by_method.setdefault(method, {})
        for seed, run in by_seed.items():
            if not run.results["metrics"]:
                notes.append(f"{run.folder}: its results have no numbers.")
            for metric, value in run.results["metrics"].items():
                number = finite(value)
                if number is None and isinstance(value, int | float):
                    notes.append(f"{run.folder}: its {metric} is too large, and left out.")
                elif number is not None:
                    of_method.setdefault(str(metric), {})[seed] = number
    return _turned(by_method)


def _by_seed(metrics: Mapping[str, Any], seeds: Sequence[int]) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for metric, entry in metrics.items():
        for seed, value in zip(seeds, entry["values"], strict=True):
            if (number := finite(value)) is not None:
                found.setdefault(metric, {})[seed] = number
    return found


def _turned(
    by_method: Mapping[str, Mapping[str, Mapping[int, float]]],
) -> dict[str, dict[str, dict[int, float]]]:
    turned: dict[str, dict[str, dict[int, float]]] = {}
    for method, metrics in by_method.items():
        for metric, by_seed in metrics.items():
            turned.setdefault(metric, {})[method] = dict(by_seed)
    return turned


def finite(value: Any) -> float | None:
    """A finite number of up to `LARGEST`, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # Comparing, since a whole number of many digits has no floating-point form; NaN fails too.
    return float(value) if -LARGEST <= value <= LARGEST else None


def _object(file: Path, notes: list[str]) -> dict[str, Any]:
    """A JSON object; an empty one, and a note, where it is damaged; empty where there is none."""
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        notes.append(f"{file} is damaged and left out: {error}.")
        return {}
    if not isinstance(found, dict):
        notes.append(f"{file} is damaged and left out: it holds no object.")
        return {}
    return found


def _records(file: Path, notes: list[str]) -> Sequence[Mapping[str, Any]]:
    if not file.is_file():
        if file.exists():
            notes.append(f"{file} is no file.")
        return []
    records, broken = [], 0
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict):
            records.append(record)
        else:
            broken += 1
    if broken:
        notes.append(f"{file}: {broken} damaged lines left out.")
    return records


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(place: Path) -> int | None:
    """The seed that a folder is named by; None for a folder that is no run of a study."""
    digits = place.name.removeprefix("seed-")
    return int(digits) if digits.isascii() and digits.isdigit() else None
