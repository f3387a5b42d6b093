import pytest
import torch
from torch import nn
from torch.func import functional_call

from flatminima.errors import InputError
from flatminima.measure import (
    EmpiricalFisher,
    GaussNewton,
    Hessian,
    MonteCarloFisher,
    hessian_trace,
)
from flatminima.objectives import Supervised

from .cases import DOUBLE, MODELS, cross_entropy, mlp, split

squared = Supervised(nn.functional.mse_loss)


def matrix(operator):
    return operator.matmat(torch.eye(operator.shape[0], dtype=operator.dtype))


def close(a, b, tolerance=1e-10):
    assert torch.linalg.matrix_norm(a - b) <= tolerance * torch.linalg.matrix_norm(b)


def jacobian(model, x):
    """Of the outputs in all parameters, shape (samples, outputs, n), in eval mode."""
    flags = [module.training for module in model.modules()]
    model.eval()
    names, shapes = zip(*((n, p.shape) for n, p in model.named_parameters()), strict=True)
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])

    def outputs(flat):
        parts = flat.split([shape.numel() for shape in shapes])
        weights = {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        return functional_call(model, weights, x)

    with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
        found = torch.func.jacrev(outputs)(flat)
    for module, flag in zip(model.modules(), flags, strict=True):
        module.training = flag
    return found


def softmax(model, x):
    model.eval()
    return model(x).detach().softmax(1)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("chunk", [1, 7])
def test_gauss_newton_is_the_dense_one(name, chunk):
    model, (x, y) = MODELS[name]()
    operator = GaussNewton(model, cross_entropy, split((x, y), len(y) - 3, 3), chunk=chunk)
    j, p = jacobian(model, x), softmax(model, x)
    middle = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    close(matrix(operator), torch.einsum("ica,icd,idb->ab", j, middle, j) / len(y))
    assert operator.samples == len(y)


@pytest.mark.parametrize("name", MODELS)
def test_the_empirical_fisher_is_the_dense_one(name):
    model, (x, y) = MODELS[name]()
    operator = EmpiricalFisher(model, cross_entropy, split((x, y), len(y) - 3, 3), chunk=5)
    errors = softmax(model, x) - nn.functional.one_hot(y, 3)
    gradients = torch.einsum("ica,ic->ia", jacobian(model, x), errors)
    close(matrix(operator), gradients.T @ gradients / len(y))


def test_gauss_newton_of_squares_is_twice_the_square_of_the_jacobian():
    model, (x, _) = mlp()
    y = torch.randn(24, 3, dtype=DOUBLE)
    j = jacobian(model, x).flatten(0, 1)
    close(matrix(GaussNewton(model, squared, split((x, y), 20, 4))), 2 * j.T @ j / (24 * 3))


def test_softmax_regression_is_its_own_gauss_newton_and_keeps_its_trace_identity():
    torch.manual_seed(0)
    model = nn.Linear(6, 4).to(DOUBLE)
    x, y = torch.randn(40, 6, dtype=DOUBLE), torch.arange(40) % 4
    p = softmax(model, x)
    operator = GaussNewton(model, cross_entropy, split((x, y), 33, 7))
    close(matrix(operator), matrix(Hessian(model, cross_entropy, [(x, y)])))
    exact = ((1 - p.square().sum(1)) * (x.square().sum(1) + 1)).mean().item()
    assert hessian_trace(operator).value == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("loss", ["cross-entropy", "squares"])
def test_the_mean_of_monte_carlo_fishers_is_gauss_newton(loss):
    model, (x, y) = mlp()
    objective, targets = cross_entropy, y
    if loss == "squares":
        objective, targets = squared, torch.randn(24, 3, dtype=DOUBLE)
    batches = split((x, targets), 20, 4)
    exact = matrix(GaussNewton(model, objective, batches))

    def error(draws):
        found = matrix(MonteCarloFisher(model, objective, batches, draws=draws, seed=draws))
        return (torch.linalg.matrix_norm(found - exact) / torch.linalg.matrix_norm(exact)).item()

    # The error of S draws falls like 1 / sqrt(S).
    coarse, fine = error(4), error(100)
    assert 0.08 < coarse < 0.6
    assert fine < 0.08
    assert 2 < coarse / fine < 15


def test_monte_carlo_draws_are_the_same_in_every_product():
    model, batch = mlp()
    operator = MonteCarloFisher(model, cross_entropy, split(batch, 10, 14), seed=3)
    v = torch.ones(57, 1, dtype=DOUBLE)
    torch.manual_seed(1)
    first = operator.matmat(v)
    torch.manual_seed(2)
    assert torch.equal(operator.matmat(v), first)
    other = MonteCarloFisher(model, cross_entropy, split(batch, 10, 14), seed=4)
    assert not torch.allclose(other.matmat(v), first)


def test_a_sampler_of_ones_own():
    model, (x, y) = mlp()
    same = MonteCarloFisher(model, cross_entropy, [(x, y)], sampler=lambda z, generator: y)
    close(matrix(same), matrix(EmpiricalFisher(model, cross_entropy, [(x, y)])))


def test_parameters_by_name_give_the_block():
    model, batch = mlp()
    whole = matrix(GaussNewton(model, cross_entropy, [batch]))
    close(matrix(GaussNewton(model, cross_entropy, [batch], params="2.*")), whole[-21:, -21:])


def test_a_linear_criterion_has_no_gauss_newton():
    model, batch = mlp()
    operator = GaussNewton(model, Supervised(lambda z, y: z.mean()), [batch])
    assert not matrix(operator).any()


def test_what_cannot_work_is_refused():
    model, batch = mlp()
    with pytest.raises(InputError, match=r"give flatminima.Supervised\(criterion\)"):
        GaussNewton(model, lambda m, b: cross_entropy(m, b), [batch])
    with pytest.raises(InputError, match="not known for the criterion <lambda>: give sampler="):
        MonteCarloFisher(model, Supervised(lambda z, y: z.mean()), [batch])
    with pytest.raises(InputError, match="draws is 0"):
        MonteCarloFisher(model, cross_entropy, [batch], draws=0)
    weighted = Supervised(nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 1.0]).to(DOUBLE)))
    with pytest.raises(InputError, match="mean over samples"):
        matrix(EmpiricalFisher(model, weighted, [batch]))
    with pytest.raises(InputError, match="does not depend on the parameters"):
        matrix(GaussNewton(model, Supervised(lambda z, y: z.detach().mean()), [batch]))
