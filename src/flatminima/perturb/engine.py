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
from contextlib import closing, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flatminima.errors import InputError
from flatminima.perturb.buffers import Buffers
from flatminima.perturb.cards import Card
from flatminima.perturb.noise import Stream, tensor_ids
from flatminima.perturb.randomness import Replay
from flatminima.perturb.schedules import Schedule, constant, describe
from flatminima.perturb.shares import WHOLE, Share, bounds, cut, sample_count
from flatminima.perturb.weights import Gradients, Slot, Weights

Move = Callable[[Weights], None]


@dataclass(frozen=True)
class Pass:
    """One forward and backward of a step.

    Attributes:
        weight: How much its gradient counts. The weights of a step add up to 1 per sample; 0: the
            gradient is only looked at by the next pass's move (SAM's first pass).
        move: Moves the weights from where the pass before left them. None: the pass runs at W, and
            only the first passes of a plan may.
        share: The part of the batch that the pass works on.
        backward: False where the forward pass alone is wanted (it sets BatchNorm's statistics); a
            backward does no harm, its gradient is dropped.
    """

    weight: float = 1.0
    move: Move | None = None
    share: Share = WHOLE
    backward: bool = True


@dataclass(frozen=True)
class Turn:
    """What a plan may depend on.

    Attributes:
        step: Steps taken so far.
        micro_batch: Calls of `passes()` since the last step.
        rank: This process's rank, 0 without torch.distributed.
        samples: Samples in the batch, where `passes(batch)` was given it to cut; else None.
    """

    step: int
    micro_batch: int
    rank: int
    samples: int | None


NOT_RUN = """step() needs the gradients of this step's passes first. Either

    for _ in optimizer.passes():
        loss_fn(model(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()

or optimizer.step(closure), where closure() zeroes the gradients, runs forward and backward, and \
returns the loss."""

LOST = """.grad was emptied or replaced while passes ran, so the passes before are lost from it: \
inside the loop call optimizer.zero_grad() or none, and let backward() add to .grad"""


class Perturbed(Optimizer):
    """A base optimizer whose gradients are taken at moved weights.

    It is an ordinary optimizer to everything around it: `param_groups`, `state` and `defaults` are
    those of the base optimizer, the same objects, so learning-rate schedulers, `add_param_group`,
    clipping and `GradScaler` need nothing special. A step is taken by

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
        seed: Names the noise; default: torch's initial seed, which `torch.manual_seed` sets.
        share_masks: Whether passes over the same samples draw the same dropout masks.
        model: The module, only where forward hooks cannot find its buffers (they are found as
            modules are called) or to address noise by parameter names.

    Raises:
        InputError: a strength that is negative or not finite, nothing to train, or a base optimizer
            that cannot be wrapped.
    """

    card: ClassVar[Card]
    strength_name: ClassVar[str]

    def __init__(
        self,
        base: Optimizer,
        *,
        strength: float,
        schedule: Schedule | None = None,
        seed: int | None = None,
        share_masks: bool = True,
        model: nn.Module | None = None,
    ) -> None:
        _check_base(base)
        self.base = base
        super().__setstate__({})  # torch's hooks, without making groups of our own
        if schedule is not None and not callable(schedule):
            raise InputError(
                f"schedule must be a callable step -> factor, not {schedule!r}: "
                "see flatminima.perturb.schedules"
            )
        self.schedule = schedule or constant()
        self.share_masks = share_masks
        self.model = model
        self._default_strength = strength
        self._stream = Stream(torch.initial_seed() if seed is None else seed)
        self._steps = 0
        self._micro_batches = 0
        self._samples: int | None = None
        self._weights: Weights | None = None
        self._gradients: Gradients | None = None
        self._buffers: Buffers | None = None
        self._current: Pass | None = None
        self._position = (0, 1)
        self._broken_off = False
        for group in self.param_groups:
            self._adopt(group)
        self._tensor_ids = self._name_tensors()

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
        self._steps += 1
        self._micro_batches = 0
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
        elif self._position[0] == 0:
            self._gradients.forget()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base optimizer; it may carry its own sigma or rho."""
        self.base.add_param_group(param_group)
        self._adopt(self.param_groups[-1])
        self._tensor_ids = self._name_tensors()

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state, and under "perturb" the step, schedule and noise stream."""
        state = self.base.state_dict()
        state["perturb"] = {
            "method": self.card.name,
            "step": self._steps,
            "seed": self._stream.seed,
            "schedule": describe(self.schedule),
        }
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue exactly where the optimizer of that state stood.

        A state of the bare base optimizer is taken too: the noise then starts at step 0.

        Raises:
            InputError: the state is of another method or schedule.
        """
        self._go_home()
        own = state_dict.get("perturb")
        if own is not None:
            self._check_state(own)
        strengths = [group[self.strength_name] for group in self.param_groups]
        self.base.load_state_dict({k: v for k, v in state_dict.items() if k != "perturb"})
        for group, strength in zip(self.param_groups, strengths, strict=True):
            group.setdefault(self.strength_name, strength)
            self._adopt(group)
        if own is not None:
            self._steps = own["step"]
            self._stream = Stream(own["seed"])
        self._micro_batches = 0

    @property
    def steps(self) -> int:
        """Steps taken so far."""
        return self._steps

    @property
    def current_pass(self) -> Pass | None:
        """The pass that is running, None between steps."""
        return self._current

    @property
    def is_last_pass(self) -> bool:
        """Whether the running pass is its step's last: the one after which ranks must agree."""
        index, count = self._position
        return index == count - 1

    def gradients_per_step(self, samples: int = 2) -> float:
        """What a step costs, in gradients of the whole batch.

        Args:
            samples: Samples in a batch.
        """
        plan = self._plan(Turn(self._steps, 0, 0, samples))
        return sum(p.backward / p.share[1] for p in plan)

    def strength(self, group: dict[str, Any]) -> float:
        """Sigma or rho of a group at this step, schedule included."""
        own = _checked(self.strength_name, group[self.strength_name])
        factor = self.schedule(self._steps)
        return _checked(f"the schedule's {self.strength_name}", own * factor)

    def _run(self, samples: int | None, *, isolate: bool) -> Generator[Pass, None, None]:
        """Run the plan: the one place where a step happens.

        Args:
            samples: Samples of the batch to cut, or None.
            isolate: Whether each pass finds `.grad` empty and may empty it, as closures do.
        """
        plan = self._plan(Turn(self._steps, self._micro_batches, rank(), samples))
        parameters = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
        weights = self._weights = Weights(self._slots())
        gradients = self._gradients = Gradients(parameters)
        buffers = self._buffers = Buffers(self.model)
        replay = Replay(parameter.device for parameter in parameters)
        self._samples, finished = samples, False
        try:
            # One pass at W leaves the buffers as plain training does.
            with buffers.watch() if len(plan) > 1 or plan[0].move else nullcontext():
                for index, current in enumerate(plan):
                    weight = current.weight * _fraction(current.share, samples)
                    if current.move is not None:
                        current.move(weights)
                    gradients.put_back(add=False)
                    if weight:
                        gradients.count(weight)
                    if isolate or not weight:
                        gradients.take()
                    buffers.start_pass()
                    if self.share_masks:
                        replay.start(current.share)
                    self._current, self._position = current, (index, len(plan))
                    yield current
                    if self._weights is not weights:
                        raise RuntimeError("these passes were ended by step() or by other passes")
                    if index and weight and not isolate and not gradients.kept():
                        raise RuntimeError(LOST)
                    buffers.end_pass(at_home=not weights.away, weight=weight)
                    if isolate and weight:
                        gradients.put_back(add=True)
            gradients.put_back(add=False)
            gradients.settle()
            buffers.finish()
            if self._micro_batches == 0:
                self._broken_off = False
            self._micro_batches += 1
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

    def _plan(self, turn: Turn) -> list[Pass]:
        """The method's plan; where no weight would move, one plain pass."""
        return self.plan(turn) if self._slots() else [Pass()]

    def _slots(self) -> list[Slot]:
        """The parameters that may be moved at this step."""
        ids = iter(self._tensor_ids)
        return [
            slot
            for group in self.param_groups
            for strength in [self.strength(group)]
            for slot in [Slot(p, strength, next(ids)) for p in group["params"]]
            if strength and slot.tensor.requires_grad
        ]

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

    def _adopt(self, group: dict[str, Any]) -> None:
        """Give a group its strength, if it has none of its own."""
        if len({id(parameter) for parameter in group["params"]}) < len(group["params"]):
            raise InputError(
                "a parameter stands twice in one group of the optimizer: give each once, for "
                "instance list(dict.fromkeys(parameters))"
            )
        _checked(self.strength_name, group.setdefault(self.strength_name, self._default_strength))

    def _name_tensors(self) -> list[int]:
        """Ids of the noise streams: by name where names are known, else by position."""
        known: dict[int, str] = {}
        if self.model is not None:
            known = {id(p): name for name, p in self.model.named_parameters()}
        names: list[str] = []
        for group in self.param_groups:
            given = group.get("param_names", [None] * len(group["params"]))
            for parameter, name in zip(group["params"], given, strict=True):
                names.append(known.get(id(parameter)) or name or f"parameter {len(names)}")
        return tensor_ids(names)

    def _check_state(self, own: dict[str, Any]) -> None:
        schedule = describe(self.schedule)
        for what, ours in (("method", self.card.name), ("schedule", schedule)):
            if own[what] != ours:
                raise InputError(
                    f"this optimizer state was saved with {what} {own[what]!r}, but the optimizer "
                    f"has {ours!r}: build it as it was, or delete state['perturb'] to start its "
                    "noise anew"
                )

    def __getstate__(self) -> dict[str, Any]:
        # Schedulers put a `step` on the instance that is bound to it, so a copy must not carry it.
        return {name: value for name, value in self.__dict__.items() if name != "step"}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base!r})"

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The base optimizer's groups."""
        return self.base.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.base.param_groups = groups

    @property
    def state(self) -> Any:
        """The base optimizer's state."""
        return self.base.state

    @state.setter
    def state(self, state: Any) -> None:
        self.base.state = state

    @property
    def defaults(self) -> dict[str, Any]:
        """The base optimizer's defaults."""
        return self.base.defaults

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        self.base.defaults = defaults


def _check_base(base: Any) -> None:
    name = type(base).__name__
    if not isinstance(base, Optimizer):
        raise InputError(
            f"the base optimizer must be a torch optimizer, not {name}: "
            "flatminima.NSO(torch.optim.AdamW(model.parameters(), lr=1e-4), sigma=0.01)"
        )
    if isinstance(base, Perturbed):
        raise InputError(f"{name} already wraps a base optimizer: wrap {name}'s own base instead")
    if isinstance(base, torch.optim.LBFGS):
        raise InputError("LBFGS calls its closure itself, so its gradients cannot be perturbed")
    if not any(p.requires_grad for group in base.param_groups for p in group["params"]):
        raise InputError(
            "no trainable parameters: every parameter of the optimizer has requires_grad=False"
        )


def _checked(name: str, value: Any) -> float:
    """A strength as a float.

    Raises:
        InputError: it is negative or not finite.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError(f"{name} must be a number, not {value!r}")
    if not math.isfinite(value) or value < 0:
        raise InputError(f"{name} must be finite and at least 0, not {value!r}")
    return float(value)


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


def _fraction(share: Share, samples: int | None) -> float:
    """The part of the batch's samples that a share holds."""
    if share == WHOLE or samples is None:
        return 1.0
    start, stop = bounds(share, samples)
    return (stop - start) / samples


def rank() -> int:
    """This process's rank; 0 where torch.distributed is not running."""
    return torch.distributed.get_rank() if _distributed() else 0


def world_size() -> int:
    """The number of processes; 1 where torch.distributed is not running."""
    return torch.distributed.get_world_size() if _distributed() else 1


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
