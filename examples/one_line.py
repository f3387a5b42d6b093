"""NSO in an ordinary PyTorch loop: one line changes, and the loop runs over passes.

Trains a small network on scikit-learn's digits with a fifth of the labels drawn at random, plainly
and with NSO, and prints what each got right on clean test digits.
"""

import torch
from sklearn.datasets import load_digits

import flatminima

digits = load_digits()
inputs = torch.tensor(digits.data / 16, dtype=torch.float32)
targets = torch.tensor(digits.target)
train, test = slice(0, 300), slice(300, None)

torch.manual_seed(0)
labels = targets[train].clone()
wrong = torch.randperm(300)[:60]
labels[wrong] = torch.randint(0, 10, (60,))


def fit(sigma: float) -> float:
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.GELU(), torch.nn.Linear(64, 10))
    optimizer = flatminima.NSO(torch.optim.AdamW(model.parameters(), lr=3e-3), sigma=sigma)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 600)

    for _step in range(600):
        batch = torch.randint(0, 300, (32,))
        for _ in optimizer.passes():
            loss = torch.nn.functional.cross_entropy(model(inputs[train][batch]), labels[batch])
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()

    right = model(inputs[test]).argmax(dim=1) == targets[test]
    return right.float().mean().item()


print(f"plain (sigma = 0)   test accuracy {fit(0.0):.3f}")
print(f"NSO (sigma = 0.1)   test accuracy {fit(0.1):.3f}")
