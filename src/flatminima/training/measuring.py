"""Measuring what is already trained: a run, one of its checkpoints, or a model from elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from flatminima.errors import InputError
from flatminima.measure import CurvatureReport, PacBayesBound, pac_bayes_bound
from flatminima.progress import Progress, silent
from flatminima.training import checkpoint
from flatminima.training.curvature import measure
from flatminima.training.data.device import to_device
from flatminima.training.data.encode import encode
from flatminima.training.directory import RunDirectory
from flatminima.training.loader import loader
from flatminima.training.prepared import Prepared, prepare, restore
from flatminima.training.recipe import Recipe
from flatminima.training.threads import fitting_threads

KEPT = {"best": ("best",), "swa": (checkpoint.AVERAGED,), "ema": (checkpoint.AVERAGED,)}
"""The checkpoint that a run is about, by what it keeps; the last where it is not there."""


def measure_target(
    target: str,
    said: Mapping[str, Any],
    *,
    settings: Mapping[str, Any] = MappingProxyType({}),
    progress: Progress = silent,
    say: Callable[[str], None] = print,
) -> tuple[CurvatureReport, Path | None]:
    """The curvature of a target's loss on its training set.

    Args:
        target: A run directory (its last checkpoint is taken, or what the run keeps), a
            checkpoint folder of a run, or a transformers folder or hub id.
        said: Recipe fields, flat, that override the run's own; must name the data for a model that
            is no run.
        settings: Of `curvature`, over what the recipe says.
        progress: Told how far each stage is.
        say: Told what a user should read.

    Returns:
        The report, and the file in the run's directory to write it to (None for a model that is
        no run).

    Raises:
        InputError: the target is none of these, or is not whole.
    """
    settings = {"keep_interrupted": True, **settings}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    opened = open_target(target, said, progress=progress, say=say)
    prepared = opened.prepared
    report = measure(prepared, prepared.built.model, device, progress, **settings)
    return report, opened.file("measure")


BOUND_TRACES = 20
"""Batches whose traces a bound takes the largest of."""


def bound_target(
    target: str,
    said: Mapping[str, Any],
    *,
    progress: Progress = silent,
    say: Callable[[str], None] = print,
) -> tuple[PacBayesBound, Path | None]:
    """The PAC-Bayes bound on a run's test loss, from the weights that it began with.

    It is over all of the training set; the traces are of the first `BOUND_TRACES` batches.

    Args:
        target: A run or one of its checkpoints.
        said: Recipe fields, flat, that override the run's own.
        progress: Told how far it is.
        say: Told what a user should read.

    Raises:
        InputError: the target is no run, or is not whole.
    """
    opened = open_target(target, said, progress=progress, say=say)
    if opened.home is None:
        raise InputError(
            f"{target} is no run: a bound is about the distance from the weights before training, "
            "which only a run's recipe knows"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    recipe = RunDirectory(opened.home).read_recipe().but(**said)
    start = prepare(recipe, progress).built.model
    prepared = opened.prepared
    encoded = encode(prepared.data.train, prepared.data, prepared.built.encoding)
    batches = loader(encoded, recipe.loop.batch_size)
    model = prepared.built.model.to(device)
    with fitting_threads(model):
        found = pac_bayes_bound(
            model,
            prepared.task.loss,
            [to_device(batch, device) for batch in batches],
            reference=start.to(device),
            traces=BOUND_TRACES,
            seed=recipe.loop.seed,
            progress=progress,
        )
    return found, opened.file("bound")


@dataclass(frozen=True)
class Target:
    """What is trained already, with its weights in place.

    Attributes:
        name: As it was given.
        prepared: Its data and its model.
        checkpoint: Where the weights are from; None for a model that is no run.
        home: The run's directory; None for a model that is no run.
    """

    name: str
    prepared: Prepared
    checkpoint: checkpoint.Checkpoint | None
    home: Path | None

    def file(self, kind: str) -> Path | None:
        """The file in the run's directory for a result: `kind.json`, `kind-best.json`, ..."""
        if self.home is None or self.checkpoint is None:
            return None
        whole_run = Path(self.name).resolve() == self.home.resolve()
        return self.home / (
            f"{kind}.json" if whole_run else f"{kind}-{self.checkpoint.folder.name}.json"
        )


def open_target(
    target: str,
    said: Mapping[str, Any],
    *,
    progress: Progress = silent,
    say: Callable[[str], None] = print,
) -> Target:
    """Load the data and the trained weights of a target; see `measure_target`.

    Raises:
        InputError: the target is none of these, or is not whole.
    """
    found, home = _locate(Path(target))
    if found is None or home is None:
        if "data" not in said:
            raise InputError(
                f"{target} is no run directory and no checkpoint of one: check the path, or, for a "
                "transformers model, say which data to measure on with --data"
            )
        prepared = prepare(Recipe.from_flat({**said, "model": target}), progress)
        return Target(target, prepared, None, None)
    if found.warning:
        say(found.warning)
    recipe = RunDirectory(home).read_recipe().but(pretrain=False, **said)
    prepared = prepare(recipe, progress)
    restore(prepared, found)
    return Target(target, prepared, found, home)


def _locate(path: Path) -> tuple[checkpoint.Checkpoint | None, Path | None]:
    if (path / "recipe.yaml").is_file():
        kept = KEPT.get(RunDirectory(path).read_recipe().loop.keep, ())
        return checkpoint.find(path / "checkpoints", (*kept, "last", "previous")), path
    run = path.parent.parent
    if path.parent.name == "checkpoints" and (run / "recipe.yaml").is_file():
        return checkpoint.read(path), run
    return None, None
