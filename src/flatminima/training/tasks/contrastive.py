"""Images and texts that fit each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flatminima.objectives import Contrastive
from flatminima.objectives.contrastive import embeddings
from flatminima.training.data.device import to_device
from flatminima.training.data.encode import Encoding
from flatminima.training.data.examples import DataSet
from flatminima.training.prompting import Prompts, prompts_of
from flatminima.training.tasks.base_to_novel import by_novelty
from flatminima.training.tasks.task import Saw, Task, evaluating

RANKS = (1, 5, 10)
"""The k of recall@k."""

DIRECTIONS = ("image_to_text", "text_to_image")


@dataclass(frozen=True, eq=False)
class ImagesAndTexts(Task):
    """Scored by finding, among all texts of a part of the data, one that fits an image; and back.

    `image_to_text_at_5` is the part of the images with a text that fits among the 5 most similar
    texts, and so on for 1, 5, 10 and `text_to_image`; `recall` is the mean of the six. A text that
    several images have is one text, and fits each of them; so is an image with several texts. Of
    equal similarities those that do not fit come first, so features that tell nothing find nothing.

    `loss` is the contrastive loss of the batches, which depends on their size, each counting as
    often as it has samples. Where the data have classes, `accuracy` is the part of the images whose
    class has the most similar prompt of all classes' (zero-shot); `accuracy_base` and
    `accuracy_novel` are that of images whose class is in the training set or is not, both among all
    classes, and `accuracy_harmonic` their harmonic mean.

    Attributes:
        prompts: Of the classes, encoded; None where there are none.
    """

    name = "contrastive"
    objective = "contrastive"
    metrics = ("recall", "loss", *(f"{way}_at_{k}" for way in DIRECTIONS for k in RANKS))
    goal = "recall"
    # Each process scores by itself, and none may wait for another.
    loss = Contrastive(gather=False)

    prompts: Prompts | None = None

    def read_by(self, data: DataSet, encoding: Encoding) -> Task:
        """See `Task.read_by`."""
        if not data.classes:
            return self
        return ImagesAndTexts(prompts_of(data, encoding))

    def score(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        device: torch.device,
        saw: Saw | None = None,
    ) -> Mapping[str, float]:
        """See `Task.score`; the similarities of all images and texts are computed in parts."""
        images, texts, pairs, targets = [], [], [], []
        total = samples = 0.0
        with evaluating(model):
            for batch in batches:
                of_images, of_texts, scale = embeddings(model, to_device(batch, device))
                total += self.loss.of(of_images, of_texts, scale).item() * len(of_images)
                samples += len(of_images)
                images.append(of_images)
                texts.append(of_texts)
                pairs.append(batch["pair"])
                targets.append(batch["targets"])
            found = {
                "loss": total / samples,
                **recalls(torch.cat(images), torch.cat(texts), torch.cat(pairs).to(device)),
            }
            if self.prompts is not None:
                predicted = self._zero_shot(model, torch.cat(images))
                right = predicted == torch.cat(targets)
                found |= by_novelty(right, torch.cat(targets), self.prompts.novel)
        return found

    def _zero_shot(self, model: nn.Module, images: Tensor) -> Tensor:
        """The class whose prompt is most similar to each image, on the CPU."""
        assert self.prompts is not None
        features = self.prompts.features(model, images.device).to(images.dtype)
        return (images @ features.T).argmax(dim=1).cpu()


CHUNK = 1024
"""Images or texts that are compared with all others at once."""


def recalls(images: Tensor, texts: Tensor, pairs: Tensor) -> dict[str, float]:
    """recall@1, 5 and 10 both ways, and their mean.

    Args:
        images: Features of length 1, shape (n, d).
        texts: As many.
        pairs: Which image and which text each row has, int64, shape (n, 2); equal numbers are the
            same image or text, of which the first features count.
    """
    one_image, image = _first_of_each(pairs[:, 0])
    one_text, text = _first_of_each(pairs[:, 1])
    images, texts = images[one_image], texts[one_text]
    fits = torch.zeros(len(images), len(texts), dtype=torch.bool, device=images.device)
    fits[image, text] = True
    found = {}
    for way, queries, others, fit in zip(
        DIRECTIONS, (images, texts), (texts, images), (fits, fits.T), strict=True
    ):
        ahead = torch.cat(
            [
                _ahead(queries[i : i + CHUNK] @ others.T, fit[i : i + CHUNK])
                for i in range(0, len(queries), CHUNK)
            ]
        )
        for k in RANKS:
            found[f"{way}_at_{k}"] = (ahead < k).double().mean().item()
    return {"recall": sum(found.values()) / len(found), **found}


def _first_of_each(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Where each number is first, and for each place which of these it is."""
    _, places = torch.unique(numbers, return_inverse=True)
    first = torch.full((int(places.max()) + 1,), len(numbers), device=numbers.device)
    first.scatter_reduce_(0, places, torch.arange(len(numbers), device=numbers.device), "amin")
    return first, places


def _ahead(similar: Tensor, fits: Tensor) -> Tensor:
    """How many that do not fit are as similar as the best that does, for each row."""
    best = similar.masked_fill(~fits, -torch.inf).amax(dim=1, keepdim=True)
    return ((similar >= best) & ~fits).sum(dim=1)
