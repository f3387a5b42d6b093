"""The curvature along a run, from the passes that training makes anyway."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from flatminima.errors import InputError
from flatminima.measure.results import Estimate
from flatminima.perturb.engine import Perturbed
from flatminima.perturb.nso import NSO
from flatminima.perturb.plans import Pass
from flatminima.perturb.ranks import world_size
from flatminima.perturb.shards import local
from flatminima.perturb.weights import Weights

FINE = (torch.float32, torch.float64)
"""Types in which dot products are good enough as they are."""


class LiveTrace:
    r"""The Hessian's trace while NSO trains, without a gradient more.

        meter = LiveTrace(optimizer)
        ...  # train
        print(meter.estimate())

    A pass at W + U leaves its gradient g(W + U) behind, and $U^\top g(W + U) / \sigma^2$ has the
    mean Tr H: for normal noise exactly the trace of the Hessian of $F(W) = E f(W + U)$ (Stein's
    identity), which is $\mathrm{Tr}\,H + O(\sigma^2)$ for a smooth loss, and which feels the kinks
    of a ReLU network as noise does (see `smoothed_curvature`, whose bias is half of this one's). A
    step's sample is the mean over its passes; of a pair it is

    $$\frac{z^\top (g(W + \sigma z) - g(W - \sigma z))}{2 \sigma},$$

    where g(W) cancels. Of signs="split" the halves of the batch differ, and of one-point and
    alternating signs g(W) stays: the mean is the same and the error much larger,
    $\|g\|^2 / \sigma^2$ in variance. Likewise where groups have sigmas far apart.

    It is the trace **of the loss that is backpropagated**: of the step's batch, in training mode,
    dropout and BatchNorm's batch statistics included; and of the weights of the optimizer's groups.
    So it is no substitute for `hessian_trace` of a model that is done, but it shows where a run
    goes.

    The estimate is an exponentially weighted mean over steps, with the standard error of such a
    mean of independent samples. The trace moves meanwhile: the estimate stands for the last
    `memory` steps or so, not for the present one.

    Cost: two differences and two dot products over the weights for a pair, no synchronization
    before `estimate`, and the memory of the largest parameter tensor.

    Source: this library; Stein's identity, Hutchinson, 1989.

    Args:
        optimizer: The NSO optimizer to watch; one meter each.
        memory: How many steps the mean reaches back: weights fall by 1 - 1/memory a step.

    Raises:
        InputError: not NSO, one whose noise is relative to the weights, or one that is watched
            already; several processes; memory below 1.
    """

    def __init__(self, optimizer: Perturbed, *, memory: float = 100) -> None:
        if not isinstance(optimizer, NSO):
            raise InputError(
                f"the optimizer is {type(optimizer).__name__}, whose passes say nothing of the "
                "trace: give an NSO"
            )
        if optimizer.scale.name != "absolute":
            raise InputError(
                f"the noise has scale={optimizer.scale.name!r}, so its passes measure another "
                "matrix than H: measure with hessian_trace"
            )
        if world_size() > 1:
            raise InputError(
                "with several processes the gradients of a pass are not this process's own: "
                "measure with hessian_trace"
            )
        if optimizer.watcher is not None:
            raise InputError("the optimizer has a meter already: use that one, or detach() it")
        if not memory >= 1:
            raise InputError(f"memory is {memory}: give at least 1 step")
        self._optimizer, self.memory = optimizer, memory
        self._mean = _Weighted(1 - 1 / memory)
        self._before: Tensor | float = 0.0
        self._after: tuple[Tensor | float, float] | None = None
        self._calls: list[tuple[Tensor | float, float]] = []
        self._waiting: list[Tensor] = []
        optimizer.watcher = self

    def detach(self) -> None:
        """Stop watching; what was seen stays."""
        self._optimizer.watcher = None

    def estimate(self) -> Estimate:
        """The trace over the last steps; NaN before the first, its error before the second.

        `samples` is the effective number, (sum of weights)^2 / sum of their squares.
        """
        self._read()
        mean = self._mean
        return Estimate(
            mean.value, mean.stderr, round(mean.effective), method="live, exponentially weighted"
        )

    def last(self) -> float:
        """The sample of the last step alone; NaN before the first."""
        self._read()
        return self._mean.last

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on from."""
        self._read()
        return dict(vars(self._mean))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self._waiting.clear()
        vars(self._mean).update(state)

    def begin(self, micro_batch: int) -> None:
        """Passes begin; those of a step that was broken off or skipped are forgotten."""
        if micro_batch == 0:
            self._calls.clear()
        self._calls.append((0.0, 0.0))
        self._after = None

    def start(self, current: Pass, weights: Weights, weight: float) -> None:
        """A pass is about to run."""
        if not weight or not weights.away:
            return
        if all(slot.tensor.grad is None for slot in weights.slots):
            self._before = 0.0
        elif self._after is not None and current.move is Weights.reflect and _fine(weights):
            # The same `.grad` along -U, in units of this pass's weight.
            along, before = self._after
            self._before = -along * (before / weight)
        else:
            self._before = _along(weights)

    def emptied(self) -> None:
        """Nothing was gathered before this pass."""
        self._before = 0.0

    def end(self, weights: Weights, weight: float) -> None:
        """A pass has run: its own gradient is what `.grad` has grown by."""
        self._after = None
        if weight and weights.away:
            total, sum_of_weights = self._calls[-1]
            along = _along(weights)
            self._calls[-1] = (total + weight * (along - self._before), sum_of_weights + weight)
            self._after = along, weight

    def stepped(self) -> None:
        """The step was taken: its sample counts."""
        # Losses of micro-batches are parts of the whole, so calls add up, and passes average.
        parts = [total / weights for total, weights in self._calls if weights]
        self._calls.clear()
        if parts:
            self._waiting.append(torch.as_tensor(sum(parts)))

    def _read(self) -> None:
        if self._waiting:
            for sample in torch.stack(self._waiting).tolist():
                if math.isfinite(sample):
                    self._mean.add(sample)
            self._waiting.clear()


class _Weighted:
    """An exponentially weighted mean and its standard error (West, 1979)."""

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.weights = self.squares = self.spread = 0.0
        self.mean = self.last = math.nan

    def add(self, sample: float) -> None:
        """Take in a sample, of weight 1 beside the decayed ones."""
        self.weights = self.decay * self.weights + 1
        self.squares = self.decay**2 * self.squares + 1
        away = sample - self.mean if self.weights > 1 else 0.0
        self.mean = self.mean + away / self.weights if self.weights > 1 else sample
        self.spread = self.decay * self.spread + away * (sample - self.mean)
        self.last = sample

    @property
    def value(self) -> float:
        """The mean."""
        return self.mean

    @property
    def effective(self) -> float:
        """How many equally weighted samples the mean is worth."""
        return self.weights**2 / self.squares if self.squares else 0.0

    @property
    def stderr(self) -> float:
        """The standard error of the mean of independent samples."""
        freedom = self.weights - self.squares / self.weights if self.weights else 0.0
        if freedom <= 1e-12:
            return math.nan
        return math.sqrt(self.spread / freedom * self.squares) / self.weights


def _fine(weights: Weights) -> bool:
    """Whether the mirrored displacement is -U up to little rounding."""
    return all(slot.tensor.dtype in FINE for slot in weights.slots)


@torch.no_grad()
def _along(weights: Weights) -> Tensor | float:
    """U'g / sigma^2 over all parameters, g what is in `.grad`, unscaled."""
    total: Tensor | float = 0.0
    for slot, offset in zip(weights.slots, weights.displacements(), strict=True):
        gradient = slot.tensor.grad
        if gradient is None:
            continue
        dense = local(gradient)
        if dense.dtype in FINE and dense.layout is torch.strided and dense.dtype == offset.dtype:
            along = torch.dot(offset.flatten(), dense.flatten())
        else:
            product = (offset * dense.to_dense().conj()).real
            along = product.sum(dtype=torch.promote_types(product.dtype, torch.float32))
        total = along / (slot.gradient_scale * slot.strength**2) + total
    return total
