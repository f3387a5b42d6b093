"""Lightning: our optimizer from `configure_optimizers`, and by hand for one-pass NSO."""

import logging
import warnings

import lightning
import torch
from torch.utils.data import DataLoader, TensorDataset

import flatminima

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.simplefilter("ignore")

torch.manual_seed(0)
x = torch.randn(256, 10)
y = (x.sum(dim=1) > 0).long()


class Automatic(lightning.LightningModule):
    """Nothing but `configure_optimizers` knows of NSO."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net = torch.nn.Sequential(
            torch.nn.Linear(10, 32),
            torch.nn.BatchNorm1d(32),
            torch.nn.GELU(),
            torch.nn.Linear(32, 2),
        )
        self.samples = 0
        self.net.register_forward_hook(self.count)

    def count(self, module, inputs, output) -> None:
        self.samples += len(inputs[0])

    def training_step(self, batch, index):
        inputs, targets = batch
        return torch.nn.functional.cross_entropy(self.net(inputs), targets)

    def configure_optimizers(self):
        base = torch.optim.AdamW(self.parameters(), lr=1e-2)
        return flatminima.NSO(base, sigma=0.05)


class OnePass(Automatic):
    """One half of each micro-batch at W + U, the other at W - U; a step every second one."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, index):
        optimizer = self.optimizers()
        for inputs, targets in optimizer.optimizer.passes(*batch):
            loss = torch.nn.functional.cross_entropy(self.net(inputs), targets)
            self.manual_backward(loss / 2)
        if (index + 1) % 2 == 0:
            optimizer.step()
            optimizer.zero_grad()

    def configure_optimizers(self):
        base = torch.optim.AdamW(self.parameters(), lr=1e-2)
        return flatminima.NSO(base, sigma=0.05, signs="split")


for module, gradients in ((Automatic(), 2), (OnePass(), 1)):
    trainer = lightning.Trainer(
        max_epochs=5,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True))
    spent = module.samples / (5 * len(x))
    module.eval()
    with torch.no_grad():
        accuracy = (module.net(x).argmax(dim=1) == y).float().mean().item()
    name = type(module).__name__
    print(f"{name:9s} {trainer.global_step} steps, {spent:g} gradient(s) each, fits {accuracy:.1%}")
    assert spent == gradients
    assert accuracy > 0.9
