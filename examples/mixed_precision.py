"""fp16 with a gradient scaler, in both faces: an overflow in any pass skips the step."""

import torch

import flatminima

torch.manual_seed(0)
x, y = torch.randn(64, 20), torch.randint(0, 3, (64,))


def build() -> tuple[torch.nn.Module, flatminima.SAM, torch.amp.GradScaler]:
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(20, 64), torch.nn.GELU(), torch.nn.Linear(64, 3))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    base = torch.optim.AdamW(model.parameters(), lr=1e-2)
    return model, flatminima.SAM(base, rho=0.05, scaler=scaler, max_grad_norm=1.0), scaler


def loss_of(model: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.float16):
        return torch.nn.functional.cross_entropy(model(inputs), y)


def by_passes(inputs: list[torch.Tensor]) -> torch.nn.Module:
    model, optimizer, scaler = build()
    for batch in inputs:
        for _ in optimizer.passes():
            scaler.scale(loss_of(model, batch)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    print(f"passes:  {optimizer.steps} of {len(inputs)} steps, scale {scaler.get_scale():g}")
    return model


def by_closure(inputs: list[torch.Tensor]) -> torch.nn.Module:
    model, optimizer, scaler = build()
    for batch in inputs:

        def closure(batch: torch.Tensor = batch) -> torch.Tensor:
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            scaler.scale(loss).backward()
            return loss

        optimizer.step(closure)  # unscales once, clips, and skips where a pass overflowed
        scaler.update()
    print(f"closure: {optimizer.steps} of {len(inputs)} steps, scale {scaler.get_scale():g}")
    return model


batches = [x] * 5 + [x * float("inf")] + [x] * 5  # the sixth overflows
models = by_passes(batches), by_closure(batches)
assert all(torch.isfinite(parameter).all() for model in models for parameter in model.parameters())
for ours, theirs in zip(*(model.parameters() for model in models), strict=True):
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
print("both faces give the same weights")
