"""What a model needs of its inputs, and examples encoded that way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from flatminima.errors import InputError
from flatminima.training.data.examples import Captioned, DataSet, Examples

if TYPE_CHECKING:
    from flatminima.training.data.encoded import Encoded


class Tokenizer(Protocol):
    """What is used of a tokenizer of transformers."""

    pad_token: Any

    def __call__(
        self,
        text: list[str],
        text_pair: list[str] | None = None,
        *,
        truncation: bool,
        max_length: int,
    ) -> Mapping[str, Sequence[Any]]:
        """Token ids and masks of each text."""

    def pad(self, encoded_inputs: Sequence[Mapping[str, Any]], *, return_tensors: str) -> Any:
        """Texts of different lengths as tensors of one length."""


@dataclass(frozen=True)
class Encoding:
    """What the model expects; the model's side fills it in.

    Attributes:
        tokenizer: For texts.
        mean: Subtracted from each channel (images in [0, 1]) or feature; one value serves all.
        std: Then divided by.
        size: Side of the square images, in pixels; `image_size` of the data spec overrules it.
        channels: Of the images; a gray image is repeated to fill 3. None: as they are.
        flatten: Give one vector per example, as a multilayer perceptron takes.
        decoder_start: The token that the decoder of an encoder-decoder model begins with; None for
            other models.
        among_own: Tell the model of each image whether its class is novel, as `PromptClassifier`
            wants to know.
    """

    tokenizer: Tokenizer | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: int | None = None
    channels: int | None = None
    flatten: bool = False
    decoder_start: int | None = None
    among_own: bool = False

    @classmethod
    def from_image_processor(cls, processor: Any, *, channels: int | None = 3) -> Encoding:
        """Take mean, standard deviation and size from an image processor of transformers."""
        normalize = bool(getattr(processor, "do_normalize", True))
        mean = getattr(processor, "image_mean", None) if normalize else None
        std = getattr(processor, "image_std", None) if normalize else None
        return cls(
            mean=None if mean is None else tuple(float(value) for value in mean),
            std=None if std is None else tuple(float(value) for value in std),
            size=_side(getattr(processor, "crop_size", None))
            or _side(getattr(processor, "size", None)),
            channels=channels,
        )


def encode(
    examples: Examples,
    dataset: DataSet,
    encoding: Encoding | None = None,
    *,
    augment: bool = False,
) -> Encoded:
    """Make a torch data set of one part of `dataset`, to be batched with `collate`.

        part = encode(dataset.train, dataset, encoding, augment=True)
        DataLoader(part, batch_size=32, collate_fn=collate)

    yields {"inputs": float tensor (b, ...) or dict of tensors, "targets": int64 (b,), "index":
    int64 (b,)}, the index being the position in `examples`. Texts are tokenized here, once, and
    padded to the longest of their batch. Files of images are decoded when asked for. Images with
    texts are a mapping of both, and the batch has "pair" too, int64 (b, 2): which image and which
    text of `examples` each is, whatever the batch.

    Args:
        examples: One of the parts of `dataset`.
        dataset: Says what the inputs are, and what the user asked for.
        encoding: What the model needs.
        augment: Apply the augmentation that the data spec names: True for training only. It draws
            from torch's global generator, so a run resumed with its state sees the same images.

    Raises:
        InputError: texts without a tokenizer or padding token, images without a size, channels that
            do not fit, or a package that is not installed.
    """
    from flatminima.training.data.encoded import (
        encode_captioned,
        encode_images,
        encode_texts,
        encode_vectors,
    )

    encoding = encoding or Encoding()
    if dataset.task == "rationales":
        from flatminima.training.data.asked import encode_rationales

        return encode_rationales(examples, encoding, dataset.spec.max_length)
    augment = augment and dataset.spec.augment == "standard"
    size = dataset.spec.image_size or encoding.size
    if dataset.kind == "text":
        return encode_texts(examples, encoding, dataset.spec.max_length)
    if (encoding.mean is None) != (encoding.std is None):
        raise InputError("an encoding with a mean needs a std, and the reverse: give both")
    if encoding.std is not None and min(encoding.std) <= 0:
        raise InputError(f"the std of an encoding is {encoding.std}: it must be positive")
    if isinstance(examples.inputs, Captioned):
        return encode_captioned(examples, encoding, size, dataset.spec.max_length, augment=augment)
    if dataset.kind in ("vector", "measurement"):
        return encode_vectors(examples, encoding, shuffled=dataset.kind == "vector")
    novel = dataset.novel if encoding.among_own else ()
    return encode_images(examples, encoding, size, augment=augment, novel=novel)


def _side(size: Any) -> int | None:
    if size is None or isinstance(size, int):
        return size
    for name in ("height", "shortest_edge"):
        value = size.get(name) if isinstance(size, Mapping) else getattr(size, name, None)
        if value is not None:
            return int(value)
    return None
