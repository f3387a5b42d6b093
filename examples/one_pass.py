"""One-pass NSO: `passes(x, y)` gives W + U one half of the batch and W - U the other.

A step costs one gradient, as plain training does; here forward passes and samples are counted.
"""

import torch

import flatminima

torch.manual_seed(0)
x, y = torch.randn(64, 20), torch.randint(0, 3, (64,))
model = torch.nn.Sequential(torch.nn.Linear(20, 32), torch.nn.GELU(), torch.nn.Linear(32, 3))
seen: list[int] = []
model.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))

for signs in ("paired", "split"):
    optimizer = flatminima.NSO(torch.optim.SGD(model.parameters(), lr=0.1), sigma=0.05, signs=signs)
    seen.clear()
    for x_, y_ in optimizer.passes(x, y):
        torch.nn.functional.cross_entropy(model(x_), y_).backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"{signs}: forward passes on {seen} samples, {sum(seen) / len(x):g} gradients a step")
