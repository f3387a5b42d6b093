"""Classes as texts: a dual encoder as a classifier of images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from flatminima.errors import InputError
from flatminima.training.data.encode import Encoding
from flatminima.training.data.encoded import READ, tokenized
from flatminima.training.data.examples import DataSet

USUAL = "a photo of a {}."
"""The prompt of a class, where the data bring none."""

ELSEWHERE = -1e4
"""The logit of a class that an image is not to be compared with: probability 0."""


@dataclass(frozen=True, eq=False)
class Prompts:
    """A text for each class.

    Attributes:
        tokens: `input_ids` and `attention_mask`, int64, shape (classes, longest).
        novel: Which classes are not trained on, bool, shape (classes,).
    """

    tokens: dict[str, Tensor]
    novel: Tensor

    def features(self, model: nn.Module, device: torch.device) -> Tensor:
        """The prompts' features, of length 1, shape (classes, d)."""
        tokens = {name: part.to(device) for name, part in self.tokens.items()}
        own: Any = model
        found = own.get_text_features(**tokens)
        # Transformers 5 gives the whole output of the tower, 4 the features alone.
        features = found if isinstance(found, Tensor) else found.pooler_output
        return normalize(features.float(), dim=-1)


def texts_of(data: DataSet) -> tuple[str, ...]:
    """The prompt of each class: the data's own, or the usual one."""
    return data.prompts or tuple(USUAL.format(name.replace("_", " ")) for name in data.classes)


def prompts_of(data: DataSet, encoding: Encoding) -> Prompts:
    """The prompts of a data set's classes, as a model reads them.

    Raises:
        InputError: the model brings no tokenizer.
    """
    tokenizer = encoding.tokenizer
    rows = tokenized(texts_of(data), tokenizer, data.spec.max_length)
    assert tokenizer is not None
    padded = tokenizer.pad(rows, return_tensors="pt")
    return Prompts({name: padded[name] for name in READ}, novel_mask(data))


def novel_mask(data: DataSet) -> Tensor:
    """Which classes are novel, bool, shape (classes,)."""
    mask = torch.zeros(len(data.classes), dtype=torch.bool)
    mask[list(data.novel)] = True
    return mask


class PromptClassifier(nn.Module):
    """Logits of classes: the scale times the cosine of an image and each class's prompt.

    Both encoders are trained, or what a reparametrization leaves free of them, the prompts are
    not. So tuned, classes can be told apart that were never trained on.

    Args:
        clip: A dual encoder of transformers.
        prompts: Of the classes.
    """

    def __init__(self, clip: nn.Module, prompts: Prompts) -> None:
        super().__init__()
        self.clip = clip
        # They are made anew from the data, and no part of what is trained.
        for name, tokens in prompts.tokens.items():
            self.register_buffer(name, tokens, persistent=False)
        self.register_buffer("novel", prompts.novel, persistent=False)
        self.novel: Tensor

    def forward(self, pixel_values: Tensor, novel: Tensor | None = None) -> Tensor:
        """The logits, shape (images, classes).

        Args:
            pixel_values: Images, shape (images, channels, side, side).
            novel: Whether the class of each is novel, bool, shape (images,): it is then compared
                with such classes only, and with the base classes otherwise. Default: with all.
        """
        tokens = {name: getattr(self, name) for name in READ}
        found: Tensor = self.clip(pixel_values=pixel_values, **tokens).logits_per_image
        if novel is None:
            return found
        return found.masked_fill(novel[:, None] != self.novel, ELSEWHERE)


def check_readable(data: DataSet) -> None:
    """Refuse to make prompts of what has no names.

    Raises:
        InputError: the data are no images of classes.
    """
    if data.kind != "image" or not data.classes:
        raise InputError(
            f"prompts are texts for classes of images, and {data.name} holds {data.kind}s: use a "
            "model without prompts:"
        )
