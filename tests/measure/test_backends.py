"""Hessian products without a second derivative, and what is said of them."""

import pytest
import torch
from torch import nn

from flatminima.errors import InputError
from flatminima.measure import GaussNewton, Hessian, hessian_trace, top_eigenvalues

from .cases import (
    DOUBLE,
    MODELS,
    Quadratic,
    cross_entropy,
    dense_hessian,
    mlp,
    quadratic_loss,
    split,
)


def matrix(operator):
    return operator.matmat(torch.eye(operator.shape[0], dtype=operator.dtype))


def error(a, b):
    return (torch.linalg.matrix_norm(a.double() - b) / torch.linalg.matrix_norm(b)).item()


class Once(torch.autograd.Function):
    """The square, whose gradient cannot be differentiated."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] * gradient


def once(model, batch):
    return Once.apply(model.weight).sum()


def once_inside(model, batch):
    return Once.apply(model.weight.sin()).square().sum()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("dtype", "bound"), [(DOUBLE, 1e-5), (torch.float32, 0.02)])
def test_differences_are_close_to_the_dense_hessian(name, dtype, bound):
    model, batch = MODELS[name]()
    exact = dense_hessian(model, batch)
    batch = tuple(part.to(dtype) if part.is_floating_point() else part for part in batch)
    operator = Hessian(model.to(dtype), cross_entropy, [batch], backend="differences")
    assert error(matrix(operator), exact) < bound
    assert operator.difference_error < bound
    assert "central differences of gradients (step" in operator.description


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("first", [5, 9])
def test_forward_over_reverse_is_the_dense_hessian(name, first):
    model, (x, y) = MODELS[name]()
    batches = split((x, y), first, len(y) - first)
    operator = Hessian(model, cross_entropy, batches, backend="forward")
    before = [p.detach().clone() for p in model.parameters()]
    assert error(matrix(operator), dense_hessian(model, (x, y))) < 1e-12
    assert operator.description == "Hessian, forward over reverse"
    assert all(map(torch.equal, before, model.parameters()))
    reverse = Hessian(model, cross_entropy, batches)
    reverse.matmat(torch.zeros(reverse.shape[0], 1))
    assert operator.loss == pytest.approx(reverse.loss, rel=1e-12)


def test_forward_mode_reaches_parameters_that_the_objective_holds():
    model, (x, y) = mlp()
    held = list(model.parameters())

    def decayed(model, batch):
        return cross_entropy(model, batch) + sum(p.square().square().sum() for p in held)

    found = [matrix(Hessian(model, decayed, [(x, y)], backend=b)) for b in ("forward", "autograd")]
    assert error(*found) < 1e-12


def test_forward_mode_says_where_there_is_none():
    model = Quadratic(torch.eye(3, dtype=DOUBLE))
    with pytest.raises(InputError, match=r"\): give Hessian\(..., backend='auto'\)"):
        matrix(Hessian(model, once, [torch.zeros(4)], backend="forward"))


def test_the_length_of_a_vector_does_not_change_the_accuracy():
    model, (x, y) = mlp()
    exact = dense_hessian(model, (x, y))
    single = Hessian(model.float(), cross_entropy, [(x.float(), y)], backend="differences")
    v = torch.randn(57, 1, generator=torch.Generator().manual_seed(0))
    for scale in (1e-8, 1.0, 1e8):
        found = single.matmat(scale * v).double() / scale
        expected = exact @ v.double()
        assert (found - expected).norm() < 0.01 * expected.norm()


def test_differences_of_a_quadratic_are_exact_and_zero_vectors_stay_zero():
    hessian = torch.tensor([[2.0, 1.0], [1.0, -3.0]], dtype=DOUBLE)
    model = Quadratic(hessian)
    operator = Hessian(model, quadratic_loss, [torch.zeros(1)], backend="differences")
    assert not operator.matmat(torch.zeros(2, 3)).any()
    assert error(matrix(operator), hessian) < 1e-9
    assert not operator.matmat(torch.zeros(2, 1)).any()


def test_weights_come_back_bit_for_bit_also_when_the_objective_raises():
    model, batch = mlp()
    before = [p.detach().clone() for p in model.parameters()]
    operator = Hessian(model, cross_entropy, [batch], backend="differences")
    matrix(operator)
    assert all(map(torch.equal, before, model.parameters()))
    calls = []

    def failing(model, batch):
        calls.append(1)
        if len(calls) == 6:  # away from W, after the first look and the loss at W
            raise RuntimeError("in between")
        return cross_entropy(model, batch)

    with pytest.raises(RuntimeError, match="in between"):
        matrix(Hessian(model, failing, [batch], backend="differences"))
    assert all(map(torch.equal, before, model.parameters()))


@pytest.mark.parametrize(("objective", "curvature"), [(once, 2.0), (once_inside, 0.0)])
def test_no_function_without_second_derivative_passes_for_a_linear_one(objective, curvature):
    model = Quadratic(torch.eye(3, dtype=DOUBLE))
    with torch.no_grad():
        model.weight.fill_(0.7)
    x = torch.tensor(0.7, dtype=DOUBLE)
    exact = curvature or (12 * x.sin() ** 2 * x.cos() ** 2 - 4 * x.sin() ** 4).item()
    products = matrix(Hessian(model, objective, [torch.zeros(4)]))
    assert error(products, exact * torch.eye(3, dtype=DOUBLE)) < 1e-6


def test_gauss_newton_refuses_a_function_without_second_derivative():
    class Squares(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(5, 3).to(DOUBLE)

        def forward(self, x):
            return Once.apply(self.body(x))

    _, batch = mlp()
    with pytest.raises(InputError, match=r"once_differentiable\): GaussNewton needs it"):
        GaussNewton(Squares(), cross_entropy, [batch]).matmat(torch.ones(18, 1, dtype=DOUBLE))


def test_auto_turns_to_differences_where_there_is_no_second_derivative_and_says_so():
    model = Quadratic(torch.eye(30, dtype=DOUBLE))
    with torch.no_grad():
        model.weight.fill_(1.0)
    trace = hessian_trace(Hessian(model, once, [torch.zeros(4)]))
    assert trace.value == pytest.approx(60, rel=1e-6)
    assert "; Hessian, central differences of gradients (step" in trace.method
    top = top_eigenvalues(Hessian(model, once, [torch.zeros(4)]))
    assert top.value == pytest.approx(2, rel=1e-6)
    assert "central differences" in top.method


def test_auto_stays_with_autograd_elsewhere():
    model, batch = mlp()
    operator = Hessian(model, cross_entropy, [batch])
    matrix(operator)
    assert operator.description == "Hessian, reverse over reverse"
    assert operator.difference_error is None


def test_autograd_alone_says_what_to_do():
    model = Quadratic(torch.eye(3, dtype=DOUBLE))
    with pytest.raises(InputError, match=r"once_differentiable\): give Hessian"):
        matrix(Hessian(model, once, [torch.zeros(4)], backend="autograd"))


def test_differences_that_do_not_agree_are_refused():
    def rough(model, batch):
        return (1e9 * model.weight).sin().sum()

    model = Quadratic(torch.eye(3, dtype=DOUBLE))
    with torch.no_grad():
        model.weight.fill_(1.0)
    with pytest.raises(InputError, match=r"between steps: give dtype=torch.float64"):
        matrix(Hessian(model, rough, [torch.zeros(4)], backend="differences"))


def test_unknown_backends_are_refused():
    model, batch = mlp()
    with pytest.raises(InputError, match="did you mean 'differences'"):
        Hessian(model, cross_entropy, [batch], backend="difference")


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        ("2.*", ["2.weight", "2.bias"]),
        (["*.bias", "0.weight"], ["0.weight", "0.bias", "2.bias"]),
        ("*", ["0.weight", "0.bias", "2.weight", "2.bias"]),
    ],
)
@pytest.mark.parametrize("backend", ["autograd", "differences"])
def test_parameters_are_chosen_by_name(patterns, names, backend):
    model, batch = mlp()
    whole = Hessian(model, cross_entropy, [batch])
    part = Hessian(model, cross_entropy, [batch], params=patterns, backend=backend)
    assert list(part.blocks) == names
    where = torch.cat([torch.arange(57)[whole.blocks[name]] for name in names])
    assert error(matrix(part), dense_hessian(model, batch)[where][:, where]) < 1e-5


def test_a_name_that_chooses_nothing_is_refused():
    model, batch = mlp()
    with pytest.raises(InputError, match=r"unknown trainable parameter '1\.\*'"):
        Hessian(model, cross_entropy, [batch], params=["0.*", "1.*"])
    model[0].requires_grad_(False)
    assert isinstance(model[0], nn.Linear)
    with pytest.raises(InputError, match=r"'0\.\*' matches only what does not require a gradient"):
        Hessian(model, cross_entropy, [batch], params="0.*")
