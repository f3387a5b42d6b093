"""The loss on a line or a plane of weights."""

from __future__ import annotations

import itertools
import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from flatminima.errors import InputError, unknown
from flatminima.landscape.evaluate import Evaluator, batchnorms, normalizing
from flatminima.landscape.frame import Frame, Mover, lengths, moving_tensors
from flatminima.landscape.grid import axis_values, coarse_to_fine
from flatminima.landscape.result import BATCHNORM, Axis, Landscape
from flatminima.landscape.sharing import sharing
from flatminima.measure.batches import Batches
from flatminima.measure.cost import Meter
from flatminima.measure.untouched import untouched
from flatminima.objectives import Objective
from flatminima.progress import Progress

Span = tuple[float, float]

TIMED = 5
"""Points after which the cost of all is known well enough to be said."""

LONG = 60.0
"""Seconds from which on the cost is said although no budget was set."""


class AnotherSlice(InputError):
    """An earlier slice is not of what is to be sliced.

    Args:
        why: Where they differ.
    """

    def __init__(self, why: str) -> None:
        super().__init__(f"the earlier slice is of something else: {why}; start anew without it")
        self.why = why


def loss_slice(
    model: nn.Module,
    objective: Objective,
    batches: Batches,
    frame: Frame,
    *,
    points: int = 25,
    radius: float = 1.0,
    spans: tuple[Span, ...] | None = None,
    batchnorm: str = "running",
    at_once: int = 1,
    max_seconds: float | None = None,
    earlier: Landscape | None = None,
    path: tuple[tuple[float, float], ...] = (),
    keep_interrupted: bool = True,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> Landscape:
    """The mean loss over all samples, and the accuracy, on a grid of a line or plane of weights.

    Forward passes in eval mode without gradients. The model is left as it was (weights and buffers
    bit for bit, flags, the global random state), also after an exception or Ctrl-C. A random state
    that a pass draws from is not the same at each point, so use a loss without dropout or sampling;
    a loader that shuffles does so in the same way for all points, and other samples are refused.

    The origin is on the grid, and of a frame through checkpoints each of these. Points are taken
    coarse to fine: every stretch of time gives a whole, coarser picture. A loss that is not finite
    is kept as NaN and counted.

    Within a process group of several (`torchrun`), each process evaluates its share of the points,
    and all return the whole slice; model, frame and batches must be the same in all.

    Cost: points (or points squared) forward passes over all batches; with "recalibrate" twice that.
    Two weight-sized tensors and one for each axis.

    Args:
        model: The model, at the origin of a frame `around` it. For a frame `through` checkpoints
            only its architecture counts.
        objective: `(model, batch) -> scalar`, the mean over the batch's samples. Accuracy is known
            for `Supervised` with classes as targets.
        batches: Batches that can be gone through again and again. In a list they are not read
            again, and fewer, larger ones are faster.
        frame: Where to look; see `around` and `through`.
        points: Along each axis.
        radius: The axes go from -radius to radius; through checkpoints, which are at 0 and 1, from
            1/2 - radius to 1/2 + radius, and at least from 0 to 1.
        spans: The ends of each axis, instead of `radius`; 0 is always on the grid.
        batchnorm: Which statistics BatchNorm uses: "running", the stored ones (between checkpoints
            interpolated); "batch", each batch's own; "recalibrate", the mean over the batches at
            each point.
        at_once: How many points run vectorized at once. More saves launches where kernels are
            small on a GPU, multiplies the memory, and gains little on a CPU. The model must be
            fit for `torch.func.vmap`.
        max_seconds: About how long it may take. The cost of all points is said before it is spent.
        earlier: A slice of the same weights, frame and samples that stopped early, to go on with.
        path: Coordinates to draw in the picture: where the run came by.
        keep_interrupted: Whether Ctrl-C returns what there is.
        progress: Called with ("landscape", points done, points).
        say: Told the cost where it is more than the budget or a minute. Default: a warning.

    Raises:
        InputError: bad points, radius, spans, budget or batches; a frame of another model.
        AnotherSlice: `earlier` is a slice of something else.
    """
    _check(batchnorm, at_once, max_seconds)
    gram = lengths(frame)
    axes = _axes(frame, gram, points, radius, spans)
    shape = tuple(len(axis.values) for axis in axes)
    first = next(iter(moving_tensors(model).values()), None)
    if first is None:
        raise InputError("the model has no parameters")
    has_norms = bool(batchnorms(model))
    blank: dict[str, Any] = {
        "axes": axes,
        "cosine": _cosine(gram),
        "centre": frame.centre,
        "corners": frame.corners,
        "batchnorm": batchnorm if has_norms else "",
        "path": path,
    }
    loss, accuracy = np.full(shape, np.nan), np.full(shape, np.nan)
    evaluated = np.zeros(shape, dtype=bool)
    if earlier is not None:
        _check_earlier(earlier, blank)
        loss, accuracy = earlier.loss.copy(), earlier.accuracy.copy()
        evaluated = earlier.evaluated.copy()
    meter = Meter(first.device, first.dtype)
    stopped = "done"
    with (
        torch.no_grad(),
        untouched(model, objective, first.device),
        normalizing(model, batchnorm if has_norms else "running"),
        Mover(model, frame) as mover,
    ):
        evaluator = Evaluator(
            model,
            objective,
            batches,
            mover,
            first.device,
            batchnorm=batchnorm if has_norms else "running",
            at_once=at_once if batchnorm == "running" or not has_norms else 1,
        )
        if earlier is not None:
            _check_same_place(earlier, evaluator)
        processes = sharing()
        clock = _Clock(evaluated.size, int(evaluated.sum()), max_seconds, say or _warn)
        zero = tuple(axis.zero for axis in axes)
        left = (i for i in coarse_to_fine(shape, zero) if not evaluated[i])
        try:
            size = processes.size * evaluator.chunk(None)
            while chunk := list(itertools.islice(left, size)):
                where = [_point(axes, index) for index in chunk]
                scores = processes.scores(evaluator, where)
                for index, (value, right) in zip(chunk, scores, strict=True):
                    finite = math.isfinite(value)
                    # Where all logits are NaN, argmax still names a class.
                    loss[index], accuracy[index] = (value, right) if finite else (np.nan, np.nan)
                    evaluated[index] = True
                done = int(evaluated.sum())
                if progress is not None:
                    progress("landscape", done, evaluated.size)
                each, spent = processes.agreed(clock.look(done))
                size = processes.size * evaluator.chunk(each * processes.size)
                if spent and done < evaluated.size:
                    stopped = "max_seconds"
                    break
        except KeyboardInterrupt:
            if not keep_interrupted or not evaluated.any():
                raise
            stopped = "interrupted"
    cost = meter.read()
    if earlier is not None:
        cost["seconds"] += earlier.seconds
    return Landscape(
        **blank,
        loss=loss,
        accuracy=accuracy,
        evaluated=evaluated,
        samples=evaluator.samples or (earlier.samples if earlier else 0),
        stopped=stopped,
        method="forward passes on a grid",
        **cost,
    )


class _Clock:
    """Says the cost once it is known, and when the budget is spent."""

    def __init__(
        self, total: int, before: int, max_seconds: float | None, say: Callable[[str], None]
    ) -> None:
        self._total, self._before = total, before
        self._most, self._say = max_seconds, say
        self._start = time.perf_counter()
        self._said = False

    def look(self, done: int) -> tuple[float, bool]:
        """Seconds a point, and whether the budget is spent."""
        seconds = time.perf_counter() - self._start
        made = done - self._before
        each = seconds / made
        if not self._said and (made >= TIMED or seconds > 1):
            self._said = True
            self._estimate(each)
        return each, self._most is not None and seconds >= self._most

    def _estimate(self, each: float) -> None:
        whole = each * (self._total - self._before)
        if self._most is None and whole > LONG:
            self._say(f"{self._total - self._before} points at {each:.2g} s take {whole:.0f} s")
        if self._most is not None and whole > self._most:
            some = max(1, int(self._most / each))
            self._say(
                f"{self._total - self._before} points at {each:.2g} s each take about {whole:.2g} "
                f"s, more than max_seconds = {self._most:g}: about {some} will be evaluated, the "
                "coarse grid first; give fewer points, fewer samples or more time for a finer one"
            )


def _check(batchnorm: str, at_once: int, max_seconds: float | None) -> None:
    if batchnorm not in BATCHNORM:
        raise unknown("way of BatchNorm", batchnorm, BATCHNORM)
    if at_once < 1:
        raise InputError(f"at_once is {at_once}: give at least 1")
    if max_seconds is not None and not max_seconds > 0:
        raise InputError(f"max_seconds is {max_seconds}: give a number above 0, such as 60")


def _axes(
    frame: Frame,
    gram: tuple[tuple[float, ...], ...],
    points: int,
    radius: float,
    spans: tuple[Span, ...] | None,
) -> tuple[Axis, ...]:
    if not 0 < radius < float("inf"):
        raise InputError(f"radius is {radius}: give a finite number above 0, such as 1")
    between = frame.corner is not None
    if spans is None:
        ends = (min(0.0, 0.5 - radius), max(1.0, 0.5 + radius)) if between else (-radius, radius)
        spans = (ends,) * len(frame.directions)
    if len(spans) != len(frame.directions):
        raise InputError(
            f"there are {len(frame.directions)} axes and {len(spans)} spans: give as many"
        )
    return tuple(
        Axis(
            d.name,
            axis_values(low, high, points, unit=between),
            gram[i][i] ** 0.5,
            d.normalization,
            d.biases,
        )
        for i, (d, (low, high)) in enumerate(zip(frame.directions, spans, strict=True))
    )


def _cosine(gram: tuple[tuple[float, ...], ...]) -> float:
    return gram[0][1] / (gram[0][0] * gram[1][1]) ** 0.5 if len(gram) == 2 else 0.0


def _check_earlier(earlier: Landscape, now: dict[str, Any]) -> None:
    """Refuse to go on with a slice of something else, as far as that shows without evaluating."""
    for what in ("centre", "corners", "batchnorm"):
        if getattr(earlier, what) != now[what]:
            raise AnotherSlice(f"its {what} is {getattr(earlier, what)!r}, now {now[what]!r}")
    if len(earlier.axes) != len(now["axes"]):
        raise AnotherSlice(f"it has {len(earlier.axes)} axes, now {len(now['axes'])}")
    for ours, theirs in zip(now["axes"], earlier.axes, strict=True):
        same = np.isclose(ours.length, theirs.length, rtol=1e-4)
        named = (ours.name, ours.normalization, ours.biases)
        if named != (theirs.name, theirs.normalization, theirs.biases) or not same:
            raise AnotherSlice(f"it goes along {theirs.name!r}, or further, now {ours.name!r}")
        if len(ours.values) != len(theirs.values) or not np.allclose(ours.values, theirs.values):
            raise AnotherSlice("it has other points or another radius")
    if not np.isclose(earlier.cosine, now["cosine"], atol=1e-3):
        raise AnotherSlice("its axes have another angle")


def _check_same_place(earlier: Landscape, evaluator: Evaluator) -> None:
    """Evaluate two points again: weights, data or directions that changed show there."""
    seen = np.argwhere(earlier.evaluated & np.isfinite(earlier.loss))
    for index in map(tuple, (seen[:1].tolist() + seen[-1:].tolist())):
        before = float(earlier.loss[index])
        again = evaluator.scores([_point(earlier.axes, index)])[0, 0].item()
        if not np.isclose(again, before, rtol=1e-3, atol=1e-6):
            raise AnotherSlice(f"its loss at a point is {before:.6g}, and now {again:.6g}")


def _point(axes: tuple[Axis, ...], index: tuple[int, ...]) -> tuple[float, ...]:
    return tuple(axis.values[i] for axis, i in zip(axes, index, strict=True))


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=3)
