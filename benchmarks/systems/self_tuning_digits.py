"""Three dropout rates on digits with wrong labels, tuned while training or fixed."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

import flatminima

STARTS = (0.05, 0.3, 0.6)
FIXED = (0.0, 0.1, 0.3, 0.5, 0.7)
STEPS, WARMUP, BATCH, EVERY = 1500, 200, 64, 2
HIDDEN = 64
PLACES = ("inputs", "first", "second")


class Data:
    """300 to train, a fifth of their labels drawn anew; 300 to validate; the rest to test."""

    def __init__(self, seed: int) -> None:
        inputs, classes = load_digits(return_X_y=True)
        x, y = torch.tensor(inputs, dtype=torch.float32) / 16, torch.tensor(classes)
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(x), generator=generator)
        x, y = x[order], y[order]
        wrong = torch.rand(300, generator=generator) < 0.2
        self.x, self.y = x[:300], y[:300].clone()
        self.y[wrong] = torch.randint(10, (int(wrong.sum()),), generator=generator)
        self.validation, self.test = (x[300:600], y[300:600]), (x[600:], y[600:])
        self.order = torch.randint(300, (STEPS, BATCH), generator=generator)

    def batches(self):
        for rows in self.order:
            yield self.x[rows], self.y[rows]


class Network(nn.Module):
    """64-64-64-10, ReLU, with dropout before each layer at given rates."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.Linear(64, HIDDEN), nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, 10)]
        )

    def forward(self, x, rates=(None, None, None)):
        for i, (layer, rate) in enumerate(zip(self.layers, rates, strict=True)):
            if i:
                x = x.relu()
            x = layer(x if rate is None or not self.training else dropped(x, rate))
        return x


def dropped(x, rate):
    """Dropout at a rate for each sample, shape (samples,), or one for all."""
    rate = rate.reshape(-1, 1)
    return x * (torch.rand_like(x) >= rate) / (1 - rate)


def optimizer(model) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def tuned(data: Data, seed: int, start: float) -> dict:
    torch.manual_seed(seed)
    knob = flatminima.Knob(start, high=0.9)
    knobs = flatminima.Knobs(dict.fromkeys(PLACES, knob), seed=seed)
    model = flatminima.gate(Network(), len(knobs))

    def objective(model, batch, values):
        rates = [values[place] for place in PLACES]
        return cross_entropy(model(batch[0], rates), batch[1])

    generator = torch.Generator().manual_seed(seed + 1)
    rows = torch.randint(300, (STEPS, BATCH), generator=generator)
    tuner = flatminima.SelfTuning(
        model,
        knobs,
        optimizer(model),
        objective,
        [(data.validation[0][r], data.validation[1][r]) for r in rows],
        lr=3e-2,
        warmup=WARMUP,
        train_steps=EVERY,
    )
    for batch in data.batches():
        tuner.step(batch)
    gradients = tuner.steps + tuner.validations
    return {**scored(flatminima.bake(model), data), **tuner.result().values, "gradients": gradients}


def fixed(data: Data, seed: int, rate: float, steps: int = STEPS) -> dict:
    torch.manual_seed(seed)
    model = Network()
    base = optimizer(model)
    rates = [torch.tensor(rate)] * 3
    for x, y in list(data.batches())[:steps]:
        cross_entropy(model.train()(x, rates), y).backward()
        base.step()
        base.zero_grad()
    return {**scored(model, data), "gradients": steps}


def scored(model, data: Data) -> dict:
    found = {}
    for name, (x, y) in (("validation", data.validation), ("test", data.test)):
        with torch.no_grad():
            logits = model.eval()(x)
        found[f"{name}_loss"] = cross_entropy(logits, y).item()
        found[f"{name}_accuracy"] = (logits.argmax(1) == y).float().mean().item()
    return found


def seed(number: int) -> dict:
    data = Data(number)
    found = {str(start): tuned(data, number, start) for start in STARTS}
    share = found[str(STARTS[0])]["gradients"] // len(FIXED)
    return {
        "tuned": found,
        "fixed": {str(rate): fixed(data, number, rate) for rate in FIXED},
        "short": {str(rate): fixed(data, number, rate, share) for rate in FIXED},
    }


def chosen(runs: dict) -> dict:
    """The run of lowest validation loss."""
    return min(runs.values(), key=lambda run: run["validation_loss"])
