"""Models of 16 bits are computed in 32, any in 64 on request, and have their bits back."""

import copy

import pytest
import torch
from torch import nn

from flatminima.errors import InputError
from flatminima.measure import (
    GaussNewton,
    Hessian,
    hessian_trace,
    in_float32,
    perturbation_gap,
    top_eigenvalues,
)
from flatminima.objectives import Supervised

from .cases import DOUBLE, MODELS, cross_entropy, dense_hessian, mlp

COARSE = [torch.bfloat16, torch.float16]


def matrix(operator):
    return operator.matmat(torch.eye(operator.shape[0], dtype=operator.dtype))


def state(model):
    tensors = [*model.parameters(), *model.buffers()]
    grads = [None if p.grad is None else (id(p.grad), p.grad.clone()) for p in model.parameters()]
    return [(id(t), t.data_ptr(), t.dtype, t.detach().clone()) for t in tensors], grads


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", COARSE)
@pytest.mark.parametrize("backend", ["autograd", "forward", "differences"])
def test_16_bits_are_computed_in_32(name, dtype, backend):
    model, batch = MODELS[name]()
    model.to(dtype)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    batch = tuple(part.to(dtype) if part.is_floating_point() else part for part in batch)
    before = state(model)
    operator = Hessian(model, cross_entropy, [batch], backend=backend)
    found = matrix(operator)
    assert same(before, state(model))
    assert operator.dtype == found.dtype == torch.float32
    wide = tuple(part.double() if part.is_floating_point() else part for part in batch)
    exact = dense_hessian(copy.deepcopy(model).double(), wide)
    bound = 0.02 if backend == "differences" else 1e-5
    assert (found - exact).norm() < bound * exact.norm()


@pytest.mark.parametrize("coarse", [torch.float32, torch.bfloat16])
def test_double_precision_on_request(coarse):
    model, (x, y) = mlp()
    model.to(coarse)
    batch = (x.to(coarse), y)
    operator = Hessian(model, cross_entropy, [batch], dtype=DOUBLE)
    exact = dense_hessian(copy.deepcopy(model).double(), (batch[0].double(), y))
    assert (matrix(operator) - exact).norm() < 1e-12 * exact.norm()
    assert operator.dtype == DOUBLE
    assert model[0].weight.dtype == coarse
    ggn = matrix(GaussNewton(model, cross_entropy, [batch], dtype=DOUBLE))
    wide = copy.deepcopy(model).double()
    assert torch.equal(ggn, matrix(GaussNewton(wide, cross_entropy, [(batch[0].double(), y)])))


def test_coarse_frozen_weights_are_computed_in_32_too():
    model, batch = mlp()
    model.float()[0].bfloat16().requires_grad_(False)
    batch = (batch[0].float(), batch[1])
    operator = Hessian(model, cross_entropy, [batch])
    assert list(operator.blocks) == ["2.weight", "2.bias"]
    exact = dense_hessian(copy.deepcopy(model).double(), (batch[0].double(), batch[1]))[-21:, -21:]
    assert (matrix(operator) - exact).norm() < 1e-5 * exact.norm()
    assert model[0].weight.dtype == torch.bfloat16


def test_the_bits_come_back_when_the_objective_raises():
    model, batch = mlp()
    model.bfloat16()
    before = state(model)

    def failing(model, batch):
        assert model[0].weight.dtype == torch.float32
        raise RuntimeError("in between")

    with pytest.raises(RuntimeError, match="in between"):
        matrix(Hessian(model, failing, [batch]))
    assert same(before, state(model))


def test_the_estimators_work_on_it():
    model, (x, y) = mlp()
    model.bfloat16()
    batches = [(x.bfloat16(), y)]
    wide = [(x.bfloat16().double(), y)]
    exact = Hessian(copy.deepcopy(model).double(), cross_entropy, wide)
    operator = Hessian(model, cross_entropy, batches)
    assert hessian_trace(operator).value == pytest.approx(hessian_trace(exact).value, rel=1e-4)
    found, expected = (top_eigenvalues(o).value for o in (operator, exact))
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("dtype", COARSE)
def test_other_measures_work_inside_in_float32(dtype):
    model, (x, y) = mlp()
    model.to(dtype)
    batches = [(x.to(dtype), y)]
    before = state(model)
    with pytest.raises(InputError, match=r"too coarse .* measure in flatminima\.measure"):
        perturbation_gap(model, cross_entropy, batches, sigma=0.1)
    with in_float32(model, cross_entropy, batches) as fine:
        gap = perturbation_gap(model, cross_entropy, fine, sigma=0.1, draws=5)
    assert same(before, state(model))
    single = copy.deepcopy(model).float()
    expected = perturbation_gap(
        single, cross_entropy, [(batches[0][0].float(), y)], sigma=0.1, draws=5
    )
    assert gap.value == expected.value


def test_float32_models_are_left_alone_and_bad_batches_still_refused():
    model, batch = mlp()
    batches = [batch]
    with in_float32(model, cross_entropy, batches) as fine:
        assert fine is batches
    model.bfloat16()
    with (
        in_float32(model, cross_entropy, iter([batch])) as fine,
        pytest.raises(InputError, match="read only once"),
    ):
        perturbation_gap(model, cross_entropy, fine, sigma=0.1)


def test_tied_and_integer_tensors():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(5, 3)
            self.b = self.a
            self.register_buffer("count", torch.tensor(3))

        def forward(self, x):
            return self.a(x) + self.b(x) * self.count

    model, batch = Tied().half(), mlp()[1]
    batch = (batch[0].half(), batch[1])
    operator = Hessian(model, cross_entropy, [batch])
    assert list(operator.blocks) == ["a.weight", "a.bias"]
    matrix(operator)
    assert model.b.weight is model.a.weight
    assert model.count.dtype == torch.int64


def test_other_types_are_refused():
    model, batch = mlp()
    with pytest.raises(InputError, match=r"dtype is torch.float16: give torch.float32 or"):
        Hessian(model, cross_entropy, [batch], dtype=torch.float16)


@pytest.mark.parametrize("operator", [Hessian, GaussNewton])
def test_class_weights_follow_into_double_precision_and_come_back(operator):
    model, batch = mlp()
    weight = torch.tensor([1.0, 2.0, 5.0], dtype=DOUBLE)
    exact = matrix(operator(model, Supervised(nn.CrossEntropyLoss(weight=weight)), [batch]))
    criterion = nn.CrossEntropyLoss(weight=weight.float())
    found = matrix(operator(model, Supervised(criterion), [batch], dtype=DOUBLE))
    assert torch.equal(found, exact)
    assert criterion.weight.dtype == torch.float32
