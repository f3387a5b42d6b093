"""accelerate: accumulation, clipping, a schedule, and an exact resume by save_state, load_state."""

import tempfile

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset

import flatminima

torch.manual_seed(0)
x = torch.randn(128, 10)
y = (x.sum(dim=1) > 0).long()
accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)


class Run:
    def __init__(self) -> None:
        net = torch.nn.Sequential(
            torch.nn.Linear(10, 32), torch.nn.GELU(), torch.nn.Dropout(0.1), torch.nn.Linear(32, 2)
        )
        self.perturbed = flatminima.NSO(torch.optim.AdamW(net.parameters(), lr=1e-2), sigma=0.02)
        self.net, self.optimizer, self.loader, self.schedule = accelerator.prepare(
            net,
            self.perturbed,
            DataLoader(TensorDataset(x, y), batch_size=16),
            torch.optim.lr_scheduler.LinearLR(self.perturbed, total_iters=10),
        )

    def epoch(self) -> float:
        for inputs, targets in self.loader:
            with accelerator.accumulate(self.net):
                for x_, y_ in self.perturbed.passes(inputs, targets):
                    with self.perturbed.synchronizing(self.net):
                        loss = torch.nn.functional.cross_entropy(self.net(x_), y_)
                        accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(self.net.parameters(), 1.0)
                self.optimizer.step()
                self.schedule.step()
                self.optimizer.zero_grad()
        return loss.item()


run = Run()
with tempfile.TemporaryDirectory() as folder:
    print(f"loss after one epoch   {run.epoch():.3f}")
    accelerator.save_state(folder)
    print(f"after another          {run.epoch():.3f}")
    straight = [parameter.detach().clone() for parameter in run.net.parameters()]
    accelerator.load_state(folder)
    print(f"from the save, again   {run.epoch():.3f}")

same = all(map(torch.equal, straight, run.net.parameters()))
print(f"the same weights, bit for bit: {same}")
assert same
