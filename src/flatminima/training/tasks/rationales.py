"""An answer after its reasons, in a language model's own words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from flatminima.objectives import LanguageModel
from flatminima.training.data.answers import normalized, parse
from flatminima.training.data.asked import Asked
from flatminima.training.data.device import to_device
from flatminima.training.tasks.task import Saw, Task, evaluating


@dataclass(frozen=True)
class Reply:
    """What a model wrote.

    Attributes:
        question: What it was asked.
        text: What it wrote.
        answer: Read off the text, normalized; None where it gave none.
        wanted: The right answer, normalized.
    """

    question: str
    text: str
    answer: str | None
    wanted: str


class Rationales(Task):
    """Scored by the answers that a model writes, greedily, and by the loss of the given ones.

    `accuracy` is the part of the samples whose answer, as `parse` reads it off the generated text,
    is the right one, and `answered` the part from which an answer could be read. `loss` is that of
    `LanguageModel` on the rationales and answers of the data set, in nats a token.
    """

    name = "rationales"
    objective = "language-model"
    metrics = ("accuracy", "loss", "answered")
    goal = "accuracy"
    loss = LanguageModel()

    def score(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        device: torch.device,
        saw: Saw | None = None,
    ) -> Mapping[str, float]:
        """See `Task.score`; `saw` is told a list of `Reply`.

        Cost: a forward pass, and one for each token generated, up to `Asked.new_tokens`.
        """
        loss = right = answered = samples = 0.0
        with evaluating(model):
            for batch in batches:
                batch = to_device(batch, device)
                replies = replies_of(model, batch["asked"])
                if saw is not None:
                    saw(replies)
                loss += self.loss(model, batch).item() * len(replies)
                right += sum(reply.answer == reply.wanted for reply in replies)
                answered += sum(reply.answer is not None for reply in replies)
                samples += len(replies)
        return {
            "accuracy": right / samples,
            "loss": loss / samples,
            "answered": answered / samples,
        }


def replies_of(model: nn.Module, asked: Asked) -> list[Reply]:
    """What a transformers model writes to each question, always its most probable token."""
    model_: Any = model
    tokenizer = asked.tokenizer
    written = model_.generate(
        **asked.prompts,
        max_new_tokens=asked.new_tokens,
        do_sample=False,
        num_beams=1,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    if not model_.config.is_encoder_decoder:
        written = written[:, asked.prompts["input_ids"].shape[1] :]
    texts = tokenizer.batch_decode(written, skip_special_tokens=True)
    triples = zip(asked.questions, texts, asked.answers, strict=True)
    return [Reply(q, text, parse(text, a), normalized(a)) for q, text, a in triples]
