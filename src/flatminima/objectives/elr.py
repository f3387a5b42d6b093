"""Early-learning regularization: a memory of early predictions that wrong labels cannot erase."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from flatminima.arguments import below, between
from flatminima.cards import Card
from flatminima.errors import InputError
from flatminima.objectives.memory import Memory, check_storage
from flatminima.objectives.registry import register
from flatminima.objectives.remembering import Setting
from flatminima.objectives.remembering_loss import RememberingLoss, RemembersSamples

EPSILON = 1e-4
"""How far from 0 and 1 probabilities are kept, so that the logarithm is bounded by log(1e-4)."""


def clamped_softmax(logits: Tensor) -> Tensor:
    """Probabilities within [1e-4, 1 - 1e-4]; no gradient flows through those that were not."""
    return logits.softmax(1).clamp(EPSILON, 1 - EPSILON)


def regularizer(targets: Tensor, probabilities: Tensor) -> Tensor:
    r"""$\log(1 - \langle t_i, p_i \rangle)$ of each sample: 0 or below, lower where they agree.

    Args:
        targets: Rows that sum to 1 or less, shape (samples, classes).
        probabilities: Of `clamped_softmax`, shape (samples, classes).
    """
    return torch.log(1 - (targets * probabilities).sum(1))


class ELRLoss(RememberingLoss):
    r"""Cross-entropy and a term that holds predictions to what was learnt before wrong labels were.

    With p the softmax clamped to $[\epsilon, 1 - \epsilon]$, $\epsilon = 10^{-4}$, q the same
    divided by its sum and without gradient, and T a row for each training sample, zeros at first:

    $$T_i \leftarrow \beta T_i + (1 - \beta) q_i, \qquad
    \mathrm{CE}(z, y) + \lambda \frac1n \sum_i \log(1 - \langle T_i, p_i \rangle)$$

    T is changed before the loss is computed. There is no bias correction: after k visits a constant
    q gives $(1 - \beta^k) q$, which lets the term come in by degrees. Within `one_step` each pass
    uses its own q with the T of before the step, and T moves once, by the mean of the q.

        loss = ELRLoss(len(train), classes)
        for x, y, index in loader:
            loss(model(x), y, index).backward()

    Cost: `num_examples * num_classes` numbers in each process. In evaluation mode it is the
    cross-entropy.

    Source: Liu, Niles-Weed, Razavian, Fernandez-Granda, Early-Learning Regularization Prevents
    Memorization of Noisy Labels, 2020, arXiv 2007.00151.

    Args:
        num_examples: Samples of the training set.
        num_classes: Their classes.
        beta: How slowly T moves, from 0 to below 1.
        lam: The weight of the term, 0 or above.
        dtype: Of T: "float16", "float32" or "float64".

    Raises:
        InputError: an argument out of its range; at a call, shapes that do not fit or samples that
            there are not.
    """

    def __init__(
        self,
        num_examples: int,
        num_classes: int,
        beta: float = 0.7,
        lam: float = 3.0,
        *,
        dtype: str = "float32",
    ) -> None:
        super().__init__(Memory(num_examples, num_classes, dtype))
        self.beta, self.lam = below("beta", beta, 0, 1), between("lam", lam, 0)

    def loss(self, logits: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        """The equation; notes q."""
        before = self._before(index)
        probabilities = clamped_softmax(logits)
        seen = probabilities.detach()
        seen = seen / seen.sum(1, keepdim=True)
        self.memory.note(index, seen)
        targets = self.beta * before + (1 - self.beta) * seen
        return cross_entropy(logits, labels) + self.lam * regularizer(targets, probabilities).mean()

    def row(self, index: Tensor, seen: Tensor) -> Tensor:
        """T moved by q."""
        return self.beta * self._before(index) + (1 - self.beta) * seen

    def _before(self, index: Tensor) -> Tensor:
        rows = self.memory.read(index)
        if self.memory.rows.dtype != torch.float16:
            return rows
        # Rounded to 16 bits a row may sum to more than 1, and 1 - <T, p> be below 0.
        return rows / rows.sum(1, keepdim=True).clamp_min(1)

    @torch.no_grad()
    def suspects(self, labels: Tensor) -> Tensor:
        """Which samples are likely to be mislabelled: those whose T is largest at another class.

        Args:
            labels: The given class of each training sample, int64, shape (num_examples,).

        Returns:
            Their places in the training set, int64, ascending, on the CPU; samples that were never
            seen are not among them.

        Raises:
            InputError: not one label for each sample.
        """
        return suspected(self.memory.rows.cpu(), labels)


def suspected(rows: Tensor, labels: Tensor) -> Tensor:
    """The places of rows whose largest number is at another class than the label."""
    if labels.shape != rows.shape[:1]:
        raise InputError(
            f"there are labels of shape {tuple(labels.shape)} for {len(rows)} samples: give the "
            "label of each training sample, in the order of the index"
        )
    return torch.nonzero((rows.argmax(1) != labels.cpu()) & rows.any(1))[:, 0]


@register(
    Card(
        name="elr",
        title="Early-learning regularization",
        equation="-log p_y + lam log(1 - <T, p>), T <- beta T + (1 - beta) p for each sample",
        gradients="1",
        buffers="none; a number for each sample and class",
        strength="lam",
        suggested="3; 1 to 7 in the paper",
        source="Liu et al., 2020, arXiv 2007.00151",
        slot="objective",
    )
)
class ELR(RemembersSamples):
    r"""`ELRLoss` in a run: held to what the model said of a sample before it learnt wrong labels.

    $-\log p_y + \lambda \log(1 - \langle T_i, p \rangle)$ with
    $T_i \leftarrow \beta T_i + (1 - \beta) p$ once a step. Batches are mappings that say with
    "index" which samples they hold.

    Source: Liu et al., 2020, arXiv 2007.00151.

    Args:
        beta: How slowly T moves, from 0 to below 1.
        lam: The weight of the term, 0 or above.
        dtype: Of T: "float16", "float32" or "float64".

    Raises:
        InputError: an argument out of its range; at a call, batches without "index".
    """

    def __init__(self, beta: float = 0.7, lam: float = 3.0, dtype: str = "float32") -> None:
        super().__init__()
        self.beta, self.lam = below("beta", beta, 0, 1), between("lam", lam, 0)
        check_storage(dtype, "memory", None)
        self.dtype = dtype

    def make(self, setting: Setting) -> ELRLoss:
        """The loss for a run."""
        return ELRLoss(setting.samples, setting.outputs, self.beta, self.lam, dtype=self.dtype)

    def findings(self, targets: Tensor) -> dict[str, Any]:
        """The samples whose labels are suspected, as `suspects`; see `ELRLoss.suspects`."""
        loss = self.begun()
        assert isinstance(loss, ELRLoss)
        index = loss.suspects(targets)
        rows = loss.memory.rows[index.to(loss.memory.rows.device)].float().cpu()
        guesses, share = rows.argmax(1), rows.amax(1) / rows.sum(1)
        return {
            "suspects": [
                {"index": i, "given": given, "suspected": guess, "confidence": round(sure, 4)}
                for i, given, guess, sure in zip(
                    index.tolist(),
                    targets[index].tolist(),
                    guesses.tolist(),
                    share.tolist(),
                    strict=True,
                )
            ]
        }
