"""Images and texts that fit each other: the loss of CLIP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from flatminima.arguments import above, truth
from flatminima.cards import Card
from flatminima.errors import InputError
from flatminima.objectives.cross_entropy import NONE
from flatminima.objectives.gathering import gathered
from flatminima.objectives.registry import register
from flatminima.objectives.supervised import Batch


@register(
    Card(
        name="contrastive",
        title="Contrastive loss of images and texts",
        equation="(CE(s I T', own) + CE(s T I', own)) / 2",
        gradients="1",
        buffers=NONE,
        strength="",
        suggested="",
        source="Radford et al., 2021 (CLIP), arXiv 2103.00020",
        slot="objective",
        aliases=("clip", "info-nce"),
        tasks=("contrastive",),
    )
)
class Contrastive:
    r"""Symmetric InfoNCE: each image is to find its text among those of the batch, and the reverse.

        L = -\frac{1}{2n} \sum_i \Big( \log \frac{e^{s\, a_i \cdot b_i}}{\sum_j e^{s\, a_i \cdot
        b_j}} + \log \frac{e^{s\, a_i \cdot b_i}}{\sum_j e^{s\, a_j \cdot b_i}} \Big)

    with $a_i$, $b_i$ the features of image and text i, of length 1, and s the model's learned
    scale, e to its `logit_scale`, held at most at `most_scale`.

    Every other sample of the batch is a negative, also one that has the same text. With `gather`
    the negatives are those of all processes (see `gathered`), so n processes do what one would with
    the whole batch; all must then run as many forward passes. **The loss is that of a batch, not a
    mean over samples**: it grows with the number of negatives, about as log n where features tell
    nothing. So under micro-batches, and in the halves of one-pass NSO, the negatives are those of
    the part alone, which is another loss; and what is measured of it, its curvature too, is of the
    batches that it is measured on, as they are cut, each counting as often as it has samples.

    Source: Radford et al., Learning Transferable Visual Models From Natural Language Supervision,
    2021, arXiv 2103.00020.

    Args:
        gather: Whether other processes' samples are negatives too.
        most_scale: Bound on s; 100 as in CLIP's training.

    Raises:
        InputError: a scale that is not above 0.
    """

    def __init__(self, gather: bool = True, most_scale: float = 100.0) -> None:
        self.gather = truth("gather", gather)
        self.most_scale = above("most_scale", most_scale)

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss of `model` on `batch`, a scalar tensor."""
        images, texts, scale = embeddings(model, batch)
        return self.of(images, texts, scale)

    def of(self, images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
        """The loss of features.

        Args:
            images: Shape (n, d), of length 1.
            texts: As many.
            scale: s, a scalar.
        """
        scale = scale.clamp(max=self.most_scale)
        all_images, first = gathered(images) if self.gather else (images, 0)
        all_texts, _ = gathered(texts) if self.gather else (texts, 0)
        own = torch.arange(first, first + len(images), device=images.device)
        to_text = cross_entropy(scale * images @ all_texts.T, own)
        to_image = cross_entropy(scale * texts @ all_images.T, own)
        return (to_text + to_image) / 2


def embeddings(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """The features of images and texts, float32 or finer, and the scale of their products.

    Args:
        model: Takes the batch's inputs by name and gives `image_embeds` and `text_embeds`, as dual
            encoders of transformers do; has a parameter `logit_scale`, the scale's logarithm.
        batch: A mapping with "inputs": `pixel_values`, `input_ids`, `attention_mask`, ...

    Returns:
        Two tensors of shape (samples, d) whose rows have length 1, and a scalar.

    Raises:
        InputError: the model or the batch is of another kind.
    """
    inputs: Any = batch.get("inputs", batch) if isinstance(batch, Mapping) else None
    if not isinstance(inputs, Mapping):
        raise InputError(
            f"the batch is a {type(batch).__name__}, and images with texts are a mapping: give "
            '{"inputs": {"pixel_values": ..., "input_ids": ..., "attention_mask": ...}}'
        )
    outputs = model(**inputs)
    images = getattr(outputs, "image_embeds", None)
    texts = getattr(outputs, "text_embeds", None)
    if not isinstance(images, Tensor) or not isinstance(texts, Tensor):
        raise InputError(
            f"the model returned {type(outputs).__name__}, without image_embeds and text_embeds: "
            "give a dual encoder, such as transformers.CLIPModel"
        )
    # By its name, since other libraries wrap models in modules of their own.
    named = (p for name, p in model.named_parameters() if name.split(".")[-1] == "logit_scale")
    log_scale = next(named, None)
    if log_scale is None:
        raise InputError("the model has no parameter logit_scale, which a dual encoder learns")
    exact = torch.promote_types(images.dtype, torch.float32)
    rows = [normalize(part.to(exact), dim=-1) for part in (images, texts)]
    return rows[0], rows[1], log_scale.to(exact).exp()
