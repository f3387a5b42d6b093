"""The closure face: `optimizer.step(closure)` with torch.optim's contract, for any method.

The closure zeroes the gradients, runs forward and backward, and returns the loss; the optimizer
calls it as often as the method needs. SAM needs its second pass at the worst point nearby.
"""

import torch

import flatminima

torch.manual_seed(0)
x, y = torch.randn(128, 10), torch.randn(128, 1)
model = torch.nn.Sequential(
    torch.nn.Linear(10, 32), torch.nn.BatchNorm1d(32), torch.nn.GELU(), torch.nn.Linear(32, 1)
)
optimizer = flatminima.SAM(torch.optim.AdamW(model.parameters(), lr=1e-2), rho=0.05)


def closure() -> torch.Tensor:
    optimizer.zero_grad()
    loss = torch.nn.functional.mse_loss(model(x), y)
    loss.backward()
    return loss


for step in range(100):
    loss = optimizer.step(closure)
    if step % 25 == 0 or step == 99:
        print(f"step {step:3d}  loss {loss:.4f}")
print(f"BatchNorm counted {int(model[1].num_batches_tracked)} batches in 100 steps")
