"""ELR+: two networks, each held to what the other's moving average said of a sample."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Beta
from torch.nn.functional import cross_entropy, one_hot
from torch.nn.parallel import DistributedDataParallel

from flatminima.arguments import below, between, truth
from flatminima.errors import InputError
from flatminima.objectives.elr import clamped_softmax, regularizer, suspected
from flatminima.objectives.memory import Memory, in_full
from flatminima.objectives.mixing import NO_NUMBERS
from flatminima.objectives.remembering import check_places
from flatminima.objectives.supervised import check_classes


class ELRPlus(nn.Module):
    r"""Two networks that are trained side by side on labels of which many are wrong.

    Each network $f_a$ has a moving average $m_a$ of its weights and a memory $T^a$. For a batch
    (x, y one-hot, i) and the network $f_1$, the average of $f_2$ gives the targets, on the inputs
    as they are, and $f_1$ sees a mixture, $l \sim \mathrm{Beta}(a, a)$,
    $l \leftarrow \max(l, 1 - l)$, with a permutation $\pi$ of the batch:

    $$T^1_i \leftarrow \beta T^1_i + (1 - \beta) \mathrm{softmax}(m_2(x)), \qquad
    q = l T^1_i + (1 - l) T^1_{\pi(i)},$$
    $$\mathrm{CE}(f_1(x'), y') + r \lambda \frac1n \sum \log(1 - \langle q, p \rangle), \qquad
    x' = l x + (1 - l) x_\pi, \quad y' = l y + (1 - l) y_\pi,$$

    p the clamped softmax of $f_1(x')$ and r a factor that grows to 1 over `ramp_steps`. After a
    step $m_1 \leftarrow a m_1 + (1 - a) f_1$, for parameters alone; statistics of BatchNorm in the
    averages are their own, since they run in training mode, as the authors' code has them.

    It has two networks and two optimizers, so it is no objective of a run: it is for plain loops.

        pair = ELRPlus(first, second, len(train), classes)
        for x, y, index in loader:
            for which, optimizer in enumerate(optimizers):
                pair.loss(which, x, y, index).backward()
                optimizer.step()
                optimizer.zero_grad()
                pair.after_step(which)
        pair.eval()(x)

    Between `loss` and `after_step` there may be several passes, as those of NSO: they see one
    memory, which moves once. Cost, beyond two networks: their averages, a forward pass of one for
    each loss, and `2 * num_examples * num_classes` numbers. Random numbers are torch's global ones
    on the CPU.

    Source: Liu, Niles-Weed, Razavian, Fernandez-Granda, Early-Learning Regularization Prevents
    Memorization of Noisy Labels, 2020, arXiv 2007.00151.

    Attributes:
        networks: The two that are trained.
        averages: Of their weights.
        memories: T of the first and of the second.

    Args:
        first: A network, which may be wrapped for data-parallel training.
        second: Another, best begun at other weights.
        num_examples: Samples of the training set.
        num_classes: Their classes.
        beta: How slowly T moves, from 0 to below 1.
        lam: lambda, the weight of the term, 0 or above.
        mixup: a of the Beta distribution, 0 (no mixing) or above.
        ramp_steps: Steps over which the term comes in, exp(-5 (1 - t/R)^2); 0: at once.
        ema_decay: The largest a of the averages, from 0 to below 1.
        ema_ramp: Steps over which a comes in by the same factor; None: a is the smaller of
            `ema_decay` and 1 - 1/(t + 1).
        reweight: Whether y' is multiplied by q and normalized; the authors do so for 100 classes.
        dtype: Of T: "float16", "float32" or "float64".

    Raises:
        InputError: an argument out of its range; at a call, inputs that cannot be mixed, shapes
            that do not fit or samples that there are not.
    """

    def __init__(
        self,
        first: nn.Module,
        second: nn.Module,
        num_examples: int,
        num_classes: int,
        *,
        beta: float = 0.7,
        lam: float = 3.0,
        mixup: float = 1.0,
        ramp_steps: int = 0,
        ema_decay: float = 0.997,
        ema_ramp: int | None = None,
        reweight: bool = False,
        dtype: str = "float32",
    ) -> None:
        super().__init__()
        if first is second:
            raise InputError("first and second are one network: give two, begun at other weights")
        self.networks = nn.ModuleList([first, second])
        self.averages = nn.ModuleList([_average_of(network) for network in (first, second)])
        self.memories = nn.ModuleList([Memory(num_examples, num_classes, dtype) for _ in range(2)])
        self.beta, self.lam = below("beta", beta, 0, 1), between("lam", lam, 0)
        self.mixup, self.ema_decay = between("mixup", mixup, 0), below("ema_decay", ema_decay, 0, 1)
        self.ramp_steps = between("ramp_steps", ramp_steps, 0)
        self.ema_ramp = None if ema_ramp is None else between("ema_ramp", ema_ramp, 0)
        self.reweight = truth("reweight", reweight)
        self.steps = [0, 0]

    def forward(self, inputs: Tensor) -> Tensor:
        """The mean of the two networks' logits, shape (samples, classes)."""
        first, second = (network(inputs) for network in self.networks)
        mean: Tensor = (first + second) / 2
        return mean

    def loss(
        self, which: int, inputs: Tensor, labels: Tensor, index: Tensor | None = None
    ) -> Tensor:
        """What network `which` is to minimize, a scalar tensor; in evaluation its cross-entropy.

        Args:
            which: 0 or 1.
            inputs: Floating-point numbers, the first dimension counting samples.
            labels: Class indices, int64, shape (samples,).
            index: Places in the training set, int64, shape (samples,); in evaluation mode there
                need be none.

        Raises:
            InputError: there is no such network; see `ELRPlus` for the rest.
        """
        memory, network = self._memory(which), self.networks[which]
        check_classes(labels)
        if not self.training:
            return cross_entropy(in_full(network(inputs)), labels)
        places = check_places(index)
        before = memory.read(places)
        with torch.no_grad():
            seen = in_full(self.averages[1 - which](inputs)).softmax(1)
        if not seen.shape == before.shape or len(labels) != len(places):
            raise InputError(
                f"there are outputs of shape {tuple(seen.shape)} and {len(labels)} labels for "
                f"{len(before)} indices and {before.shape[1]} classes: give one of each"
            )
        memory.note(places, seen)
        target = self.beta * before + (1 - self.beta) * seen
        label = one_hot(labels, before.shape[1]).to(target)
        mixed, share, order = self._mix(inputs)
        target = share * target + (1 - share) * target[order]
        label = share * label + (1 - share) * label[order]
        if self.reweight:
            label = label * target
            label = label / label.sum(1, keepdim=True).clamp_min(torch.finfo(label.dtype).tiny)
        outputs = network(mixed)
        # 0.9999 is 1 in 16 bits.
        with torch.autocast(inputs.device.type, enabled=False):
            outputs = in_full(outputs)
            term = regularizer(target, clamped_softmax(outputs)).mean()
            strength = ramp(self.steps[which], self.ramp_steps) * self.lam
            return cross_entropy(outputs, label.to(outputs.dtype)) + strength * term

    @torch.no_grad()
    def after_step(self, which: int, taken: bool = True) -> None:
        """Move the memory and the average of network `which`; called by all processes or none.

        Args:
            which: 0 or 1.
            taken: False for a step that was skipped.
        """
        memory = self._memory(which)
        if not taken:
            memory.forget()
            return
        index, seen = memory.noted()
        memory.write(index, self.beta * memory.read(index) + (1 - self.beta) * seen)
        step = self.steps[which]
        decay = min(1 - 1 / (step + 1), self.ema_decay)
        if self.ema_ramp is not None:
            decay = self.ema_decay * ramp(step + 1, self.ema_ramp)
        network = _bare(self.networks[which])
        pairs = zip(self.averages[which].parameters(), network.parameters(), strict=True)
        for average, parameter in pairs:
            average.mul_(decay).add_(parameter, alpha=1 - decay)
        self.steps[which] += 1

    @torch.no_grad()
    def suspects(self, labels: Tensor) -> Tensor:
        """As `ELRLoss.suspects`, by the sum of both memories."""
        first, second = (self._memory(which).rows.cpu().double() for which in (0, 1))
        return suspected(first + second, labels)

    def get_extra_state(self) -> dict[str, list[int]]:
        """The steps taken by each network."""
        return {"steps": list(self.steps)}

    def set_extra_state(self, state: dict[str, list[int]]) -> None:
        """Take up after a number of steps."""
        self.steps = list(state["steps"])

    def _memory(self, which: int) -> Memory:
        if which not in (0, 1):
            raise InputError(
                f"there is no network {which!r}: ELR+ trains two in turn, 0 and 1, each with an "
                "optimizer of its own"
            )
        found = self.memories[which]
        assert isinstance(found, Memory)
        return found

    def _mix(self, inputs: Tensor) -> tuple[Tensor, float, Tensor]:
        """Mixed inputs, the part that is their own, and the order of the others."""
        if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
            what = "token ids or the like" if not isinstance(inputs, Tensor) else "whole numbers"
            raise InputError(NO_NUMBERS.format(name="ELR+", what=what))
        order = torch.arange(len(inputs), device=inputs.device)
        if self.mixup == 0:
            return inputs, 1.0, order
        share = Beta(self.mixup, self.mixup).sample().item()
        share = max(share, 1 - share)
        order = torch.randperm(len(inputs)).to(inputs.device)
        return share * inputs + (1 - share) * inputs[order], share, order


def ramp(step: float, steps: float) -> float:
    """exp(-5 (1 - t/R)^2), 1 from t = R on."""
    return 1.0 if steps == 0 else math.exp(-5 * (1 - min(step, steps) / steps) ** 2)


def _bare(network: nn.Module) -> Any:
    return network.module if isinstance(network, DistributedDataParallel) else network


def _average_of(network: nn.Module) -> nn.Module:
    average: nn.Module = copy.deepcopy(_bare(network)).requires_grad_(False)
    return average
