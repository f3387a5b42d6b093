"""What each of two Trainers of `test_transformers_ranks.py` does: python ranks.py DIRECTORY."""

import os
import sys
from pathlib import Path

import torch
from torch import distributed
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from transformers import Trainer, TrainingArguments

from flatminima.integrations.transformers import PerturbedTrainerMixin

sys.path.insert(0, str(Path(__file__).parents[1]))

from integrations.cases import bert, sentences, state_of

RHO = {"rho": 0.05}
METHODS = {
    "plain": {},
    "nso": {"sigma": 0.02},
    "nso-shared": {"sigma": 0.02, "noise_per_rank": False},
    "nso-one-pass": {"sigma": 0.02},
    "sam": RHO,
    "friendly-sam": RHO,
    "gsam": RHO,
    "looksam": {"k": 2, **RHO},
}
STEPS = 2


class CountingTrainer(PerturbedTrainerMixin, Trainer):
    """Counts the all-reduces of gradients."""

    reduced = 0
    hooked = False

    def training_step(self, model, inputs, num_items_in_batch=None):
        if self.args.world_size > 1 and not self.hooked:
            model.register_comm_hook(None, self.reduce)
            self.hooked = True
        return super().training_step(model, inputs, num_items_in_batch)

    def reduce(self, state, bucket):
        self.reduced += 1
        return allreduce_hook(None, bucket)


def train(name, folder, ranks=1):
    """All-reduces, and the weights at the end."""
    trainer = CountingTrainer(
        model=bert(dropout=0.0),
        args=TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=8 // ranks,
            gradient_accumulation_steps=2,
            average_tokens_across_devices=False,  # BERT ignores the number of items
            max_steps=STEPS,
            learning_rate=1e-2,
            optim="sgd",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
            use_cpu=True,
            train_sampling_strategy="sequential",
        ),
        train_dataset=sentences(),
        perturb=name.replace("-shared", ""),
        perturb_options=METHODS[name],
    )
    trainer.train()
    return trainer.reduced, state_of(trainer.model)


def main(folder):
    torch.set_num_threads(1)
    found = {name: train(name, folder, ranks=2) for name in METHODS}
    torch.save(found, folder / f"{os.environ['RANK']}.pt")
    distributed.barrier()  # a rank that leaves early may abort the other


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    os._exit(0)  # threads of gloo may abort an interpreter that winds down
