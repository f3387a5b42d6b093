"""The networks of `steps.py`: random weights, random data, a base optimizer for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.optim import Optimizer

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Task:
    """A network and what it is trained on.

    Attributes:
        title: What the docs call it.
        batch_size: The default.
        build: The network, whose output has a loss.
        batch: Random samples, that many.
        base: The class of its base optimizer.
        settings: What the base optimizer is built with; the learning rate is next to nothing, since
            all contenders step the same weights.
    """

    title: str
    batch_size: int
    build: Callable[[], nn.Module]
    batch: Callable[[int], Batch]
    base: type[Optimizer]
    settings: dict[str, Any]

    def optimizer(self, parameters: Iterable[Any]) -> Optimizer:
        """The base optimizer."""
        return self.base(parameters, **self.settings)


def _classes(samples: int, classes: int) -> Tensor:
    return torch.randint(0, classes, (samples,))


def _images(side: int, classes: int) -> Callable[[int], Batch]:
    def batch(samples: int) -> Batch:
        pixels = torch.randn(samples, 3, side, side)
        return {"pixel_values": pixels, "labels": _classes(samples, classes)}

    return batch


def _sentences(length: int, classes: int) -> Callable[[int], Batch]:
    def batch(samples: int) -> Batch:
        return {
            "input_ids": torch.randint(0, 30522, (samples, length)),
            "attention_mask": torch.ones(samples, length, dtype=torch.long),
            "labels": _classes(samples, classes),
        }

    return batch


def _text(length: int) -> Callable[[int], Batch]:
    def batch(samples: int) -> Batch:
        tokens = torch.randint(0, 50257, (samples, length))
        return {"input_ids": tokens, "labels": tokens.clone()}

    return batch


def _resnet18() -> nn.Module:
    config = transformers.ResNetConfig(
        embedding_size=64,
        hidden_sizes=[64, 128, 256, 512],
        depths=[2, 2, 2, 2],
        layer_type="basic",
        num_labels=10,
    )
    return transformers.ResNetForImageClassification(config)


def _resnet50() -> nn.Module:
    return transformers.ResNetForImageClassification(transformers.ResNetConfig(num_labels=1000))


def _bert() -> nn.Module:
    config = transformers.BertConfig(
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
        num_labels=10,
    )
    return transformers.BertForSequenceClassification(config)


def _vit() -> nn.Module:
    config = transformers.ViTConfig(
        hidden_size=384,
        num_attention_heads=6,
        intermediate_size=1536,
        image_size=128,
        num_labels=10,
    )
    return transformers.ViTForImageClassification(config)


def _gpt2() -> nn.Module:
    return transformers.GPT2LMHeadModel(transformers.GPT2Config())


def _gpt2_medium() -> nn.Module:
    config = transformers.GPT2Config(n_embd=1024, n_layer=24, n_head=16)
    return transformers.GPT2LMHeadModel(config)


_SGD: dict[str, Any] = {"lr": 1e-7, "momentum": 0.9, "weight_decay": 1e-4}
_ADAMW: dict[str, Any] = {"lr": 1e-9, "weight_decay": 0.01}

TASKS = {
    "resnet-18": Task(
        "ResNet-18, 64 x 64 images", 32, _resnet18, _images(64, 10), torch.optim.SGD, _SGD
    ),
    "bert-23m": Task(
        "BERT of 23 M weights, 64 tokens", 16, _bert, _sentences(64, 10), torch.optim.AdamW, _ADAMW
    ),
    "vit-small": Task(
        "ViT-small, 128 x 128 images", 8, _vit, _images(128, 10), torch.optim.AdamW, _ADAMW
    ),
    "gpt2-small": Task("GPT-2-small, 128 tokens", 4, _gpt2, _text(128), torch.optim.AdamW, _ADAMW),
}
