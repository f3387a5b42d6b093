"""The trained networks that the libraries measure: a residual one and a transformer, both small."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

TRAINING, BATCH = 1200, 64
"""Digits to train on, and samples of a batch."""


@dataclass(frozen=True)
class Subject:
    """A trained network in evaluation mode, and the batches that its mean loss is over."""

    name: str
    model: nn.Module
    batches: list[tuple[Tensor, Tensor]]
    accuracy: float
    loss: float

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.skip = (
            nn.Identity()
            if inputs == outputs
            else nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.skip(x))


def resnet() -> nn.Module:
    """Three residual blocks of 16, 32 and 64 channels with BatchNorm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 1, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        Block(16, 16, 1),
        Block(16, 32, 2),
        Block(32, 64, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


class Transformer(nn.Module):
    """BERT from its config, two layers of width 48, GELU; token numbers to class scores."""

    def __init__(self) -> None:
        super().__init__()
        config = BertConfig(
            vocab_size=66,
            hidden_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=96,
            max_position_embeddings=16,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            num_labels=10,
            # The fused kernels have no second derivative, and the peers do not step aside.
            attn_implementation="eager",
        )
        self.bert = BertForSequenceClassification(config)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.bert(tokens).logits


def images() -> tuple[Tensor, Tensor]:
    """scikit-learn's handwritten digits, shape (1797, 1, 8, 8), values 0 to 16."""
    digits = load_digits()
    return torch.tensor(digits.images, dtype=torch.float32)[:, None], torch.tensor(digits.target)


def as_images() -> tuple[Tensor, Tensor]:
    x, y = images()
    return x / 8 - 1, y


def as_tokens() -> tuple[Tensor, Tensor]:
    """A digit as 16 tokens, the sums of its 2 x 2 squares."""
    x, y = images()
    # From 1 on: BERT's token 0 is padding, whose embedding torch leaves out of gradients.
    return 1 + nn.functional.avg_pool2d(x, 2).mul(4).long().flatten(1), y


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, Tensor]], int]] = {
    "resnet": (resnet, as_images, 4),
    "transformer": (Transformer, as_tokens, 60),
}
"""The network, its data, and the epochs until it fits them."""


def subject(name: str, samples: int = 128, batch: int = BATCH) -> Subject:
    """Train on 1200 digits; to be measured on the first `samples` of them, in batches."""
    torch.manual_seed(0)
    build, data, epochs = NETWORKS[name]
    model, (x, y) = build(), data()
    order = torch.randperm(len(x))
    train, test = order[:TRAINING], order[TRAINING:]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    steps = epochs * (TRAINING // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    model.train()
    for _ in range(epochs):
        mixed = train[torch.randperm(TRAINING)]
        for chosen in mixed[: TRAINING // BATCH * BATCH].split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[chosen]), y[chosen]).backward()
            optimizer.step()
            schedule.step()
    model.eval()
    optimizer.zero_grad()
    with torch.no_grad():
        accuracy = (model(x[test]).argmax(1) == y[test]).float().mean().item()
        loss = nn.functional.cross_entropy(model(x[train[:samples]]), y[train[:samples]]).item()
    measured = train[:samples].split(batch)
    return Subject(name, model, [(x[part], y[part]) for part in measured], accuracy, loss)
