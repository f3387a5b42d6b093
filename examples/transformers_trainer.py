"""The transformers Trainer with one-pass NSO: accumulation, bf16, and an exact resume.

A tiny BERT with random weights, so that nothing is downloaded.
"""

import tempfile
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from flatminima.integrations.transformers import PerturbedTrainerMixin


class NSOTrainer(PerturbedTrainerMixin, Trainer):
    loss_is_scaled_for_ga = False  # BERT's loss is a mean, which accumulation must average


torch.manual_seed(0)
ids = torch.randint(2, 50, (256, 12))
dataset = [{"input_ids": row, "labels": ((row < 26).sum() > 6).long()} for row in ids]


def fit(folder: Path, resume: str | None = None) -> NSOTrainer:
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
    )
    trainer = NSOTrainer(
        model=BertForSequenceClassification(config),
        args=TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=16,
            gradient_accumulation_steps=2,
            max_steps=40,
            learning_rate=3e-3,
            bf16=True,
            use_cpu=True,
            save_steps=20,
            logging_steps=10,
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=dataset,
        perturb="nso-one-pass",
        perturb_options={"sigma": 0.01},
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


with tempfile.TemporaryDirectory() as folder:
    whole = fit(Path(folder))
    resumed = fit(Path(folder), resume=f"{folder}/checkpoint-20")

same = all(map(torch.equal, whole.model.parameters(), resumed.model.parameters()))
print(f"40 steps, and 20 + save + load + 20: the same weights, bit for bit: {same}")
assert same
