import copy
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flatminima.errors import InputError
from flatminima.measure import Dense, LayerBound, layer_bound
from flatminima.measure.layer_bound import positive_form

from .cases import DOUBLE, MODELS, cross_entropy, dense_hessian, mlp, split, symmetric


def positive(matrix):
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ values.clamp(min=0).diag() @ vectors.T


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 20), st.integers(0, 10_000), st.floats(1e-3, 1e3))
def test_quadrature_is_exact_once_the_krylov_space_is_exhausted(n, seed, spread):
    matrix = symmetric(n, seed, spread)
    v = symmetric(n, seed + 1)[0]
    exact = (v @ positive(matrix) @ v).item()
    found = positive_form(Dense(matrix), v, n)
    assert found == pytest.approx(exact, rel=1e-8, abs=1e-10 * spread)


def test_one_step_is_enough_for_an_eigenvector_and_for_a_positive_matrix():
    matrix = symmetric(9) @ symmetric(9)
    v = torch.ones(9, dtype=DOUBLE)
    assert positive_form(Dense(matrix), v, 1) == pytest.approx((v @ matrix @ v).item())
    negative = torch.tensor([-2.0, 3.0], dtype=DOUBLE).diag()
    operator = Dense(negative)
    found = [positive_form(operator, column, 5) for column in torch.eye(2, dtype=DOUBLE)]
    assert found == [0.0, pytest.approx(3.0)]
    assert operator.hvps == 2
    assert positive_form(operator, torch.zeros(2, dtype=DOUBLE), 5) == 0.0


@pytest.mark.parametrize("name", MODELS)
def test_each_layer_is_measured_by_its_own_block(name):
    model, batch = MODELS[name]()
    model.eval()
    start = copy.deepcopy(model)
    torch.manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.3)
    half = len(batch[1]) // 2
    batches = split(batch, half, len(batch[1]) - half)
    found = layer_bound(model, cross_entropy, batches, reference=start, steps=100)
    hessians = [dense_hessian(model, part) for part in batches]
    at = 0
    pairs = zip(model.named_parameters(), start.parameters(), strict=True)
    for (key, p), q in pairs:
        v = (p - q).detach().flatten()
        block = slice(at, at + p.numel())
        at += p.numel()
        exact = max((v @ positive(h[block, block]) @ v).item() for h in hessians)
        assert found.curvatures[key] == pytest.approx(exact, rel=1e-6, abs=1e-9)
        assert found.distances[key] == pytest.approx(v.norm().item())


def test_the_bound_is_the_sum_of_its_layers():
    model, batch = mlp()
    found = layer_bound(model, cross_entropy, split(batch, 20, 4), max_loss=4.0, epsilon=0.2)
    rate = 1.2 * math.sqrt(4.0 / 24)
    layers = [rate * math.sqrt(value) for value in found.curvatures.values()]
    assert list(found.layers.values()) == pytest.approx(layers)
    loss = cross_entropy(model, batch).item()
    assert found.value == pytest.approx(1.2 * loss + sum(layers))
    more = layer_bound(model, cross_entropy, [batch] * 4, max_loss=4.0, epsilon=0.2)
    one = layer_bound(model, cross_entropy, [batch], max_loss=4.0, epsilon=0.2)
    assert more.value - 1.2 * loss == pytest.approx((one.value - 1.2 * loss) / 2)


def test_where_nothing_moved_only_the_loss_is_left():
    model, batch = mlp()
    found = layer_bound(model, cross_entropy, [batch], reference=model)
    assert found.value == pytest.approx(1.1 * found.loss)
    assert (found.hvps, found.from_initialization) == (0, True)


def test_over_samples_the_maxima_are_larger():
    model, batch = mlp()
    batches = layer_bound(model, cross_entropy, split(batch, 12, 12))
    samples = layer_bound(model, cross_entropy, split(batch, 12, 12), over="samples", steps=5)
    singles = [cross_entropy(model, s).item() for s in split(batch, *[1] * 24)]
    assert samples.max_loss == batches.max_loss == pytest.approx(max(singles))
    assert sum(samples.curvatures.values()) > sum(batches.curvatures.values())
    assert (samples.samples, samples.over) == (24, "samples")


def test_it_prints_and_serializes():
    model, batch = mlp()
    found = layer_bound(model, cross_entropy, [batch])
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert LayerBound.from_dict(data) == found
    lines = str(found).splitlines()
    assert [line.split()[0] for line in lines[1:5]] == list(found.curvatures)
    assert lines[5].endswith(": not vacuous")
    assert not found.vacuous
    low = layer_bound(model, cross_entropy, [batch], max_loss=1.2)
    assert low.vacuous
    assert str(low).splitlines()[5].endswith(": vacuous")
    assert "not certified" in lines[6]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"epsilon": 0.0}, "epsilon is 0.0"),
        ({"over": "classes"}, "unknown over 'classes'"),
        ({"reference": {}}, "reference has no '0.weight'"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    model, batch = mlp()
    with pytest.raises(InputError, match=message):
        layer_bound(model, cross_entropy, [batch], **arguments)
