"""What tests of losses with a memory have in common."""

import torch
from torch import nn

from flatminima.perturb import make

N, C = 9, 4


def some(n=6, scale=1.0, seed=0):
    """Logits, labels and places of n samples."""
    generator = torch.Generator().manual_seed(seed)
    z = scale * torch.randn(n, C, dtype=torch.float64, generator=generator)
    y = torch.randint(C, (n,), generator=generator)
    return z.requires_grad_(), y, torch.randperm(N, generator=generator)[:n]


def model_and_batch():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, C)).double()
    x = torch.randn(6, 5, dtype=torch.float64)
    return model, {"inputs": x, "targets": torch.arange(6) % C, "index": torch.arange(6) + 2}


def rows_of_steps(objective, method, steps):
    """Of each sample in each step: its row before, what the passes said on the mean, its row after.

    While passes run no row moves.
    """
    model, batch = model_and_batch()
    strength = {"plain": {}, "nso": {"sigma": 0.1}, "nso-one-pass": {"sigma": 0.1}}
    given = strength.get(method, {"rho": 0.1})
    optimizer = make(method, torch.optim.SGD(model.parameters(), lr=0.1), **given)
    seen = []
    model.register_forward_hook(lambda m, args, out: seen.append((args[0], out.detach())))
    for _ in range(steps):
        seen.clear()
        before = objective.kept.memory.rows.clone()
        for piece in optimizer.passes(batch):
            objective(model, piece).backward()
            assert torch.equal(objective.kept.memory.rows, before)
        optimizer.step()
        objective.after_step()
        optimizer.zero_grad()
        for x, i in zip(batch["inputs"], batch["index"], strict=True):
            own = [out[(given == x).all(1)] for given, out in seen]
            yield before[i], torch.cat(own).softmax(1).mean(0), objective.kept.memory.rows[i]
