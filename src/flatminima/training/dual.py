"""Dual encoders, of images and texts, by name."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from flatminima.errors import InputError, require
from flatminima.training.built import Built, first_line, read_config, together, write_processor
from flatminima.training.data.encode import Encoding
from flatminima.training.data.examples import Captioned, DataSet
from flatminima.training.prompting import (
    PromptClassifier,
    check_readable,
    prompts_of,
    texts_of,
)
from flatminima.training.vocabulary import make_tokenizer

PROMPTED = "prompts:"
"""Before the name of a dual encoder that is to tell classes by their prompts."""


def _of_width(width: int) -> dict[str, Any]:
    tower = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    return {
        "model_type": "clip",
        "projection_dim": width,
        "text_config": {**tower, "vocab_size": 1000, "max_position_embeddings": 32},
        "vision_config": {**tower, "image_size": 32, "patch_size": 8},
    }


CLIPS: dict[str, dict[str, Any]] = {
    "clip-tiny": _of_width(32),
    "clip-small": _of_width(64),
    "clip-vit-s-16": {
        "model_type": "clip",
        "projection_dim": 512,
        "text_config": {
            "hidden_size": 512,
            "intermediate_size": 2048,
            "num_hidden_layers": 12,
            "num_attention_heads": 8,
            "vocab_size": 49408,
            "max_position_embeddings": 77,
        },
        "vision_config": {
            "hidden_size": 384,
            "intermediate_size": 1536,
            "num_hidden_layers": 12,
            "num_attention_heads": 6,
            "image_size": 224,
            "patch_size": 16,
        },
    },
}
"""Dual encoders by config: random weights, and a tokenizer made from the training texts."""

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the colours of CLIP's training images, by which it takes all images."""


def build_dual(name: str, data: DataSet) -> Built:
    """A dual encoder for images and texts.

    Args:
        name: One of `CLIPS`, a local folder or hub id of a CLIP model, or `config:FILE`.
        data: Its texts make the tokenizer of a model with random weights.

    Raises:
        InputError: no such model, or it is no dual encoder.
    """
    if name in CLIPS:
        return _from_config(copy.deepcopy(CLIPS[name]), name, data)
    if name.startswith("config:"):
        return _from_config(read_config(Path(name.removeprefix("config:"))), name, data)
    if name.startswith((".", "/", "~")) and not Path(name).expanduser().exists():
        raise InputError(f"no such model folder: {name}")
    return _pretrained(name, data)


def build_prompted(name: str, data: DataSet) -> Built:
    """A classifier of images by the prompts of their classes; see `PromptClassifier`.

    Its checkpoints are no folders of transformers: they hold the classifier, by its own names.

    Args:
        name: `prompts:` and a name as of `build_dual`.
        data: Images of classes.

    Raises:
        InputError: as `build_dual`; the data are no images of classes; or the model has random
            weights and the data bring nothing to pretrain it on.
    """
    check_readable(data)
    own = name.removeprefix(PROMPTED)
    random = own in CLIPS or own.startswith("config:")
    if random and not _captions(data):
        raise InputError(
            f"{name!r} has random weights, and {data.name} has no texts to pretrain it on: give a "
            "trained one, such as prompts:openai/clip-vit-base-patch32"
        )
    built = build_dual(own, data)
    model = PromptClassifier(built.model, prompts_of(data, built.encoding))
    encoding = Encoding(**{**vars(built.encoding), "among_own": bool(data.novel)})
    return Built(model, encoding, "transformers", built.random_weights)


def _from_config(settings: dict[str, Any], name: str, data: DataSet) -> Built:
    transformers = require("transformers", "text")
    kind = settings.pop("model_type", None)
    if kind != "clip":
        raise InputError(
            f"the config of {name!r} has the model_type {kind!r}, and images with texts need "
            '"clip", or a trained dual encoder by its folder or hub id'
        )
    text = dict(settings.pop("text_config", {}))
    longest = text.get("max_position_embeddings", 77)
    tokenizer = make_tokenizer(_texts(data), text.pop("vocab_size", 1000), longest)
    text |= {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.cls_token_id,
        # The text is read off at this token.
        "eos_token_id": tokenizer.sep_token_id,
    }
    try:
        config = transformers.CLIPConfig(text_config=text, **settings)
        model = transformers.CLIPModel(config)
    except (ValueError, TypeError) as error:
        raise InputError(f"cannot use the config of {name!r}: {first_line(error)}") from error
    model.config.architectures = [type(model).__name__]
    size = config.vision_config.image_size
    companions = together(
        config.save_pretrained,
        tokenizer.save_pretrained,
        partial(write_processor, size, mean=MEAN, std=STD),
    )
    encoding = Encoding(tokenizer=tokenizer, mean=MEAN, std=STD, size=size, channels=3)
    return Built(model, encoding, "transformers", True, companions)


def _pretrained(name: str, data: DataSet) -> Built:
    transformers = require("transformers", "vision")
    try:
        model = transformers.AutoModel.from_pretrained(name)
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
        processor = transformers.AutoImageProcessor.from_pretrained(name)
    except Exception as error:  # transformers and safetensors raise types of all kinds here
        raise InputError(
            f"cannot load the model {name!r}: {first_line(error)}; give a folder that "
            "save_pretrained wrote, or a hub id while online"
        ) from error
    if not hasattr(model, "logit_scale") or not hasattr(model, "get_text_features"):
        raise InputError(
            f"the model {name!r} is a {type(model).__name__}, and {data.name} needs a dual encoder "
            "of images and texts, such as openai/clip-vit-base-patch32"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    images = Encoding.from_image_processor(processor)
    encoding = Encoding(**{**vars(images), "tokenizer": tokenizer})
    companions = together(
        model.config.save_pretrained, tokenizer.save_pretrained, processor.save_pretrained
    )
    return Built(model, encoding, "transformers", False, companions)


def _captions(data: DataSet) -> list[str]:
    for examples in (data.train, data.source):
        if examples is not None and isinstance(examples.inputs, Captioned):
            return list(examples.inputs.texts)
    return []


def _texts(data: DataSet) -> Iterator[str]:
    """All texts that are trained on, and the prompts, where there are classes."""
    yield from _captions(data)
    if data.classes:
        yield from texts_of(data)
