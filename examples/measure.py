"""How flat is a trained network? Trace, top eigenvalue and perturbation gap, with their errors."""

import torch
from sklearn.datasets import load_digits

import flatminima

digits = load_digits()
x = torch.tensor(digits.data[:600] / 16, dtype=torch.float32)
y = torch.tensor(digits.target[:600])
batches = list(zip(x.split(100), y.split(100), strict=True))

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.GELU(), torch.nn.Linear(32, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for _ in range(20):
    for inputs, targets in batches:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()

report = flatminima.curvature(model, torch.nn.CrossEntropyLoss(), batches, sigma=0.02)
print(report)
