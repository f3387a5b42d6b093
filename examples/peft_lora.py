"""LoRA with noise on the adapters, or on the weights as they will be once merged.

A tiny BERT with random weights, so that nothing is downloaded.
"""

import peft
import torch
from transformers import BertConfig, BertForSequenceClassification

import flatminima
from flatminima.integrations.peft import adapted_weights

torch.manual_seed(0)
ids = torch.randint(2, 50, (64, 12))
batch = {"input_ids": ids, "labels": ((ids < 26).sum(dim=1) > 6).long()}


def lora() -> torch.nn.Module:
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
    )
    adapters = peft.LoraConfig(r=4, target_modules=["query", "value"], task_type="SEQ_CLS")
    return peft.get_peft_model(BertForSequenceClassification(config), adapters)


def on_adapters(model: torch.nn.Module) -> flatminima.NSO:
    return flatminima.NSO(torch.optim.AdamW(model.parameters(), lr=1e-2), sigma=0.01)


def on_merged_weights(model: torch.nn.Module) -> flatminima.NSO:
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": trained, "sigma": 0.0},
        {"params": adapted_weights(model), "perturb_frozen": True},
    ]
    return flatminima.NSO(torch.optim.AdamW(groups, lr=1e-2), sigma=0.01)


for build in (on_adapters, on_merged_weights):
    model = lora()
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    optimizer = build(model)
    losses = []
    for _ in range(30):
        for part in optimizer.passes(batch):
            loss = model(**part).loss
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())

    untouched = all(torch.equal(frozen.get(n, p), p) for n, p in model.named_parameters())
    model.eval()
    with torch.no_grad():
        before = model(**batch).logits
        after = model.merge_and_unload()(**batch).logits
    gap = (before - after).abs().max().item()
    fell = f"loss {losses[0]:.3f} -> {losses[-1]:.3f}"
    print(f"{build.__name__:17s} {fell}, merged outputs the same to {gap:.0e}")
    assert untouched
    assert losses[-1] < losses[0]
    assert gap < 1e-4
