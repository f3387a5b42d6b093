"""The curvature along a run, from the passes that training makes anyway."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flatminima.errors import InputError
from flatminima.measure.along import Displacement, Terms, scaled
from flatminima.measure.live_step import Call, Step
from flatminima.measure.moving import MovingMean
from flatminima.measure.results import Estimate
from flatminima.perturb.engine import Perturbed
from flatminima.perturb.nso import NSO
from flatminima.perturb.plans import Pass
from flatminima.perturb.ranks import world_size
from flatminima.perturb.replaying import NO_COPY
from flatminima.perturb.weights import Weights

NO_CLEAN_PASS = """no pass of this optimizer runs at W, so f(W) is not known. Give the NSO \
running_statistics="clean", which costs a forward pass a step, or a clean_weight; or look at \
estimate(), which needs neither"""

SEVERAL_SIGMAS = """the optimizer's groups have sigmas {}, and the losses tell the sum of their \
sigma^2 Tr H only: look at estimate()"""

UNTOLD = """no losses were told: in each pass, where loss.backward() is called, call \
meter.saw(loss) too"""


class LiveTrace:
    r"""The Hessian's trace while NSO trains, without a gradient more.

        meter = LiveTrace(optimizer)
        ...  # train
        print(meter.estimate())

    A pass at W + U leaves its gradient g(W + U) behind, and $U^\top g(W + U) / \sigma^2$ has the
    mean Tr H: for normal noise exactly the trace of the Hessian of $F(W) = E f(W + U)$ (Stein's
    identity), which is $\mathrm{Tr}\,H + O(\sigma^2)$ for a smooth loss, and which feels the kinks
    of a ReLU network as noise does. A step's sample is the mean over its passes; of a pair it is

    $$\frac{z^\top (g(W + \sigma z) - g(W - \sigma z))}{2 \sigma},$$

    where g(W) cancels. Of signs="split" the halves of the batch differ, and of signs="alternate",
    where two steps make one sample, the batches do. Of one-point noise g(W) stays: the mean is the
    same and the error much larger, $\|g\|^2 / \sigma^2$ in variance. Likewise where groups have
    sigmas far apart.

    It is the trace **of the loss that is backpropagated**: of the step's batch, in training mode,
    dropout and BatchNorm's batch statistics included; and of the weights that noise moves and
    training trains. So it is no substitute for `hessian_trace` of a model that is done, but it
    shows where a run goes.

    The estimate is an exponentially weighted mean over steps, with the standard error of such a
    mean of independent samples. The trace moves meanwhile: the estimate stands for the last
    `memory` steps or so, not for the present one.

    **The losses tell a second curvature**, $2 (F(W) - f(W)) / \sigma^2$, by
    `smoothed_curvature`, see there for what it needs; and the two together the trace without its
    bias of order sigma^2, by `corrected`.

    Cost: for a pair that is looked at, two differences and two dot products over the weights, the
    memory of the largest parameter tensor, and no synchronization before `estimate`. On models
    whose step takes a millisecond that is a tenth of a step, hence `every`; on large ones little,
    so give every=1 there.

    Source: this library; Stein's identity, Hutchinson, 1989.

    Args:
        optimizer: The NSO optimizer to watch; one meter each.
        memory: How many noisy steps the mean reaches back: weights fall by 1 - 1/memory a step.
        every: Looks at each n-th noisy step (of signs="alternate" at each n-th pair of them); the
            error grows with its square root.

    Raises:
        InputError: not NSO, one whose noise is relative to the weights, one that keeps no copy of
            them, or one that is watched already; several processes; memory or every below 1.
    """

    def __init__(self, optimizer: Perturbed, *, memory: float = 100, every: int = 10) -> None:
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
        if optimizer.memory != "exact":
            raise InputError(NO_COPY)
        if world_size() > 1:
            raise InputError(
                "with several processes the gradients of a pass are not this process's own: "
                "measure with hessian_trace"
            )
        if optimizer.watcher is not None:
            raise InputError("the optimizer has a meter already: use that one, or detach() it")
        if not memory >= 1:
            raise InputError(f"memory is {memory}: give at least 1 step")
        if every != int(every) or every < 1:
            raise InputError(f"every is {every}: give a whole number of steps, at least 1")
        self._optimizer, self.memory, self.every = optimizer, memory, int(every)
        self._span = 2 if optimizer.signs == "alternate" else 1
        decay = (1 - 1 / memory) ** (self.every * self._span)
        self._trace = MovingMean(decay, "live, from gradients")
        self._curvature = MovingMean(decay, "live, from losses")
        self._corrected = MovingMean(decay, "live, from gradients and losses")
        self._parts: list[Step] = []
        self._calls: list[Call] = []
        self._looks, self._turn, self._untold = False, 0, False
        self._at_home = False
        self._displacement: Displacement | None = None
        self._loss: Terms = []
        self._before: Terms = []
        self._after: tuple[Terms, float] | None = None
        optimizer.watcher = self

    def detach(self) -> None:
        """Stop watching; what was seen stays."""
        self._optimizer.watcher = None
        self._looks = False

    def estimate(self) -> Estimate:
        """The trace over the last steps; NaN before the first, its error before the second.

        `samples` is the effective number, (sum of weights)^2 / sum of their squares.
        """
        return self._trace.estimate()

    def last(self) -> float:
        """The sample of the last step that was looked at, alone; NaN before the first."""
        self._trace.read()
        return self._trace.last

    @property
    def compares_losses(self) -> bool:
        """Whether the method makes a pass at W, so that `smoothed_curvature` can be told."""
        return not self._refusal()

    def smoothed_curvature(self) -> Estimate:
        r"""The sigma-smoothed curvature $2 (F(W) - f(W)) / \sigma^2$ over the last steps.

        Of a pair the sample is $(L_+ + L_- - 2 L_0) / \sigma^2$, of the batch's losses with the
        same masks. It needs no gradients, and is what `flatminima.smoothed_curvature` measures; its
        bias as an estimate of Tr H is half of that of `estimate`. The loss at W is that of a clean
        pass, which NSO makes with a `clean_weight` or with running_statistics="clean". The losses
        are what a closure returns; between `passes()` they must be told, by `saw`.

        Losses in 16 bits are too coarse: the sample is off by about $10^{-2} L / \sigma^2$. Those
        of frozen weights that noise moves (`perturb_frozen`) count here, and in `estimate` not.

        Returns:
            NaN before the first step that was looked at, its error before the second.

        Raises:
            InputError: no pass runs at W, the groups' sigmas differ, or losses were not told.
        """
        self._check_losses()
        return self._curvature.estimate()

    def corrected(self) -> Estimate:
        r"""The trace of H itself over the last steps, without the bias of order sigma^2.

        It is 2 `smoothed_curvature` - `estimate`, step by step. Along one draw of z

        $$\frac{L_+ + L_- - 2 L_0}{\sigma^2} = z^\top H z + \frac{\sigma^2}{12} D^4 f[z, z, z, z] +
        \dots, \qquad \frac{z^\top (g_+ - g_-)}{2 \sigma} = z^\top H z + \frac{\sigma^2}{6}
        D^4 f[z, z, z, z] + \dots,$$

        so the terms of order sigma^2 cancel whatever the noise, and sigma^4 is left. For smooth
        networks: at a kink there is nothing to expand.

        Source: this library; Richardson's extrapolation.

        Returns:
            NaN before the first step that was looked at, its error before the second.

        Raises:
            InputError: as `smoothed_curvature`.
        """
        self._check_losses()
        return self._corrected.estimate()

    def saw(self, loss: Tensor | float) -> None:
        """The loss whose `backward()` runs in this pass, without a `GradScaler`'s scale.

            for x_, y_ in optimizer.passes(x, y):
                loss = loss_fn(model(x_), y_)
                loss.backward()
                meter.saw(loss)

        Several in one pass, those of micro-batches, add up as their gradients do. A closure's need
        not be told.
        """
        if self._looks:
            self._loss.append((1.0, _scalar(loss)))

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on from."""
        return {
            "trace": self._trace.state_dict(),
            "curvature": self._curvature.state_dict(),
            "corrected": self._corrected.state_dict(),
            "parts": [step.state() for step in self._parts],
            "untold": self._untold,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self._trace.load_state_dict(state["trace"])
        self._curvature.load_state_dict(state["curvature"])
        self._corrected.load_state_dict(state["corrected"])
        self._parts = [Step(*kept) for kept in state["parts"]]
        self._untold = state["untold"]

    def begin(self, micro_batch: int) -> bool:
        """Passes begin; those of a step that was broken off or skipped are forgotten."""
        if micro_batch == 0:
            self._calls = []
            self._turn = self._optimizer.steps // self._optimizer.interval
            self._looks = self._turn // self._span % self.every == 0
        if self._looks:
            self._calls.append(Call())
            self._displacement = self._after = None
        return self._looks

    def start(self, current: Pass, weights: Weights, weight: float) -> None:
        """A pass is about to run."""
        self._loss, self._at_home = [], current.at_home
        if not weight or not weights.away:
            return
        with torch.no_grad():
            mirrored = current.move is Weights.reflect
            if mirrored and self._displacement is not None and self._displacement.mirrors:
                self._displacement.mirror()
            else:
                self._displacement, self._after = Displacement(weights), None
            if all(slot.tensor.grad is None for slot in weights.slots):
                self._before = []
            elif self._after is not None:
                # The same `.grad` along -U, in units of this pass's weight.
                found, before = self._after
                self._before = scaled(found, -before / weight)
            else:
                self._before = self._displacement.along_gradients()

    def emptied(self) -> None:
        """Nothing was gathered before this pass."""
        self._before = []

    def returned(self, loss: Tensor | float) -> None:
        """A closure's own loss, whatever it told by itself."""
        self._loss = [(1.0, _scalar(loss))]

    def end(self, weights: Weights, weight: float) -> None:
        """A pass has run: its own gradient is what `.grad` has grown by."""
        call = self._calls[-1]
        if self._at_home:
            call.home_loss = self._loss
        elif weight and weights.away:
            assert self._displacement is not None
            with torch.no_grad():
                found = self._displacement.along_gradients()
            self._after = found, weight
            call.slope += [*scaled(found, weight), *scaled(self._before, -weight)]
            call.weight += weight
            call.sigma = weights.slots[0].strength
            call.losses.append(scaled(self._loss, weight))

    def stepped(self) -> None:
        """The step was taken: its sample counts."""
        if not self._looks:
            return
        calls = [call for call in self._calls if call.weight]
        self._calls, self._displacement = [], None
        if not calls:
            return
        step = Step.of(calls)
        self._untold = not step.curvature
        if self._turn % self._span == 0:
            self._parts = []
        self._parts.append(step)
        if len(self._parts) == self._span:
            sample = Step.mean(self._parts)
            self._trace.add(sample.trace)
            if sample.curvature:
                self._curvature.add(sample.curvature)
                self._corrected.add(sample.corrected())
            self._parts = []

    def _check_losses(self) -> None:
        refusal = self._refusal() or (UNTOLD if self._untold else "")
        if refusal:
            raise InputError(refusal)

    def _refusal(self) -> str:
        """Why the losses cannot tell the curvature; empty where they can."""
        optimizer = self._optimizer
        if not optimizer.clean_weight and optimizer.running_statistics != "clean":
            return NO_CLEAN_PASS
        sigmas = sorted({optimizer.strength(group) for group in optimizer.param_groups} - {0.0})
        if len(sigmas) > 1:
            return SEVERAL_SIGMAS.format(", ".join(f"{sigma:g}" for sigma in sigmas))
        return ""


def _scalar(loss: Tensor | float) -> Tensor | float:
    if not isinstance(loss, Tensor):
        return loss
    return loss.detach().to(torch.promote_types(loss.dtype, torch.float32))
