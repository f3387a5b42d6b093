"""Tiny transformers with random weights, their data, and counters of what they do."""

from contextlib import contextmanager

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
)


def bert(dropout=0.1, seed=0):
    torch.manual_seed(seed)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=40,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=16,
            num_labels=3,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )
    )


def language_model(dropout=0.0, seed=0):
    torch.manual_seed(seed)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=40,
            n_embd=16,
            n_layer=1,
            n_head=2,
            n_positions=16,
            resid_pdrop=dropout,
            embd_pdrop=dropout,
            attn_pdrop=dropout,
            bos_token_id=0,
            eos_token_id=1,
        )
    )


def sentences(count=32, length=8, seed=0):
    """Token ids with a class each."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, 40, (count, length), generator=g)
    return [
        {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row.sum() % 3}
        for row in ids
    ]


def texts(count=32, length=8, seed=0):
    """Token ids to be predicted, of different lengths: the rest of a row does not count."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, 40, (count, length), generator=g)
    rows = []
    for number, row in enumerate(ids):
        labels = row.clone()
        labels[2 + number % (length - 2) :] = -100
        rows.append({"input_ids": row, "attention_mask": torch.ones_like(row), "labels": labels})
    return rows


class Count:
    """Forward passes, the samples in each, and backward passes of a model."""

    def __init__(self):
        self.samples = []
        self.backwards = 0

    @property
    def forwards(self):
        return len(self.samples)


@contextmanager
def counting(model):
    """Count what a model does."""
    count = Count()

    def forward(module, args, kwargs, output):
        tensors = [*args, *kwargs.values()]
        count.samples.append(next(len(t) for t in tensors if isinstance(t, torch.Tensor)))

    def backward(module, inputs, outputs):
        count.backwards += 1

    last = list(model.modules())[-1]
    handles = [
        model.register_forward_hook(forward, with_kwargs=True),
        last.register_full_backward_hook(backward),
    ]
    try:
        yield count
    finally:
        for handle in handles:
            handle.remove()


def state_of(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_same_bits(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
