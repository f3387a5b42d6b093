"""Slices of the loss around what is trained already, and between several of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from flatminima import landscape
from flatminima.errors import InputError, unknown
from flatminima.landscape import Direction, Frame, Landscape
from flatminima.objectives import Objective
from flatminima.progress import Progress, silent
from flatminima.training import checkpoint
from flatminima.training.curvature import measured_batches
from flatminima.training.directory import RunDirectory
from flatminima.training.measuring import Target, open_target
from flatminima.training.prepared import prepare, restore
from flatminima.training.processes import own_device
from flatminima.training.threads import fitting_threads

DIRECTIONS = ("random", "eigen", "extremes", "gradient", "optimizer", "trajectory", "between")

LARGE_BATCH = 1024
"""Samples of a batch for the networks that come with the library, whose passes are short."""

MARGIN = 0.2
"""How far a picture goes on beyond a path, as a part of its extent."""


@dataclass(frozen=True)
class SliceSettings:
    """What to slice, and how.

    Attributes:
        directions: One of `DIRECTIONS`.
        dims: 1 or 2 axes.
        points: Along each axis.
        radius: Of the axes; see `loss_slice`.
        normalization: See `normalized`; None: "filter" for random directions, else "unit".
        biases: See `normalized`; None: "ignore" for random directions, else "scale".
        batchnorm: See `loss_slice`.
        seed: Of random directions.
        max_seconds: For each target.
    """

    directions: str = "random"
    dims: int = 2
    points: int = 25
    radius: float = 1.0
    normalization: str | None = None
    biases: str | None = None
    batchnorm: str = "running"
    seed: int = 0
    max_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.directions not in DIRECTIONS:
            raise unknown("choice of directions", self.directions, DIRECTIONS)
        if self.dims not in (1, 2):
            raise InputError(f"dims is {self.dims}: give 1 for a line or 2 for a plane")
        if self.directions == "trajectory" and self.dims == 1:
            raise InputError("the path of a run is drawn in a plane: leave dims at 2")

    @property
    def fitting(self) -> dict[str, Any]:
        """How directions are fitted to the weights."""
        random = self.directions == "random"
        return {
            "normalization": self.normalization or ("filter" if random else "unit"),
            "biases": self.biases or ("ignore" if random else "scale"),
        }


def slice_target(
    target: str,
    said: Mapping[str, Any],
    settings: SliceSettings,
    *,
    earlier: Callable[[Path | None], Landscape | None] = lambda file: None,
    progress: Progress = silent,
    say: Callable[[str], None] = print,
) -> tuple[Landscape, Path | None]:
    """The loss around one target, on the training samples that it is measured on.

    Args:
        target: A run, one of its checkpoints, or a transformers model; see `measure_target`.
        said: Recipe fields, flat, that override the run's own.
        settings: What and how; any directions but "between".
        earlier: Given the file of the result, says what there is of it already.
        progress: Told how far each stage is.
        say: Told what a user should read.

    Returns:
        The slice, and the file in the run's directory to write it to (None for a model that is no
        run).

    Raises:
        InputError: the target is none of these, or has not what the directions need.
    """
    opened = open_target(target, said, progress=progress, say=say)
    model, batches = _ready(opened, settings)
    kind = settings.directions
    named = [
        "landscape",
        *([kind] if kind != "random" else []),
        *(["1d"] if settings.dims == 1 else []),
    ]
    file = opened.file("-".join(named))
    with fitting_threads(model):
        directions, path = _directions(opened, model, batches, said, settings, progress)
        where = opened.checkpoint
        centre = str(Path(target)) if where is None else f"{Path(target)} ({where.folder.name})"
        frame = landscape.around(directions, centre=centre)
        found = _slice(
            model,
            opened.prepared.task.loss,
            batches,
            frame,
            settings,
            _spans(path),
            path,
            earlier(file),
            progress,
            say,
        )
    return found, file


def slice_between(
    targets: Sequence[str],
    said: Mapping[str, Any],
    settings: SliceSettings,
    *,
    earlier: Callable[[Path | None], Landscape | None] = lambda file: None,
    progress: Progress = silent,
    say: Callable[[str], None] = print,
) -> tuple[Landscape, Path | None]:
    """The line through two targets or the plane through three, on the samples of the first.

    Args:
        targets: Runs or checkpoints, of one architecture.
        said: Recipe fields, flat, that override the first run's own.
        settings: What and how.
        earlier: Given the file of the result, says what there is of it already.
        progress: Told how far each stage is.
        say: Told what a user should read.

    Raises:
        InputError: not two or three; a target is not whole, or of another architecture.
    """
    if len(targets) not in (2, 3) or len(set(targets)) < len(targets):
        raise InputError(
            f"--directions between goes through 2 or 3 different runs or checkpoints, not "
            f"{', '.join(targets)}"
        )
    first = open_target(targets[0], said, progress=progress, say=say)
    model, batches = _ready(first, settings)
    states = {targets[0]: _copied(model)}
    for target in targets[1:]:
        other = open_target(target, said, progress=progress, say=say)
        states[target] = _copied(other.prepared.built.model)
    with fitting_threads(model):
        frame = landscape.through(model, states)
        file = None if first.home is None else first.home / "landscape-between.json"
        loss, before = first.prepared.task.loss, earlier(file)
        found = _slice(model, loss, batches, frame, settings, None, (), before, progress, say)
    return found, file


def _slice(
    model: nn.Module,
    loss: Objective,
    batches: list[Any],
    frame: Frame,
    settings: SliceSettings,
    spans: tuple[tuple[float, float], ...] | None,
    path: tuple[tuple[float, float], ...],
    earlier: Landscape | None,
    progress: Progress,
    say: Callable[[str], None],
) -> Landscape:
    def make(before: Landscape | None) -> Landscape:
        return landscape.loss_slice(
            model,
            loss,
            batches,
            frame,
            points=settings.points,
            radius=settings.radius,
            spans=spans,
            batchnorm=settings.batchnorm,
            max_seconds=settings.max_seconds,
            earlier=before,
            path=path,
            progress=progress,
            say=say,
        )

    if earlier is None:
        return make(None)
    try:
        return make(earlier)
    except landscape.AnotherSlice as error:
        say(f"the unfinished landscape is not continued: {error.why}")
        return make(None)


def _ready(target: Target, settings: SliceSettings) -> tuple[nn.Module, list[Any]]:
    device = own_device()
    model = target.prepared.built.model.to(device)
    # What a batch is matters where its own statistics are used.
    large = target.prepared.built.family == "builtin" and settings.batchnorm == "running"
    return model, measured_batches(target.prepared, device, LARGE_BATCH if large else None)


def _directions(
    target: Target,
    model: nn.Module,
    batches: list[Any],
    said: Mapping[str, Any],
    settings: SliceSettings,
    progress: Progress,
) -> tuple[list[Direction], tuple[tuple[float, float], ...]]:
    kind, fitting, dims = settings.directions, settings.fitting, settings.dims
    loss = target.prepared.task.loss
    if kind == "trajectory":
        found = landscape.trajectory_directions(model, _checkpoints(target, said, progress))
        return found.directions, found.path
    directions: list[Direction] = []
    if kind in ("eigen", "extremes"):
        which = "largest" if kind == "eigen" else "extremes"
        directions = landscape.eigen_directions(
            model,
            loss,
            batches,
            which=which,
            count=dims,
            seed=settings.seed,
            progress=progress,
            **fitting,
        )
        if dims == 1:
            directions = directions[-1:]
    elif kind == "gradient":
        directions = [landscape.gradient_direction(model, loss, batches, **fitting)]
    elif kind == "optimizer":
        directions = landscape.optimizer_directions(model, _optimizer(target), **fitting)
    elif kind == "between":
        raise InputError("--directions between needs 2 or 3 runs or checkpoints")
    missing = dims - len(directions)
    if missing > 0:
        directions += landscape.random_directions(model, missing, seed=settings.seed, **fitting)
    return directions[:dims], ()


def _optimizer(target: Target) -> Mapping[str, Any]:
    found = target.checkpoint
    if found is None or not (found.folder / checkpoint.OPTIMIZER).is_file():
        raise InputError(
            f"{target.name} has no saved optimizer: only checkpoints/last and checkpoints/previous "
            "of a run do"
        )
    saved: Mapping[str, Any] = found.load_optimizer()["optimizer"]
    return saved


def _checkpoints(
    target: Target, said: Mapping[str, Any], progress: Progress
) -> list[dict[str, Tensor]]:
    """The weights a run began with and those of its checkpoints, in the order of their steps."""
    if target.home is None:
        raise InputError(f"{target.name} is no run, so it has no path: take other directions")
    recipe = RunDirectory(target.home).read_recipe().but(**said)
    started = prepare(recipe, progress)
    model = started.built.model
    states = [_copied(model)]
    steps: dict[int, dict[str, Tensor]] = {}
    for name in ("previous", "best", "last"):
        try:
            found = checkpoint.read(target.home / "checkpoints" / name)
        except InputError:
            continue
        again = replace(started, built=replace(started.built, model=copy.deepcopy(model)))
        restore(again, found)
        steps[int(found.state.get("step", 0))] = _copied(again.built.model)
    return states + [steps[step] for step in sorted(steps) if step > 0]


def _copied(model: nn.Module) -> dict[str, Tensor]:
    named = (*model.named_parameters(), *model.named_buffers())
    return {name: tensor.detach().clone() for name, tensor in named}


def _spans(path: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...] | None:
    if not path:
        return None
    spans = []
    for places in zip(*path, strict=True):
        low, high = min(0.0, *places), max(0.0, *places)
        margin = MARGIN * (high - low)
        spans.append((low - margin, high + margin))
    widest = max(high - low for low, high in spans)
    # A path that is almost straight still needs a plane about it.
    least = widest / 2
    return tuple(
        (low, high) if high - low >= least else (low - least / 2, high + least / 2)
        for low, high in spans
    )
