"""Objectives that look at each domain of a batch by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from flatminima.arguments import between, truth, whole
from flatminima.errors import InputError
from flatminima.objectives.features import Features, features_of
from flatminima.objectives.linear_head import LinearHeadLoss
from flatminima.objectives.memory import in_full
from flatminima.objectives.remembering import Remembering
from flatminima.objectives.supervised import (
    Batch,
    check_classes,
    class_loss,
    inputs_and_targets,
    logits,
)


@dataclass(frozen=True)
class Part:
    """The samples of one domain in a batch.

    Attributes:
        logits: Shape (n, C), in single precision at least.
        labels: Class indices, int64, shape (n,).
        loss: Their mean cross-entropy, a scalar.
        features: What the head was given, shape (n, d); None where nobody looked.
    """

    logits: Tensor
    labels: Tensor
    loss: Tensor
    features: Tensor | None = None


@dataclass(frozen=True)
class Head:
    """The layer of a model whose input was taken for the features.

    Attributes:
        module: The layer.
        linear: Whether the logits are a linear function of the features, by this layer.
    """

    module: nn.Module
    linear: bool

    def of(self, part: Part) -> LinearHeadLoss:
        """The loss of a part as a function of this layer, where it is a linear one."""
        assert part.features is not None
        assert isinstance(self.module, nn.Linear)
        bias = self.module.bias is not None
        return LinearHeadLoss(part.features, part.logits, part.labels, bias=bias)


class AcrossDomains(Remembering):
    r"""$\frac1E \sum_e L_e$ and a penalty on what differs between the domains of a batch.

    $L_e$ is the mean cross-entropy of the batch's samples of domain e, E the number of domains in
    the batch: each counts the same, however many samples it has. Batches are mappings that say
    with "domain" where each sample is from. In evaluation mode it is the cross-entropy. A batch of
    one domain has no penalty.

    The penalty's weight is `early_weight` for the first `warmup` steps. They are counted by
    `after_step`, skipped ones too, and the count is saved.

    With several processes, or micro-batches, each looks at the domains in its own samples: the
    gradient is the mean of theirs, and as the penalty is no mean over samples it is not that of
    the whole batch. All processes have the same weights.

    Args:
        weight: Of the penalty, 0 or above.
        warmup: Steps before it has that weight.
        early_weight: Its weight in those steps. Default: 1, or `weight` if that is smaller.
        rescale: Divide loss and penalty by the weight while it is above 1, so that the gradient
            does not jump with it.

    Raises:
        InputError: a number out of its range; at a call, batches without "domain".
    """

    penalizes: ClassVar[bool] = True
    watches_features: ClassVar[bool] = False

    def __init__(
        self,
        weight: float = 1.0,
        warmup: int = 0,
        early_weight: float | None = None,
        rescale: bool = False,
        layer: str = "",
    ) -> None:
        super().__init__()
        self.weight = between("weight", weight, 0)
        self.warmup = whole("warmup", warmup, 0, "steps")
        early = min(1.0, self.weight) if early_weight is None else early_weight
        self.early_weight = between("early_weight", early, 0)
        self.rescale = truth("rescale", rescale)
        self.layer = str(layer)
        self.step = 0
        # In the batch before: whether the penalty needs second derivatives.
        self._is_linear = False

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss of `model` on `batch`, a scalar tensor."""
        domain = sample_domains(batch) if model.training else None
        if isinstance(batch, Mapping):
            batch = {key: v for key, v in batch.items() if key not in ("domain", "index")}
        inputs, labels = inputs_and_targets(batch)
        if domain is None:
            return class_loss(in_full(logits(model, inputs)), labels)
        check_classes(labels)
        weight = self.weight if self.step >= self.warmup else self.early_weight
        watched = self.watches_features and weight > 0
        if len(domain) != len(labels):
            raise InputError(
                f'"domain" names {len(domain)} domains for {len(labels)} samples: give a whole '
                "number for each sample"
            )
        with features_of(model, self.layer) if watched else nullcontext() as features:
            outputs = logits(model, inputs)
        # What is squared below, or divided by a small number, needs more than 16 bits.
        with torch.autocast(outputs.device.type, enabled=False):
            return self._loss(in_full(outputs), labels, domain, features, weight)

    def _loss(
        self,
        outputs: Tensor,
        labels: Tensor,
        domain: Tensor,
        features: Features | None,
        weight: float,
    ) -> Tensor:
        seen = None if features is None else in_full(features.of(len(labels)))
        parts = []
        for one in torch.unique(domain):
            of = (domain == one).nonzero()[:, 0]
            own, given = outputs[of], labels[of]
            own_features = None if seen is None else seen[of]
            parts.append(Part(own, given, cross_entropy(own, given), own_features))
        loss = torch.stack([part.loss for part in parts]).mean()
        if len(parts) > 1 and weight > 0 and self.penalizes:
            head = None
            if features is not None and seen is not None:
                self._is_linear = _is_linear(features.layer, seen, outputs)
                head = Head(features.layer, self._is_linear)
            loss = loss + weight * self.penalty(parts, head)
        # A batch that happens to be of one domain too: the steps of a run are of one scale.
        return loss / weight if self.penalizes and self.rescale and weight > 1 else loss

    def penalty(self, parts: Sequence[Part], head: Head | None) -> Tensor:
        """What differs between domains, a scalar.

        Args:
            parts: Two domains or more.
            head: Where the features are from; None where nobody looked.
        """
        raise NotImplementedError

    def after_step(self, taken: bool = True) -> None:
        """Count the step."""
        self.step += 1

    def get_extra_state(self) -> dict[str, int]:
        """The steps so far."""
        return {"step": self.step}

    def set_extra_state(self, state: Any) -> None:
        """Go on from there."""
        self.step = int(state["step"])


@torch.no_grad()
def _is_linear(layer: nn.Module, features: Tensor, outputs: Tensor) -> bool:
    """Whether the outputs are what a linear layer makes of the features."""
    if not isinstance(layer, nn.Linear) or layer.out_features != outputs.shape[-1]:
        return False
    bias = None if layer.bias is None else layer.bias.to(features.dtype)
    expected = linear(features, layer.weight.to(features.dtype), bias)
    # Autocast may have rounded them to 8 bits.
    return bool((expected - outputs).norm() <= 0.03 * outputs.norm() + 1e-6)


def sample_domains(batch: Batch) -> Tensor:
    """Which domain each sample of a batch is from, whole numbers, shape (samples,).

    Raises:
        InputError: the batch does not say.
    """
    domain = batch.get("domain") if isinstance(batch, Mapping) else None
    if not isinstance(domain, Tensor) or domain.dim() != 1 or domain.is_floating_point():
        raise InputError(
            "this objective compares domains, and the batch does not say where its samples are "
            'from: give batches {"inputs": ..., "targets": ..., "domain": ...}, a whole number for '
            "each sample"
        )
    return domain
