"""The pass engine: an optimizer that decides at which weights gradients are taken.

A step is a few passes, and a pass is: move the weights there, count its gradient this much. A
method says which passes it wants (`Perturbed.plan`); everything that is hard about running them
lives here, once, for all methods:

- the weights return to W bit for bit, also when the user's code raises;
- gradients gather in `.grad` with their weights, over passes and micro-batches;
- buffers come out as after one forward pass at W (`buffers.py`);
- passes over the same samples draw the same dropout masks (`randomness.py`);
- noise is addressed, not consumed (`noise.py`), so a resumed run repeats nothing and skips nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flatminima.errors import InputError
from flatminima.perturb.buffers import Buffers
from flatminima.perturb.cards import foreign_option
from flatminima.perturb.closures import (
    TWICE,
    UNKNOWN_SCALE,
    Leftover,
    call_in_each,
    check_unscaled,
    driven_by_scaler,
    unscaled,
)
from flatminima.perturb.gradients import Gradients, clip
from flatminima.perturb.options import between, truth, whole
from flatminima.perturb.plans import Pass, Turn, Watcher
from flatminima.perturb.randomness import Replay
from flatminima.perturb.ranks import averaging, rank
from flatminima.perturb.resolution import HALF, Resolution
from flatminima.perturb.running import Running
from flatminima.perturb.schedules import Schedule
from flatminima.perturb.shares import WHOLE, bounds, cut, sample_count
from flatminima.perturb.weights import Slot, Spare, Weights
from flatminima.perturb.wrapper import Wrapper

NOT_RUN = """step() needs the gradients of this step's passes first. Either

    for _ in optimizer.passes():
        loss_fn(model(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()

or optimizer.step(closure), where closure() zeroes the gradients, runs forward and backward, and \
returns the loss. Where a trainer calls step() for you: docs/how-to shows what transformers, \
Lightning (precision="16-mixed" needs manual optimization) and accelerate need."""

IMITATED = """this {} imitates the optimizer it wraps, and passes() would run beside that: call \
passes() of the optimizer itself (in Lightning: self.optimizers().optimizer.passes(x, y))"""


class Perturbed(Wrapper):
    """A base optimizer whose gradients are taken at moved weights.

    It is an ordinary optimizer to everything around it (see `Wrapper`). A step is taken by

        for _ in optimizer.passes():
            loss_fn(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()

    or by `optimizer.step(closure)` with torch.optim's closure (zero the gradients, forward,
    backward, return the loss). To accumulate over micro-batches, loop over them inside the passes
    (every method then sees the whole batch), or call `passes()` once per micro-batch before
    `step()` (each method then sees them one by one).

    Subclasses give `card`, `strength_name` and `plan`.

    Args:
        base: Any torch optimizer that needs no closure of its own.
        strength: Sigma or rho of the groups that do not carry their own under that name; 0 leaves
            a group's weights where they are.
        schedule: Factor on all strengths at a step; see `schedules`.
        interval: Perturb only each n-th step, the first among them; the others are plain.
        seed: Names the noise; default: torch's initial seed, which `torch.manual_seed` sets.
        share_masks: Whether passes over the same samples draw the same dropout masks.
        model: The module, only where forward hooks cannot find its buffers (they are found as
            modules are called) or to address noise by parameter names.
        scaler: The `GradScaler` in use, if there is one. Methods to which the size of the gradient
            matters need it (USAM, RSAM, Friendly SAM, bSAM), since gradients carry its scale until
            after the passes; and `step(closure)`, which then unscales the step's gradient once and
            skips a step in which any pass overflowed.
        max_grad_norm: Clips the step's gradient, passes averaged and unscaled, to this norm over
            all parameters, before the base optimizer sees it; None does not.

    Raises:
        InputError: a strength that is negative or not finite, nothing to train, a base optimizer
            that cannot be wrapped, or an option that the method does not have.
    """

    def __init__(
        self,
        base: Optimizer,
        *,
        strength: float,
        schedule: Schedule | None = None,
        interval: int = 1,
        seed: int | None = None,
        share_masks: bool = True,
        model: nn.Module | None = None,
        scaler: torch.amp.GradScaler | None = None,
        max_grad_norm: float | None = None,
        **foreign: Any,
    ) -> None:
        for option in foreign:
            raise foreign_option(type(self), option)
        super().__init__(
            base, strength=strength, schedule=schedule, seed=seed, model=model, scaler=scaler
        )
        self.interval = whole("interval", interval)
        self.share_masks = truth("share_masks", share_masks)
        self.max_grad_norm = None
        if max_grad_norm is not None:
            self.max_grad_norm = between("max_grad_norm", max_grad_norm, 1e-30, math.inf)
        self._micro_batches = 0
        self._samples: int | None = None
        self._running: Running | None = None
        self._broken_off = False
        self._spare = Spare()
        self._resolution_checked = False
        self._emptied = True
        self.watcher: Watcher | None = None

    def plan(self, turn: Turn) -> list[Pass]:
        """The passes of a step whose strength is not 0 everywhere.

        Args:
            turn: The step, the micro-batch and the rank.
        """
        raise NotImplementedError

    @overload
    def passes(self) -> Iterator[Pass]: ...
    @overload
    def passes(self, *batch: Any) -> Iterator[Any]: ...
    def passes(self, *batch: Any) -> Iterator[Any]:
        """Iterate over the passes of a step: moves the weights, and takes them home at the end.

        The body of the loop runs forward and backward once (or once for each of several
        micro-batches), as for plain training: no scaling of the loss, no zeroing of gradients.
        `.grad` is right, in the units of plain training, once the loop has ended.

        Args:
            *batch: Optionally what the loop's body works on: tensors, or mappings, tuples and lists
                of them, with samples in the first dimension. Then each pass yields the part it
                wants (the whole, for most methods; halves for one-pass NSO) in the same structure,
                a tuple if there were several arguments. The loss must be a mean over samples.

        Yields:
            The part of the batch, or the `Pass` itself where no batch was given.
        """
        if "base" not in vars(self):
            raise InputError(IMITATED.format(type(self).__name__))
        content: Any = batch[0] if len(batch) == 1 else batch
        lengths = {len(part) for part in batch if isinstance(part, Tensor) and part.dim()}
        if len(lengths) > 1:
            raise InputError(
                f"passes() was given tensors of {sorted(lengths)} samples: cut them alike"
            )
        samples = sample_count(content) if batch else None
        self._go_home()
        for current in self._run(samples, isolated=False):
            if samples is None:
                yield current
            elif current.share == WHOLE:
                yield content
            else:
                yield cut(content, *bounds(current.share, samples), samples)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take the base optimizer's step along the gradient that the passes gathered.

        Args:
            closure: Zeroes the gradients, runs forward and backward on the whole batch and returns
                the loss; called once for each pass. Not needed after `passes()`; there it is called
                once, for what trainers do in it, and must return None.

        Returns:
            With a closure its loss at W where a pass ran there, else the passes' weighted mean.

        Raises:
            RuntimeError: without a closure when no passes were run, or when they were broken off.
            InputError: a closure that returns no scalar, or that this method cannot use.
        """
        self._go_home()
        loss, scaler = None, None
        if closure is not None and self._micro_batches:
            if closure() is not None:
                raise InputError(TWICE)
        elif closure is not None:
            loss, scaler = self._run_closure(closure), self.scaler
        elif self._broken_off:
            raise RuntimeError(
                "step() after passes that were broken off: the gradient is not whole. Call "
                "zero_grad() and run the passes again."
            )
        elif self._micro_batches == 0:
            raise RuntimeError(NOT_RUN)
        elif self.needs_scaler and self.scaler is None and driven_by_scaler():
            raise InputError(UNKNOWN_SCALE.format(type(self).__name__))
        self.check_step(self._micro_batches, self._samples)
        if scaler is None or unscaled(scaler, self.base):
            if self.max_grad_norm is not None:
                clip([p.grad for p in self._trainable() if p.grad is not None], self.max_grad_norm)
            self.base.step()
            if self._staged is not None:
                self._memory = self._staged
            self._steps += 1
            if self.watcher is not None:
                self.watcher.stepped()
        self._staged = None
        self._micro_batches = 0
        self._emptied = False
        return loss

    def check_step(self, micro_batches: int, samples: int | None) -> None:
        """Look at a step about to be taken; methods override it to warn.

        Args:
            micro_batches: How many micro-batches its gradient was gathered from.
            samples: Samples in the last of them, where `passes` was given it to cut; else None.
        """

    def check_closure(self) -> None:
        """Refuse `step(closure)` where the method cannot work with one; methods override it."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Zero the gradients and start the step anew.

        While passes run it only drops what was there before them: what the passes gather is theirs.
        """
        if self._running is not None:
            self._running.zero_grad()
            return
        self.base.zero_grad(set_to_none)
        self._micro_batches = 0
        self._broken_off = False
        self._staged = None
        self._emptied = True

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue exactly where the optimizer of that state stood; see `Wrapper`."""
        self._go_home()
        super().load_state_dict(state_dict)
        self._micro_batches = 0

    @property
    def current_pass(self) -> Pass | None:
        """The pass that is running, None between steps."""
        return None if self._running is None else self._running.current

    @property
    def is_last_pass(self) -> bool:
        """Whether the running pass is its step's last: the one after which ranks must agree."""
        return self._running is None or self._running.is_last

    @property
    def must_synchronize(self) -> bool:
        """Whether processes must average their gradients in the running pass.

        They do in the last pass of every method, and in earlier ones whose gradient ends up in what
        counts. Put the other passes under `DistributedDataParallel.no_sync()`, or let
        `synchronizing` do it.
        """
        return self.is_last_pass or (self._running is not None and self._running.current.sync)

    @contextmanager
    def synchronizing(self, model: nn.Module) -> Iterator[None]:
        """Let data-parallel processes average the gradients of a pass where they must, only there.

            for x_, y_ in optimizer.passes(x, y):
                with optimizer.synchronizing(model):
                    loss_fn(model(x_), y_).backward()

        Within a `no_sync()` of your own, for micro-batches, gradients that wait in `.grad` go on
        waiting; but those that a method sets aside are averaged, since they would be missed later.

        Args:
            model: A `DistributedDataParallel`, with the forward inside; another is left alone.
        """
        current = self.current_pass
        aside = current is not None and (
            current.sync or (current.after is not None and current.weight != 0)
        )
        with averaging(model, always=aside, never=not self.must_synchronize):
            yield

    @property
    def by_micro_batch(self) -> bool:
        """Whether a loop must call `passes()` once for each micro-batch, not loop inside them."""
        return False

    @property
    def period(self) -> int:
        """Steps after which the plans repeat."""
        return self.interval

    def gradients_per_step(self, samples: int = 2) -> float:
        """What a step costs on average, in gradients of the whole batch.

        Args:
            samples: Samples in a batch.
        """
        plans = [self._plan(step, samples) for step in range(self.period)]
        return sum(p.backward / p.share[1] for plan in plans for p in plan) / self.period

    def _run(self, samples: int | None, *, isolated: bool) -> Generator[Pass, None, None]:
        """Run the plan, and keep the books: a step's micro-batches, and its draft of memory."""
        parameters = self._trainable()
        if not self._broken_off and all(parameter.grad is None for parameter in parameters):
            # A new step, also where a skipped one's gradients were dropped behind our back.
            self._micro_batches, self._staged = 0, None
        draft, resolution = self._new_draft(), self._unchecked_resolution()
        watcher = self.watcher
        if watcher is not None and not watcher.begin(self._micro_batches):
            watcher = None
        running = self._running = Running(
            self._plan(self._steps, samples),
            weights=self._weights(self._slots(draft), resolution),
            gradients=Gradients(parameters),
            buffers=Buffers(self.model),
            replay=Replay(p.device for p in parameters) if self.share_masks else None,
            samples=samples,
            isolated=isolated,
            watcher=watcher,
        )
        self._samples, finished = samples, False
        try:
            with closing(running.passes()) as passes:
                for current in passes:
                    yield current
                    if self._running is not running:
                        raise RuntimeError("these passes were ended by step() or by other passes")
            self._resolution_checked |= resolution is not None and resolution.final
            if self._micro_batches == 0:
                self._broken_off = False
            self._micro_batches += 1
            self._staged = draft
            finished = True
        finally:
            if self._running is running:
                self._go_home(finished)

    def _run_closure(self, closure: Callable[[], Any]) -> Any:
        """Call the closure once for each pass; the loss as `step` returns it."""
        self.check_closure()
        check_unscaled()
        # What stands in `.grad` after a step is spent; what is there after zero_grad() is new.
        leftover = Leftover(self._trainable()) if self._emptied else None
        self.zero_grad()
        return call_in_each(self._run(None, isolated=True), closure, leftover, self.watcher)

    def _trainable(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"] if p.requires_grad]

    def _plan(self, step: int, samples: int | None) -> list[Pass]:
        """The method's plan; where no weight would move, one plain pass."""
        if step % self.interval or not self._moves():
            return [Pass()]
        own_rank = 0 if self.sharded else rank()
        return self.plan(Turn(step // self.interval, self._micro_batches, own_rank, samples))

    def _weights(self, slots: list[Slot], resolution: Resolution | None) -> Weights:
        """What moves the weights, and how they come home."""
        return Weights(slots, resolution, self._spare)

    def _unchecked_resolution(self) -> Resolution | None:
        """Looks at the steps up to the first at full strength, if there are 16-bit weights."""
        if self._resolution_checked:
            return None
        halves = any(p.dtype in HALF for group in self.param_groups for p in group["params"])
        if not halves:
            return None
        return Resolution(
            self.strength_name,
            each=self.card.strength == "sigma",
            final=self.schedule(self._steps) >= 1,
        )

    def _options(self) -> dict[str, Any]:
        """The method's own options, and those of the engine that decide what a step is."""
        shared = {"interval": self.interval, "share_masks": self.share_masks}
        return {**super()._options(), **shared}

    def _go_home(self, finished: bool = False) -> None:
        """End the passes if there are any: restore the weights, and if unfinished drop the rest."""
        if self._running is not None:
            self._running.go_home(finished=finished)
            self._broken_off |= not finished
        self._running = None
