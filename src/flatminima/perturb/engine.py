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

from collections.abc import Callable, Generator, Iterator
from contextlib import closing, nullcontext
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flatminima.errors import InputError
from flatminima.perturb.buffers import Buffers
from flatminima.perturb.cards import foreign_option
from flatminima.perturb.options import whole
from flatminima.perturb.plans import Pass, Turn, Watcher
from flatminima.perturb.randomness import Replay
from flatminima.perturb.ranks import rank
from flatminima.perturb.resolution import HALF, Resolution
from flatminima.perturb.schedules import Schedule
from flatminima.perturb.shares import WHOLE, bounds, cut, fraction, sample_count
from flatminima.perturb.weights import Gradients, Weights
from flatminima.perturb.wrapper import Wrapper

NOT_RUN = """step() needs the gradients of this step's passes first. Either

    for _ in optimizer.passes():
        loss_fn(model(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()

or optimizer.step(closure), where closure() zeroes the gradients, runs forward and backward, and \
returns the loss."""

LOST = """.grad was emptied or replaced while passes ran, so the passes before are lost from it: \
inside the loop call optimizer.zero_grad() or none, and let backward() add to .grad"""


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
        scaler: The `GradScaler` in use, if there is one. Only methods to which the size of the
            gradient matters need it (USAM, RSAM, Friendly SAM): gradients carry its scale until
            after the passes.

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
        **foreign: Any,
    ) -> None:
        for option in foreign:
            raise foreign_option(type(self), option)
        super().__init__(
            base, strength=strength, schedule=schedule, seed=seed, model=model, scaler=scaler
        )
        self.interval = whole("interval", interval)
        self.share_masks = share_masks
        self._micro_batches = 0
        self._samples: int | None = None
        self._weights: Weights | None = None
        self._gradients: Gradients | None = None
        self._buffers: Buffers | None = None
        self._current: Pass | None = None
        self._position = (0, 1)
        self._broken_off = False
        self._isolated = False
        self._resolution_checked = False
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
        content: Any = batch[0] if len(batch) == 1 else batch
        lengths = {len(part) for part in batch if isinstance(part, Tensor) and part.dim()}
        if len(lengths) > 1:
            raise InputError(
                f"passes() was given tensors of {sorted(lengths)} samples: cut them alike"
            )
        samples = sample_count(content) if batch else None
        self._go_home()
        for current in self._run(samples, isolate=False):
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
                the loss; called once for each pass. Not needed after `passes()`.

        Returns:
            With a closure its loss at W where a pass ran there, else the passes' weighted mean.

        Raises:
            RuntimeError: without a closure when no passes were run, or when they were broken off.
            InputError: a closure that returns no scalar, or that this method cannot use.
        """
        self._go_home()
        loss = None
        if closure is not None:
            loss = self._run_closure(closure)
        elif self._broken_off:
            raise RuntimeError(
                "step() after passes that were broken off: the gradient is not whole. Call "
                "zero_grad() and run the passes again."
            )
        elif self._micro_batches == 0:
            raise RuntimeError(NOT_RUN)
        self.check_step(self._micro_batches, self._samples)
        self.base.step()
        if self._staged is not None:
            self._memory, self._staged = self._staged, None
        self._steps += 1
        self._micro_batches = 0
        if self.watcher is not None:
            self.watcher.stepped()
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
        if self._gradients is None:
            self.base.zero_grad(set_to_none)
            self._micro_batches = 0
            self._broken_off = False
            self._staged = None
        elif self._gradients.grown() and not self._isolated:
            raise RuntimeError(LOST)
        elif self._position[0] == 0:
            self._gradients.forget()
            if self.watcher is not None:
                self.watcher.emptied()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue exactly where the optimizer of that state stood; see `Wrapper`."""
        self._go_home()
        super().load_state_dict(state_dict)
        self._micro_batches = 0

    @property
    def current_pass(self) -> Pass | None:
        """The pass that is running, None between steps."""
        return self._current

    @property
    def is_last_pass(self) -> bool:
        """Whether the running pass is its step's last: the one after which ranks must agree."""
        index, count = self._position
        return index == count - 1

    @property
    def must_synchronize(self) -> bool:
        """Whether processes must average their gradients in the running pass.

        They do in the last pass of every method, and in earlier ones whose gradient ends up in what
        counts. Put the other passes under `DistributedDataParallel.no_sync()`.
        """
        return self.is_last_pass or (self._current is not None and self._current.sync)

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

    def _run(self, samples: int | None, *, isolate: bool) -> Generator[Pass, None, None]:
        """Run the plan: the one place where a step happens.

        Args:
            samples: Samples of the batch to cut, or None.
            isolate: Whether each pass finds `.grad` empty and may empty it, as closures do.
        """
        parameters = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
        if not self._broken_off and all(parameter.grad is None for parameter in parameters):
            # A new step, also where a skipped one's gradients were dropped behind our back.
            self._micro_batches, self._staged = 0, None
        plan = self._plan(self._steps, samples)
        draft = self._new_draft()
        weights = self._weights = Weights(self._slots(draft), self._unchecked_resolution())
        gradients = self._gradients = Gradients(parameters)
        buffers = self._buffers = Buffers(self.model)
        replay = Replay(parameter.device for parameter in parameters)
        self._samples, self._isolated, finished = samples, isolate, False
        if self.watcher is not None:
            self.watcher.begin(self._micro_batches)
        try:
            # One pass at W leaves the buffers as plain training does.
            with buffers.watch() if len(plan) > 1 or plan[0].move else nullcontext():
                for index, current in enumerate(plan):
                    part = fraction(current.share, samples)
                    weight = current.weight * part
                    if current.move is not None:
                        current.move(weights)
                    if weights.resolution is not None:
                        weights.resolution.check(self.strength_name)
                    gradients.put_back(add=False)
                    if weight:
                        gradients.count(weight)
                    alone = isolate or not weight or current.after is not None
                    if alone:
                        gradients.take()
                    gradients.look()
                    buffers.start_pass()
                    if self.share_masks:
                        replay.start(current.share)
                    self._current, self._position = current, (index, len(plan))
                    if self.watcher is not None:
                        self.watcher.start(current, weights, weight)
                    yield current
                    if self._weights is not weights:
                        raise RuntimeError("these passes were ended by step() or by other passes")
                    if index and not alone and not gradients.kept():
                        raise RuntimeError(LOST)
                    if self.watcher is not None:
                        self.watcher.end(weights, weight)
                    buffers.end_pass(weight, part if not weights.away else None)
                    if current.after is not None:
                        current.after(weights)
                    if alone and weight:
                        gradients.put_back(add=True)
            gradients.put_back(add=False)
            gradients.settle()
            buffers.finish()
            self._resolution_checked |= weights.resolution is not None
            if self._micro_batches == 0:
                self._broken_off = False
            self._micro_batches += 1
            self._staged = draft
            finished = True
        finally:
            if self._weights is weights:
                self._go_home(finished)

    def _run_closure(self, closure: Callable[[], Any]) -> Any:
        """Call the closure once for each pass; the loss as `step` returns it."""
        self.check_closure()
        self.zero_grad()
        at_home: Any = None
        mean: Any = 0.0
        with closing(self._run(None, isolate=True)) as passes:
            for current in passes:
                with torch.enable_grad():
                    loss = closure()
                _check_loss(loss)
                loss = loss.detach() if isinstance(loss, Tensor) else loss
                if at_home is None and self._weights is not None and not self._weights.away:
                    at_home = loss
                mean = mean + current.weight * loss
        return mean if at_home is None else at_home

    def _plan(self, step: int, samples: int | None) -> list[Pass]:
        """The method's plan; where no weight would move, one plain pass."""
        if step % self.interval or not self._moves():
            return [Pass()]
        own_rank = 0 if self.sharded else rank()
        return self.plan(Turn(step // self.interval, self._micro_batches, own_rank, samples))

    def _unchecked_resolution(self) -> Resolution | None:
        """Looks at the first step at full strength, if there are 16-bit weights."""
        if self._resolution_checked or self.schedule(self._steps) < 1:
            return None
        halves = any(p.dtype in HALF for group in self.param_groups for p in group["params"])
        return Resolution() if halves else None

    def _options(self) -> dict[str, Any]:
        """The method's own options, and those of the engine that decide what a step is."""
        shared = {"interval": self.interval, "share_masks": self.share_masks}
        return {**super()._options(), **shared}

    def _go_home(self, finished: bool = False) -> None:
        """End the passes if there are any: restore the weights, and if unfinished drop the rest."""
        if self._weights is not None and self._gradients is not None and self._buffers is not None:
            self._weights.restore()
            if not finished:
                self._gradients.forget()
                self._gradients.clear()
                self._buffers.rewind()
                self._broken_off = True
        self._weights = self._gradients = self._buffers = self._current = None


def _check_loss(loss: Any) -> None:
    if loss is None:
        raise InputError("the closure returned None: end it with `return loss`")
    if isinstance(loss, Tensor) and loss.numel() != 1:
        raise InputError(
            f"the closure returned a tensor of shape {tuple(loss.shape)}: return the scalar loss, "
            "for instance loss.mean()"
        )
    if not isinstance(loss, (int, float, Tensor)):
        raise InputError(f"the closure returned {type(loss).__name__}: return the scalar loss")
