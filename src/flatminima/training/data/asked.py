"""Questions with rationales as token ids: what is trained on, and what a model is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from flatminima.errors import InputError
from flatminima.objectives.language_model import MASKED
from flatminima.training.data.answers import completion, prompt
from flatminima.training.data.encode import Encoding
from flatminima.training.data.encoded import Batch, Encoded
from flatminima.training.data.examples import Examples


@dataclass(frozen=True)
class Asked:
    """The questions of a batch, ready to be answered.

    Attributes:
        questions: As the data set has them.
        answers: That are right.
        prompts: Token ids and attention mask, (samples, tokens) each; padded on the left for a
            model that continues them, on the right for one that reads them with an encoder.
        new_tokens: The most that a model may write.
        tokenizer: Of the model.
    """

    questions: tuple[str, ...]
    answers: tuple[str, ...]
    prompts: dict[str, Tensor]
    new_tokens: int
    tokenizer: Any

    def to(self, device: torch.device, non_blocking: bool = False) -> Asked:
        """The same with the prompts on a device."""
        moved = {k: v.to(device, non_blocking=non_blocking) for k, v in self.prompts.items()}
        return replace(self, prompts=moved)


def encode_rationales(examples: Examples, encoding: Encoding, max_length: int) -> Encoded:
    """Triples (question, rationale, answer) for a causal or an encoder-decoder language model.

    A batch has "inputs", the arguments of the model; "targets", int64 (samples, positions), the
    token to predict at each position, -100 within the prompt and the padding; and "asked", what
    `Asked` says. The text is `prompt` and then `completion` and the tokenizer's end of sequence.

    Args:
        examples: Inputs are triples.
        encoding: Has the tokenizer, and where a decoder of its own starts.
        max_length: Most tokens of question, rationale and answer together; of an encoder-decoder
            model, of each side.

    Raises:
        InputError: there is no tokenizer, it has no end of sequence or no padding, or a text is
            longer than `max_length`: its end would be the answer.
    """
    return _Encoded(_Rationales(examples, encoding, max_length), examples)


class _Encoded(Encoded):
    """Reads targets too: they are tokens of the inputs."""

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        batch = super().__getitems__(indices)
        return {**batch, **batch["inputs"]}


class _Rationales:
    def __init__(self, examples: Examples, encoding: Encoding, max_length: int) -> None:
        tokenizer: Any = encoding.tokenizer
        if tokenizer is None:
            raise InputError("rationales need a tokenizer, and this model brings none")
        if tokenizer.eos_token_id is None or tokenizer.pad_token_id is None:
            raise InputError(
                "rationales need a tokenizer with an end of sequence and a padding token: set "
                "tokenizer.eos_token and tokenizer.pad_token"
            )
        self.tokenizer = tokenizer
        self.start = encoding.decoder_start
        self.triples = cast(Sequence[tuple[str, str, str]], examples.inputs)
        self.prompts = self._ids([prompt(question) for question, _, _ in self.triples], True)
        written = [completion(rationale, answer) for _, rationale, answer in self.triples]
        self.completions = [
            [*ids, tokenizer.eos_token_id] for ids in self._ids(written, special=False)
        ]
        longest = min(max_length, int(getattr(tokenizer, "model_max_length", max_length)))
        self._check(longest)
        used = max(map(len, self.prompts), default=0) if self.start is None else 0
        self.new_tokens = longest - used

    def _ids(self, texts: list[str], special: bool) -> list[list[int]]:
        if not texts:
            return []
        found: list[list[int]] = self.tokenizer(texts, add_special_tokens=special)["input_ids"]
        return found

    def _check(self, longest: int) -> None:
        pairs = list(zip(self.prompts, self.completions, strict=True))
        lengths = [len(p) + len(c) if self.start is None else max(len(p), len(c)) for p, c in pairs]
        over = sum(length > longest for length in lengths)
        if over:
            raise InputError(
                f"{over} of {len(lengths)} rationales have more than {longest} tokens (the longest "
                f"{max(lengths)}), and the answer stands at the end: raise --max-length as far as "
                "the model allows, or leave them out"
            )

    def __call__(self, indices: Sequence[int]) -> dict[str, Any]:
        prompts = [self.prompts[index] for index in indices]
        completions = [self.completions[index] for index in indices]
        pairs = list(zip(prompts, completions, strict=True))
        if self.start is None:
            whole = [p + c for p, c in pairs]
            inputs = self._masked([tokens[:-1] for tokens in whole])
            targets = [[MASKED] * (len(p) - 1) + c for p, c in pairs]
        else:
            inputs = self._masked(prompts)
            shifted = [[self.start, *c[:-1]] for c in completions]
            inputs["decoder_input_ids"] = padded(shifted, self.tokenizer.pad_token_id)
            targets = completions
        return {
            "inputs": inputs,
            "targets": padded(targets, MASKED),
            "asked": Asked(
                tuple(self.triples[index][0] for index in indices),
                tuple(self.triples[index][2] for index in indices),
                self._masked(prompts, left=self.start is None),
                self.new_tokens,
                self.tokenizer,
            ),
        }

    def _masked(self, rows: list[list[int]], left: bool = False) -> dict[str, Tensor]:
        return {
            "input_ids": padded(rows, self.tokenizer.pad_token_id, left),
            "attention_mask": padded([[1] * len(row) for row in rows], 0, left),
        }


def padded(rows: list[list[int]], value: int, left: bool = False) -> Tensor:
    """Rows of one length, int64, filled up with `value` on one side."""
    longest = max(map(len, rows), default=0)
    fill = [[value] * (longest - len(row)) for row in rows]
    whole = [f + row if left else row + f for f, row in zip(fill, rows, strict=True)]
    return torch.tensor(whole, dtype=torch.int64)
