"""A loop as in practice: bf16 autocast, micro-batches, clipping, warm-up, save and exact resume."""

import io

import torch

import flatminima

torch.manual_seed(0)
x, y = torch.randn(256, 20), torch.randint(0, 4, (256,))


def build() -> tuple[torch.nn.Module, flatminima.NSO, torch.optim.lr_scheduler.LRScheduler]:
    torch.manual_seed(1)
    model = torch.nn.Sequential(
        torch.nn.Linear(20, 64), torch.nn.GELU(), torch.nn.Dropout(0.1), torch.nn.Linear(64, 4)
    )
    base = torch.optim.AdamW(
        [
            {"params": [model[0].weight, model[3].weight], "weight_decay": 0.01},
            {"params": [model[0].bias, model[3].bias], "weight_decay": 0.0, "sigma": 0.0},
        ],
        lr=1e-3,
    )
    optimizer = flatminima.NSO(base, sigma=0.02, num_perturbations=2)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=5)
    return model, optimizer, scheduler


def train(model, optimizer, scheduler, steps: int) -> None:
    for _ in range(steps):
        for _ in optimizer.passes():
            for x_, y_ in zip(x.chunk(4), y.chunk(4), strict=True):  # four micro-batches
                with torch.autocast("cpu", torch.bfloat16):
                    loss = torch.nn.functional.cross_entropy(model(x_), y_)
                (loss / 4).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()


whole = build()
train(*whole, steps=10)

half = build()
train(*half, steps=5)
file = io.BytesIO()
torch.save([part.state_dict() for part in half] + [torch.get_rng_state()], file)

resumed = build()
file.seek(0)
*states, random_state = torch.load(file, weights_only=True)
for part, state in zip(resumed, states, strict=True):
    part.load_state_dict(state)
torch.set_rng_state(random_state)
train(*resumed, steps=5)

same = all(map(torch.equal, whole[0].parameters(), resumed[0].parameters()))
print(f"10 steps, and 5 + save + load + 5: the same weights, bit for bit: {same}")
assert same
