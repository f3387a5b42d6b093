"""Where a step's time goes, and how much memory it takes at its peak."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from step_contenders import Gradient, Step
from step_models import Batch, Task

from flatminima.perturb import weights
from flatminima.perturb.buffers import Buffers
from flatminima.perturb.gradients import Gradients
from flatminima.perturb.randomness import Replay
from flatminima.perturb.sam import SAM
from flatminima.perturb.wrapper import Wrapper

PARTS = {
    "noise": [(weights, "add_all"), (Wrapper, "_draw")],
    "direction": [(SAM, "ascent"), (SAM, "climb")],
    "copy of W": [(weights.Weights, "_start")],
    "moves": [(weights.Weights, name) for name in ("displace", "shake", "reflect")],
    "restore": [(weights.Weights, "restore")],
    "buffers": [(Buffers, "start_pass"), (Buffers, "end_pass"), (Buffers, "finish")],
    "gradients' books": [(Gradients, name) for name in ("count", "settle", "look", "put_back")],
    "masks": [(Replay, "start")],
    "base step": [],
    "passes": [(Gradient, "__call__")],
}
"""Which functions are which part of a step. What is left is the engine's own bookkeeping."""


class _Clock:
    """Charges time to the innermost part that runs."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self._running = ["bookkeeping"]
        self._since = time.perf_counter()

    def _charge(self) -> None:
        now = time.perf_counter()
        part = self._running[-1]
        self.spent[part] = self.spent.get(part, 0.0) + now - self._since
        self._since = now

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time charged to a part; of a generator, the time that it runs."""

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            with self._on(part):
                found = function(*args, **kwargs)
            return self._each(part, found) if isinstance(found, Iterator) else found

        return run

    def _each(self, part: str, found: Iterator[Any]) -> Iterator[Any]:
        while True:
            with self._on(part):
                try:
                    value = next(found)
                except StopIteration:
                    return
            yield value

    @contextmanager
    def _on(self, part: str) -> Iterator[None]:
        self._charge()
        self._running.append(part)
        try:
            yield
        finally:
            self._charge()
            self._running.pop()

    def restart(self) -> dict[str, float]:
        """What was charged since the last call."""
        self._charge()
        spent, self.spent = self.spent, {}
        return spent


def anatomy(
    build: Callable[[Gradient, Task], Step],
    gradient: Gradient,
    task: Task,
    batch: Batch,
    rounds: int,
) -> dict[str, float]:
    """Median milliseconds of each part of a method's step.

    Args:
        build: Makes the step.
        gradient: Of the network.
        task: Its base optimizer.
        batch: A whole batch.
        rounds: Steps.
    """
    clock = _Clock()
    with ExitStack() as patches:
        for part, functions in PARTS.items():
            for owner, name in functions:
                timed = clock.timed(part, getattr(owner, name))
                patches.enter_context(mock.patch.object(owner, name, timed))
        timed = clock.timed("base step", task.base.step)
        patches.enter_context(mock.patch.object(task.base, "step", timed))
        step = build(gradient, task)
        step(batch)
        found = []
        for _ in range(rounds):
            clock.restart()
            step(batch)
            found.append(clock.restart())
    parts = [*PARTS, "bookkeeping"]
    medians = {p: 1e3 * statistics.median(spent.get(p, 0.0) for spent in found) for p in parts}
    return {part: round(ms, 3) for part, ms in medians.items() if ms}


def peak_bytes(run: Callable[[], None], device: torch.device) -> int:
    """The most bytes of tensors that lived at once while a function ran, above those before it.

    On a CPU every allocation is read from torch's profiler; scratch memory that the kernels of
    oneDNN and MKL take for themselves is not seen.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        run()
    alive = most = 0
    results = profile.profiler.kineto_results  # type: ignore[union-attr]
    events = [event for event in results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        most = max(most, alive)
    return most
