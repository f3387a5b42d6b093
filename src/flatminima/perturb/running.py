"""The passes of a step while they run: the one place where a step happens."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import nullcontext

from flatminima.perturb.buffers import Buffers
from flatminima.perturb.gradients import Gradients
from flatminima.perturb.plans import Pass, Watcher
from flatminima.perturb.randomness import Replay
from flatminima.perturb.shares import fraction
from flatminima.perturb.weights import Weights

LOST = """.grad was emptied or replaced while passes ran, so the passes before are lost from it: \
inside the loop call optimizer.zero_grad() or none, and let backward() add to .grad"""


class Running:
    """A plan on its way: what is moved, gathered and replayed for it, and which pass is running.

    Args:
        plan: The passes.
        weights: Those that are moved.
        gradients: Of all parameters.
        buffers: Of the modules.
        replay: The random numbers; None draws new ones for each pass.
        samples: Samples of the batch to cut, or None.
        isolated: Whether each pass finds `.grad` empty and may empty it, as closures do.
        watcher: Looks on, where there is one.
    """

    def __init__(
        self,
        plan: Sequence[Pass],
        *,
        weights: Weights,
        gradients: Gradients,
        buffers: Buffers,
        replay: Replay | None,
        samples: int | None,
        isolated: bool,
        watcher: Watcher | None = None,
    ) -> None:
        self.plan = plan
        self.weights = weights
        self.gradients = gradients
        self.buffers = buffers
        self.replay = replay
        self.samples = samples
        self.isolated = isolated
        self.watcher = watcher
        self.index = 0

    @property
    def current(self) -> Pass:
        """The pass that is running."""
        return self.plan[self.index]

    @property
    def is_last(self) -> bool:
        """Whether it is the plan's last."""
        return self.index == len(self.plan) - 1

    def passes(self) -> Generator[Pass, None, None]:
        """Run the plan: each pass is set up, yielded for forward and backward, and taken in."""
        # One pass at W leaves the buffers as plain training does.
        perturbed = len(self.plan) > 1 or self.plan[0].move is not None
        with self.buffers.watch() if perturbed else nullcontext():
            for index, current in enumerate(self.plan):
                self.index = index
                part = fraction(current.share, self.samples)
                weight = current.weight * part
                alone = self.isolated or not weight or current.after is not None
                self._begin(current, weight, alone)
                if self.watcher is not None:
                    self.watcher.start(current, self.weights, weight)
                yield current
                if self.index and not alone and not self.gradients.kept():
                    raise RuntimeError(LOST)
                if self.watcher is not None:
                    self.watcher.end(self.weights, weight)
                self.buffers.end_pass(weight, None if self.weights.away else part)
                if current.after is not None:
                    current.after(self.weights)
                if alone and weight:
                    self.gradients.put_back(add=True)
        self.gradients.put_back(add=False)
        self.gradients.settle()
        self.buffers.finish()

    def _begin(self, current: Pass, weight: float, alone: bool) -> None:
        if current.move is not None:
            current.move(self.weights)
        if self.weights.resolution is not None:
            self.weights.resolution.check()
        self.gradients.put_back(add=False)
        if weight:
            self.gradients.count(weight)
        if alone:
            self.gradients.take()
        self.gradients.look()
        self.buffers.start_pass()
        if self.replay is not None:
            self.replay.start(current.share)

    def zero_grad(self) -> None:
        """Drop what was in `.grad` before the passes; what they gather is theirs.

        Raises:
            RuntimeError: `backward()` ran in this pass already, or a pass before has.
        """
        if self.isolated:
            self.gradients.clear()
        elif self.gradients.grown():
            raise RuntimeError(LOST)
        elif self.index == 0:
            self.gradients.forget()
        else:
            return
        if self.watcher is not None:
            self.watcher.emptied()

    def go_home(self, *, finished: bool) -> None:
        """Restore the weights; if the passes did not finish, drop what they gathered."""
        self.weights.restore()
        if not finished:
            self.gradients.forget()
            self.gradients.clear()
            self.buffers.rewind()
