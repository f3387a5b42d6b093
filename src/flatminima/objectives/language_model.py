"""The loss of a language model on what follows a prompt."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from flatminima.cards import Card
from flatminima.errors import InputError
from flatminima.objectives.cross_entropy import NONE
from flatminima.objectives.registry import register
from flatminima.objectives.supervised import Batch, inputs_and_targets, logits

MASKED = -100
"""The target of a position that does not count, as transformers has it."""


@register(
    Card(
        name="language-model",
        title="Language-model loss",
        equation="mean_t -log p(y_t | y_<t, x)",
        gradients="1",
        buffers=NONE,
        strength="",
        suggested="",
        source="maximum likelihood of the continuation, prompts masked",
        slot="objective",
        aliases=("lm",),
        tasks=("rationales",),
    )
)
class LanguageModel:
    r"""$\frac1n \sum_i \frac{1}{T_i} \sum_t -\log p(y_{i,t} \mid y_{i,<t}, x_i)$, nats a token.

    The mean over a sample's tokens that count, then over samples: so a batch's loss is the mean of
    its parts' losses whatever their lengths, as micro-batches, shares of a step and curvature
    measures need it. The loss that transformers models return is the mean over all tokens of the
    batch instead, which gives long samples more weight; the two agree where lengths do.
    """

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss of `model` on `batch`, a scalar tensor.

        Args:
            model: Gives logits (samples, positions, vocabulary), or an output that carries them.
            batch: Its targets, int64 (samples, positions), are the token that each position is to
                predict, so already shifted; -100 where none counts.

        Raises:
            InputError: the logits do not fit the targets.
        """
        inputs, targets = inputs_and_targets(batch)
        predicted = logits(model, inputs)
        if predicted.dim() != 3 or predicted.shape[:2] != targets.shape:
            raise InputError(
                f"the model gives logits of shape {tuple(predicted.shape)} for targets of shape "
                f"{tuple(targets.shape)}: language-model needs (samples, positions, vocabulary) "
                "for (samples, positions)"
            )
        each = cross_entropy(
            predicted.transpose(1, 2), targets, ignore_index=MASKED, reduction="none"
        )
        counted = (targets != MASKED).sum(dim=1).clamp_min(1)
        return (each.sum(dim=1) / counted).mean()
