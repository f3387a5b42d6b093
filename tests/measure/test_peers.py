"""The same numbers as other libraries, where they are installed; none of them is a dependency."""

import math

import pytest
import torch
from torch import nn

from flatminima.measure import (
    EmpiricalFisher,
    GaussNewton,
    Hessian,
    hessian_trace,
    top_eigenvalues,
)

from .cases import DOUBLE, MODELS, cross_entropy, split

criterion = nn.CrossEntropyLoss()


def batches_of(name):
    """A model, and its samples in two batches of different sizes."""
    model, batch = MODELS[name]()
    return model.eval(), split(batch, len(batch[1]) - 3, 3)


def vectors(model, count=4):
    n = sum(p.numel() for p in model.parameters())
    return torch.randn(n, count, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))


def close(found, expected, tolerance=1e-9):
    assert (found - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("name", ["mlp", "cnn"])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Hessian, "HessianLinearOperator"),
        (GaussNewton, "GGNLinearOperator"),
        (EmpiricalFisher, "EFLinearOperator"),
    ],
)
def test_products_are_those_of_curvlinops(name, ours, theirs):
    curvlinops = pytest.importorskip("curvlinops")
    model, batches = batches_of(name)
    other = getattr(curvlinops, theirs)(model, criterion, list(model.parameters()), batches)
    v = vectors(model)
    close(ours(model, cross_entropy, batches).matmat(v), other @ v)


def test_the_trace_is_that_of_curvlinops_within_both_errors():
    curvlinops = pytest.importorskip("curvlinops")
    model, batches = batches_of("cnn")
    other = curvlinops.HessianLinearOperator(model, criterion, list(model.parameters()), batches)
    torch.manual_seed(0)
    # With so many products its own error is small beside ours.
    theirs = curvlinops.xtrace(other, 2 * (other.shape[0] // 3)).item()
    ours = hessian_trace(Hessian(model, cross_entropy, batches), method="xtrace", probes=40)
    assert abs(ours.value - theirs) < 5 * ours.stderr


@pytest.mark.parametrize("name", MODELS)
def test_eigenvalues_are_those_of_hessian_eigenthings(name):
    eigenthings = pytest.importorskip("hessian_eigenthings")
    model, (batch, _) = batches_of(name)
    # One batch: it weighs batches alike, whatever their sizes.
    other = eigenthings.HessianOperator(model, [batch], eigenthings.supervised_loss(criterion))
    with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
        theirs = eigenthings.lanczos(other, k=2, max_iter=40, which="LA", seed=0)
    ours = top_eigenvalues(Hessian(model, cross_entropy, [batch]), 2, tol=1e-7)
    assert ours.values == pytest.approx(theirs.eigenvalues.numpy(), rel=1e-8)


@pytest.mark.parametrize("name", MODELS)
def test_trace_and_eigenvalue_are_those_of_pyhessian(name):
    pyhessian = pytest.importorskip("pyhessian")
    model, batches = batches_of(name)
    # It keeps its vectors in float32.
    model.float()
    batches = [(x.float() if x.is_floating_point() else x, y) for x, y in batches]
    torch.manual_seed(0)
    with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
        other = pyhessian.hessian(model, criterion, dataloader=batches, cuda=False)
        (largest,), _ = other.eigenvalues(maxIter=1000, tol=1e-6)
        # Its rule takes a negative running mean for converged at any tolerance from 0 on.
        forms = torch.tensor(other.trace(maxIter=400, tol=-math.inf))
    operator = Hessian(model, cross_entropy, batches)
    ours = top_eigenvalues(operator, 1, which="magnitude", tol=1e-4)
    assert ours.value == pytest.approx(largest, rel=1e-3)
    trace = hessian_trace(operator, probes=operator.shape[0])
    assert abs(forms.mean().item() - trace.value) < 5 * forms.std().item() / 20
