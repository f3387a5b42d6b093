"""Small models, batches and loops that the tests of the pass engine share."""

import io
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from flatminima.errors import InputError
from flatminima.optim import VariationalAdam
from flatminima.perturb import card, cards, make

DOUBLE = torch.float64


@dataclass(frozen=True)
class Variant:
    """A registered method with some options."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self):
        return "-".join([self.name, *(f"{k}={v}" for k, v in self.options.items())])

    def wrap(self, base, strength=0.05, **options):
        key = card(self.name).strength
        if card(self.name).base == "variational-adam" and not isinstance(base, VariationalAdam):
            rate = base.param_groups[0]["lr"]
            # Groups keep their own rho; torch's own options of theirs mean nothing to it.
            kept = ("params", "param_names", key)
            groups = [{k: g[k] for k in kept if k in g} for g in base.param_groups]
            base = variational(groups, lr=rate)
        return make(self.name, base, **({key: strength} if key else {}), **self.options, **options)


VARIANTS = [Variant(c.name) for c in cards()] + [
    Variant("nso", {"num_perturbations": 2}),
    Variant("nso", {"clean_weight": 0.3}),
    Variant("nso", {"signs": "alternate"}),
    Variant("nso", {"running_statistics": "clean"}),
    Variant("nso-one-pass", {"num_perturbations": 2, "clean_weight": 0.3}),
]


def sgd(parameters, lr=0.1):
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=0.01)


def adamw(parameters, lr=0.01):
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=0.1)


def variational(parameters, lr=0.05):
    return VariationalAdam(parameters, lr=lr, num_samples=100)


BASES = [sgd, adamw]


def smooth(dtype=DOUBLE, seed=0):
    """A smooth network without state or randomness."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)


def stateful(seed=0):
    """A network with BatchNorm statistics and dropout."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 3)
    )


def batch(samples=8, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 4, generator=g, dtype=dtype)
    return x, torch.randint(0, 3, (samples,), generator=g)


def train(optimizer, model, batches):
    """The plain loop: one step for each batch."""
    for x, y in batches:
        for x_, y_ in optimizer.passes(x, y):
            cross_entropy(model(x_), y_).backward()
        optimizer.step()
        optimizer.zero_grad()


def train_bare(base, model, batches):
    """What `train` is without this library."""
    for x, y in batches:
        cross_entropy(model(x), y).backward()
        base.step()
        base.zero_grad()


def gradient(optimizer, loss, *parameters):
    """The gradients that the passes of a step gather; `loss()` builds the graph anew."""
    optimizer.zero_grad()
    for _ in optimizer.passes():
        loss().backward()
    return [parameter.grad.clone() for parameter in parameters]


def takes_closure(optimizer):
    try:
        optimizer.check_closure()
    except InputError:
        return False
    return True


def copies(tensors):
    return [tensor.detach().clone() for tensor in tensors]


def state_of(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_same_bits(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def through_a_file(state):
    """A state as `torch.load(weights_only=True)` reads it back."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)
