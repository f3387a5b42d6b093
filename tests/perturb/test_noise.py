import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flatminima.errors import InputError
from flatminima.perturb import DISTRIBUTIONS, NSO, Noise, Stream
from flatminima.perturb.noise import _mix, tensor_ids

CPU = torch.device("cpu")
properties = settings(max_examples=100, deadline=None, derandomize=True)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_moments(name, dtype):
    n, noise = 400_000, DISTRIBUTIONS[name]
    generator = torch.Generator().manual_seed(0)
    z = noise.sample(torch.empty(n, dtype=dtype), generator).double()
    # Within 5 standard errors, with the sample's own spread.
    for power, expected in ((1, 0.0), (2, 1.0), (3, 0.0), (4, noise.fourth_moment)):
        moment = z**power
        tolerance = 5 * moment.std().item() / math.sqrt(n) + 1e-6
        assert moment.mean().item() == pytest.approx(expected, abs=tolerance), power


@pytest.mark.parametrize(("name", "values"), [("rademacher", [-1, 1]), ("binomial", range(-2, 3))])
def test_values_of_the_discrete_ones(name, values):
    z = DISTRIBUTIONS[name].sample(torch.empty(1000), torch.Generator().manual_seed(0))
    assert sorted(z.unique().tolist()) == list(values)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2)])
def test_any_shape(name, shape):
    z = DISTRIBUTIONS[name].sample(torch.empty(shape), torch.Generator().manual_seed(0))
    assert z.shape == shape
    assert z.isfinite().all()


def test_cauchy_is_refused_with_the_reason_and_others_with_the_nearest():
    with pytest.raises(InputError, match="no variance"):
        Noise.named("cauchy")
    with pytest.raises(InputError, match="did you mean 'rademacher'"):
        Noise.named("radmacher")


@properties
@given(
    st.integers(-(2**63), 2**64),
    st.lists(st.integers(0, 2**31), max_size=3),
    st.lists(st.integers(0, 2**32 - 1), min_size=2, max_size=20, unique=True),
)
def test_tensors_of_a_draw_get_distinct_low_32_bits(seed, counters, ids):
    stream = Stream(seed)
    ids = list({*ids, *(i ^ 1 << 31 for i in ids), *(i ^ 1 for i in ids)})
    seeds = [stream.generator(CPU, i, *counters).initial_seed() & 0xFFFFFFFF for i in ids]
    assert len(set(seeds)) == len(ids)


@properties
@given(st.sets(st.integers(0, 2**32 - 1), min_size=2))
def test_the_mixing_is_a_bijection(numbers):
    mixed = {_mix(n) for n in numbers}
    assert len(mixed) == len(numbers)
    assert all(0 <= m < 2**32 for m in mixed)


@properties
@given(st.integers(0, 100), st.integers(0, 100), st.integers(0, 100))
def test_a_draw_is_its_address(seed, tensor, step):
    def draw():
        return torch.empty(4).normal_(generator=Stream(seed).generator(CPU, tensor, step, 0, 0))

    assert torch.equal(draw(), draw())


@pytest.mark.parametrize("counters", [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_each_counter_changes_the_draw(counters):
    stream = Stream(0)
    first = torch.empty(8).normal_(generator=stream.generator(CPU, 5, 0, 0, 0))
    assert not torch.equal(
        first, torch.empty(8).normal_(generator=stream.generator(CPU, 5, *counters))
    )


@properties
@given(st.lists(st.text(max_size=4), max_size=30))
def test_tensor_ids_are_distinct_also_for_equal_names(names):
    ids = tensor_ids(names)
    assert len(set(ids)) == len(names)
    assert all(0 <= i < 2**32 for i in ids)


@properties
@given(st.lists(st.text(), unique=True, max_size=20), st.randoms(use_true_random=False))
def test_an_id_depends_on_the_name_alone(names, random):
    known = dict(zip(names, tensor_ids(names), strict=True))
    random.shuffle(names)
    assert dict(zip(names, tensor_ids(names), strict=True)) == known


def displacements(parameters, **options):
    optimizer = NSO(torch.optim.SGD(parameters, lr=0.0), sigma=1.0, seed=3, **options)
    tensors = [p for group in optimizer.param_groups for p in group["params"]]
    home = [p.detach().clone() for p in tensors]
    first = optimizer.passes()
    next(first)
    return [p.detach() - h for p, h in zip(tensors, home, strict=True)]


def test_layers_of_one_shape_share_no_noise():
    n = 10_000
    found = displacements([nn.Parameter(torch.zeros(n)) for _ in range(12)])
    correlation = torch.stack(found).corrcoef() - torch.eye(12)
    # 66 pairs of standard error 1 / sqrt(n).
    assert correlation.abs().max() < 5 / math.sqrt(n)


@pytest.mark.parametrize("source", ["names", "model"])
def test_named_tensors_draw_the_same_in_any_order(source):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    named = list(model.named_parameters())

    def draw(order):
        if source == "names":
            return displacements(order)
        return displacements([p for _, p in order], model=model)

    forwards, backwards = draw(named), draw(named[::-1])
    for a, b in zip(forwards, backwards[::-1], strict=True):
        torch.testing.assert_close(a, b)


def test_names_given_to_the_optimizer_and_by_the_model_agree():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    by_names = displacements(list(model.named_parameters()))
    by_model = displacements(list(model.parameters()), model=model)
    assert all(map(torch.equal, by_names, by_model))


def test_the_noise_is_that_of_torch_manual_seed_by_default():
    w = nn.Parameter(torch.zeros(3))
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        for _ in NSO(torch.optim.SGD([w]), sigma=1.0).passes():
            found.append(w.detach().clone())
            break
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
