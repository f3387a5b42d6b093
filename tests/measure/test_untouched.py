"""A measurement leaves no trace in the model, the objective or the random state."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from flatminima.measure import (
    Hessian,
    curvature,
    hessian_diagonal,
    hessian_trace,
    perturbation_gap,
    spectral_density,
    start_sigma,
    top_eigenvalues,
)

from .cases import cross_entropy


class Counting(nn.Module):
    """BatchNorm, dropout, and buffers that a forward pass writes to and replaces."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.GELU(), nn.Linear(5, 2)
        )
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("replaced", torch.zeros(()))
        self.body[1].eval()

    def forward(self, x):
        self.calls += 1
        self.replaced = self.replaced + 1
        return self.body(x)


class Remembering(nn.Module):
    """An objective with memory, which raises at its n-th call."""

    def __init__(self, raises_at=None):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.raises_at = raises_at
        self.count = 0

    def forward(self, model, batch):
        self.calls += 1
        self.count += 1
        if self.count == self.raises_at:
            raise RuntimeError("the objective raised")
        assert not model.training
        torch.rand(3)
        return cross_entropy(model, batch)


def state(model, objective):
    modules = [*model.modules(), *objective.modules()]
    return {
        "tensors": [t.clone() for m in (model, objective) for t in m.state_dict().values()],
        "identities": [id(t) for m in modules for t in m._buffers.values()],
        "pointers": [p.data_ptr() for p in model.parameters()],
        "grads": [(id(p.grad), p.grad.clone()) for p in model.parameters() if p.grad is not None],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "flags": [m.training for m in modules],
        "random": torch.get_rng_state(),
    }


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


MEASUREMENTS = {
    "trace": lambda m, f, b: hessian_trace(Hessian(m, f, b), probes=13),
    "differences": lambda m, f, b: hessian_trace(Hessian(m, f, b, backend="differences"), probes=3),
    "density": lambda m, f, b: spectral_density(Hessian(m, f, b), probes=2, steps=3),
    "diagonal": lambda m, f, b: hessian_diagonal(Hessian(m, f, b), probes=12),
    "eigenvalues": lambda m, f, b: top_eigenvalues(Hessian(m, f, b), max_steps=3),
    "gap": lambda m, f, b: perturbation_gap(m, f, b, sigma=0.1, draws=3),
    "curvature": lambda m, f, b: curvature(m, f, b, sigma=0.1, probes=3, draws=3),
    "start sigma": lambda m, f, b: start_sigma(m, f, b, fraction=1.0),
}


@pytest.fixture
def setting():
    torch.manual_seed(0)
    model = Counting()
    model.body[4].bias.requires_grad_(False)
    model.body[0].weight.grad = torch.ones(5, 4)
    data = TensorDataset(torch.randn(10, 4), torch.arange(10) % 2)
    return model, DataLoader(data, batch_size=4, shuffle=True)


@pytest.mark.parametrize("measure", MEASUREMENTS.values(), ids=MEASUREMENTS)
@pytest.mark.parametrize("training", [True, False])
def test_nothing_changes(measure, training, setting):
    model, loader = setting
    model.training = training
    objective = Remembering()
    before = state(model, objective)
    measure(model, objective, loader)
    assert objective.count > 3
    assert same(before, state(model, objective))


@pytest.mark.parametrize("measure", MEASUREMENTS.values(), ids=MEASUREMENTS)
@pytest.mark.parametrize("call", [1, 4, 6])  # the first look has the right to fail on halves
def test_nothing_changes_when_the_objective_raises(measure, call, setting):
    model, loader = setting
    objective = Remembering(raises_at=call)
    before = state(model, objective)
    with pytest.raises(RuntimeError, match="the objective raised"):
        measure(model, objective, loader)
    assert same(before, state(model, objective))


def test_weights_come_back_bit_for_bit_from_far_away(setting):
    model, loader = setting
    before = copy.deepcopy(model.state_dict())
    perturbation_gap(model, cross_entropy, loader, sigma=1e3, draws=5)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
