"""Torch data sets of encoded examples, made batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from flatminima.errors import InputError
from flatminima.training.data import images
from flatminima.training.data.augment import (
    augmented,
    crop_augmentation,
    jitter_augmentation,
    photo_augmentation,
)
from flatminima.training.data.encode import Encoding, Tokenizer
from flatminima.training.data.examples import Captioned, Examples, Images

Batch: TypeAlias = dict[str, Any]
Reader: TypeAlias = Callable[[Sequence[int]], Tensor | dict[str, Tensor]]
"""From positions to the encoded inputs of a batch."""


class Encoded(Dataset[Batch]):
    """Examples that are encoded when asked for, a batch at a time where the loader asks so.

    Args:
        read: Encodes the inputs at some positions.
        examples: Their targets, and their domains where they have some.
        shuffled: Whether a batch of all of them needs to be.
    """

    def __init__(self, read: Reader, examples: Examples, shuffled: bool = True) -> None:
        self.read = read
        self.shuffled = shuffled
        self.targets = torch.from_numpy(examples.targets.copy())
        self.domains = None if examples.domains is None else torch.from_numpy(examples.domains)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Batch:
        """One example, as a batch of one."""
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """The batch at `indices`: what the DataLoader calls, instead of once per example."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        found = {"inputs": self.read(indices), "targets": self.targets[index], "index": index}
        return found if self.domains is None else {**found, "domain": self.domains[index]}


class EncodedPairs(Encoded):
    """Images with texts, which say which image and which text they are."""

    def __init__(self, read: Reader, examples: Examples, pairs: Tensor) -> None:
        super().__init__(read, examples)
        self.pairs = pairs

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """The batch at `indices`."""
        found = super().__getitems__(indices)
        return {**found, "pair": self.pairs[found["index"]]}


def collate(batch: Any) -> Batch:
    """For `DataLoader(collate_fn=...)`: what `Encoded` gives is a whole batch already."""
    whole: Batch = batch
    return whole


def encode_vectors(examples: Examples, encoding: Encoding, shuffled: bool = True) -> Encoded:
    """Feature vectors, normalized."""
    vectors = torch.from_numpy(np.asarray(examples.inputs, dtype=np.float32))
    return Encoded(_Arrays(vectors, encoding, None), examples, shuffled)


def encode_images(
    examples: Examples,
    encoding: Encoding,
    size: int | None,
    *,
    augment: bool,
    novel: Sequence[int] = (),
) -> Encoded:
    """Images of one size, perhaps augmented, then normalized, then perhaps flattened.

    Args:
        examples: Images, or their files or bytes.
        encoding: What the model needs.
        size: Side in pixels; None leaves them as they are.
        augment: Change them at random.
        novel: Classes; where there are some, the model is told whether an image is of one.

    Raises:
        InputError: files are to be augmented, but no size is given.
    """
    images: Any = examples.inputs
    read = _image_reader(images, encoding, size, photo_augmentation if augment else None)
    if novel:
        is_novel = np.isin(examples.targets, np.array(novel))
        return Encoded(_Told(read, torch.from_numpy(is_novel)), examples)
    return Encoded(read, examples)


def _image_reader(
    images: Images,
    encoding: Encoding,
    size: int | None,
    augmentation: Callable[[int], Any] | None,
) -> Reader:
    if isinstance(images, np.ndarray):
        module = None if augmentation is None else jitter_augmentation()
        return _Arrays(torch.from_numpy(images), encoding, size, module)
    if augmentation is not None and size is None:
        raise InputError("augmented images need a size: give one (--image-size)")
    module = augmentation(size) if augmentation is not None and size is not None else None
    files = [item for item in images if isinstance(item, Path | bytes)]
    return _Files(files, encoding, size, module)


def encode_captioned(
    examples: Examples,
    encoding: Encoding,
    size: int | None,
    max_length: int,
    *,
    augment: bool,
) -> EncodedPairs:
    """Images as `pixel_values` and texts as `input_ids` and `attention_mask`.

    Augmented images are cropped and not mirrored: a text may say what is on the left.

    Raises:
        InputError: there is no tokenizer, or files are to be augmented, but no size is given.
    """
    inputs = examples.inputs
    assert isinstance(inputs, Captioned)
    images = _image_reader(inputs.images, encoding, size, crop_augmentation if augment else None)
    tokens = _Tokens(tokenized(inputs.texts, encoding.tokenizer, max_length), encoding.tokenizer)
    return EncodedPairs(_Both(images, tokens), examples, torch.from_numpy(inputs.pairs()))


def encode_texts(examples: Examples, encoding: Encoding, max_length: int) -> Encoded:
    """Texts or pairs of texts as token ids.

    Raises:
        InputError: there is no tokenizer, or it has no padding token.
    """
    tokenizer = encoding.tokenizer
    rows = tokenized(list(examples.inputs), tokenizer, max_length)
    return Encoded(_Tokens(rows, tokenizer), examples)


def tokenized(
    texts: Sequence[Any], tokenizer: Tokenizer | None, max_length: int
) -> list[dict[str, Any]]:
    """What a tokenizer gives for each text or pair of texts.

    Raises:
        InputError: there is no tokenizer, or it has no padding token.
    """
    if tokenizer is None:
        raise InputError("texts need a tokenizer, and this model brings none: choose a text model")
    if tokenizer.pad_token is None:
        raise InputError(
            "the tokenizer has no padding token: set tokenizer.pad_token, for instance to its "
            "eos_token, and the model's config.pad_token_id to match"
        )
    length = max_length
    limit = getattr(tokenizer, "model_max_length", None)
    if isinstance(limit, int):
        length = min(length, limit)
    if not texts:
        return []
    paired = isinstance(texts[0], tuple)
    tokens = tokenizer(
        [text[0] for text in texts] if paired else [str(text) for text in texts],
        [text[1] for text in texts] if paired else None,
        truncation=True,
        max_length=length,
    )
    names = list(tokens)
    return [{name: tokens[name][row] for name in names} for row in range(len(texts))]


class _Arrays:
    def __init__(
        self, arrays: Tensor, encoding: Encoding, size: int | None, augmentation: Any = None
    ) -> None:
        self.arrays = arrays
        self.size = size
        self.augmentation = augmentation
        self.finish = _Finish(encoding)

    def __call__(self, indices: Sequence[int]) -> Tensor:
        whole = len(indices) == len(self.arrays) and list(indices) == list(range(len(indices)))
        batch = self.arrays if whole else self.arrays[torch.as_tensor(indices, dtype=torch.int64)]
        if self.size is not None and batch.shape[-2:] != (self.size, self.size):
            batch = nn.functional.interpolate(
                batch, (self.size, self.size), mode="bilinear", antialias=True
            )
        if self.augmentation is not None:
            batch = augmented(self.augmentation, batch)
        return self.finish(batch)


class _Files:
    def __init__(
        self,
        files: Sequence[Path | bytes],
        encoding: Encoding,
        size: int | None,
        augmentation: Any,
    ) -> None:
        self.files = files
        self.size = size
        self.augmentation = augmentation
        self.finish = _Finish(encoding)

    def __call__(self, indices: Sequence[int]) -> Tensor:
        decoded = [self._read(self.files[index]) for index in indices]
        shapes = sorted({tuple(image.shape[1:]) for image in decoded})
        if len(shapes) > 1:
            (height, width), (other_height, other_width) = shapes[0], shapes[-1]
            raise InputError(
                f"the images differ in size ({height} x {width} and {other_height} x "
                f"{other_width} pixels), and neither the user nor the model says which one to "
                "use: give a size (--image-size)"
            )
        return self.finish(torch.stack(decoded))

    def _read(self, file: Path | bytes) -> Tensor:
        try:
            image = images.decode(file)
        except OSError as error:
            raise InputError(
                f"an image that was sound before the run cannot be read any more ({error}): "
                "bring the file back"
            ) from error
        if self.augmentation is None or self.size is None:
            return torch.from_numpy(images.pixels(images.resize(image, self.size)))
        # Twice the final side leaves a crop its detail; this first scaling is the anti-aliased one.
        large = torch.from_numpy(images.pixels(images.shrink(image, 2 * self.size)))
        return augmented(self.augmentation, large[None])[0]


class _Tokens:
    def __init__(self, rows: Sequence[Mapping[str, Any]], tokenizer: Tokenizer | None) -> None:
        assert tokenizer is not None
        self.rows = rows
        self.tokenizer = tokenizer

    def __call__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        padded = self.tokenizer.pad([self.rows[index] for index in indices], return_tensors="pt")
        return dict(padded)


class _Both:
    """An image and a text, by the names that dual encoders of transformers call them."""

    def __init__(self, images: Reader, tokens: _Tokens) -> None:
        self.images = images
        self.tokens = tokens

    def __call__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        texts = self.tokens(indices)
        pixels = self.images(indices)
        assert isinstance(pixels, Tensor)
        return {"pixel_values": pixels, **{name: texts[name] for name in READ}}


READ = ("input_ids", "attention_mask")
"""Of what a tokenizer gives, that which every dual encoder takes."""


class _Told:
    """Images, and of each whether its class is novel."""

    def __init__(self, images: Reader, novel: Tensor) -> None:
        self.images = images
        self.novel = novel

    def __call__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        pixels = self.images(indices)
        assert isinstance(pixels, Tensor)
        return {"pixel_values": pixels, "novel": self.novel[list(indices)]}


class _Finish:
    """The last steps: channels, normalization, flattening."""

    def __init__(self, encoding: Encoding) -> None:
        self.channels = encoding.channels
        self.flatten = encoding.flatten
        self.mean = None if encoding.mean is None else torch.tensor(encoding.mean)
        self.std = None if encoding.std is None else torch.tensor(encoding.std)

    def __call__(self, batch: Tensor) -> Tensor:
        if batch.ndim == 4:
            batch = self._with_channels(batch)
        if self.mean is not None and self.std is not None:
            if len(self.mean) not in (1, batch.shape[1]):
                raise InputError(
                    f"the encoding has {len(self.mean)} means for {batch.shape[1]} channels: "
                    "give one, or one per channel"
                )
            shape = (1, -1) + (1,) * (batch.ndim - 2)
            batch = (batch - self.mean.view(shape)) / self.std.view(shape)
        return batch.flatten(1) if self.flatten else batch

    def _with_channels(self, batch: Tensor) -> Tensor:
        if self.channels in (None, batch.shape[1]):
            return batch
        if batch.shape[1] == 1:
            return batch.repeat(1, int(self.channels or 1), 1, 1)
        if self.channels == 1:
            return batch.mean(dim=1, keepdim=True)
        raise InputError(
            f"the model takes {self.channels} channels and the images have {batch.shape[1]}: "
            "choose a model that fits"
        )
