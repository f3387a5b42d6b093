"""torch.compile of the model, and activation checkpointing: the same weights, fewer activations.

The eager backend compiles without a C++ compiler; leave `backend` out in earnest.
"""

import torch
from torch.utils.checkpoint import checkpoint

import flatminima

torch.manual_seed(0)
x, y = torch.randn(64, 20), torch.randint(0, 3, (64,))


class Network(torch.nn.Module):
    def __init__(self, checkpointing: bool) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.body = torch.nn.Sequential(
            torch.nn.Linear(20, 64), torch.nn.GELU(), torch.nn.Dropout(0.1), torch.nn.Linear(64, 20)
        )
        self.head = torch.nn.Linear(20, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.checkpointing:
            return self.head(checkpoint(self.body, inputs, use_reentrant=False))
        return self.head(self.body(inputs))


def train(*, checkpointing: bool = False, compiled: bool = False) -> list[torch.Tensor]:
    torch.manual_seed(1)
    model = Network(checkpointing)
    forwards: list[int] = []
    if not compiled:  # the hook's growing list would have torch compile anew
        model.body.register_forward_pre_hook(lambda *_: forwards.append(1))
    call = torch.compile(model, backend="aot_eager") if compiled else model
    base = torch.optim.AdamW(model.parameters(), lr=1e-2)
    # Told its model, the optimizer needs no hook to find its buffers, of which torch would warn.
    optimizer = flatminima.NSO(base, sigma=0.02, seed=0, model=model)
    for _ in range(5):
        for _ in optimizer.passes():
            torch.nn.functional.cross_entropy(call(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    if not compiled:
        print(
            f"checkpointing {checkpointing!s:5}: {len(forwards) / 5:g} forwards of the body a step"
        )
    return list(model.parameters())


plain, checkpointed, compiled = train(), train(checkpointing=True), train(compiled=True)
assert all(map(torch.equal, plain, checkpointed))
for ours, theirs in zip(plain, compiled, strict=True):
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
print("checkpointed: the same bits; compiled: the same weights up to rounding")
