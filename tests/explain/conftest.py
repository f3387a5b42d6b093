"""What tests of explanations share."""

import pytest
import torch


@pytest.fixture
def bert():
    """A small classifier of texts, of two classes."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=8,
        num_labels=2,
    )
    return transformers.BertForSequenceClassification(config)
