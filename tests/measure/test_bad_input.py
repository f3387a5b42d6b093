"""Each thing that cannot work is refused in one line that names it."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from flatminima.errors import InputError
from flatminima.measure import Hessian, curvature, hessian_trace, perturbation_gap
from flatminima.measure.batches import sample_count

from .cases import cross_entropy, mlp, split


def by_hessian(model, objective, batches):
    hessian_trace(Hessian(model, objective, batches), probes=2)


def by_gap(model, objective, batches):
    perturbation_gap(model, objective, batches, sigma=0.1, draws=2)


both = pytest.mark.parametrize("measure", [by_hessian, by_gap])


@both
@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "batches is empty"),
        ((batch for batch in [mlp()[1]]), "generator, which can be read only once"),
        (iter([mlp()[1]]), "list_iterator, which can be read only once"),
        (None, "batches is a NoneType"),
        ([{"targets": None}], r"cannot count the samples of a batch \(dict\)"),
        (["text"], r"cannot count the samples of a batch \(str\)"),
        ([torch.tensor(1.0)], "cannot count the samples"),
        ([(torch.zeros(0, 5), torch.zeros(0))], "no samples"),
    ],
)
def test_batches(measure, batches, message):
    with pytest.raises(InputError, match=message) as caught:
        measure(mlp()[0], cross_entropy, batches)
    assert "\n" not in str(caught.value)


@both
@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1], reduction="none"), r"\(24,\)"),
        (lambda m, b: m(b[0]).sum().item(), "returned float, not a scalar tensor"),
        (lambda m, b: m(b[0]).mean() * float("nan"), r"batch 0 \(counting from 0\) is nan"),
        (lambda m, b: m(b[0]).mean() + float("inf"), r"batch 0 \(counting from 0\) is inf"),
    ],
)
def test_objectives(measure, objective, message):
    model, batch = mlp()
    with pytest.raises(InputError, match=message):
        measure(model, objective, [batch])


@both
def test_the_bad_batch_is_named(measure):
    model, batch = mlp()
    batches = split(batch, 10, 10, 4)
    batches[2][0][1] = float("nan")
    with pytest.raises(InputError, match="batch 2 "):
        measure(model, cross_entropy, batches)


def test_a_loss_without_parameters():
    model, batch = mlp()
    with pytest.raises(InputError, match="does not depend on the parameters"):
        by_hessian(model, lambda m, b: b[0].mean(), [batch])


@both
def test_parameters(measure):
    model, batch = mlp()
    model[0].float()
    with pytest.raises(InputError, match="several dtypes"):
        measure(model, cross_entropy, [batch])
    with pytest.raises(InputError, match="no parameter of the model requires a gradient"):
        measure(model.requires_grad_(False), cross_entropy, [batch])


def test_chosen_parameters():
    model, batch = mlp()
    with pytest.raises(InputError, match="no parameter of the model: leave"):
        Hessian(model, cross_entropy, [batch], params=[nn.Parameter(torch.ones(1))])
    model[0].weight.requires_grad_(False)
    with pytest.raises(InputError, match=r"'0.weight' does not require"):
        Hessian(model, cross_entropy, [batch], params=model.parameters())


def test_parameters_that_have_no_derivative():
    model, batch = mlp()
    model.steps = nn.Parameter(torch.arange(3), requires_grad=False)
    assert "steps" not in Hessian(model, cross_entropy, [batch]).blocks
    with pytest.raises(InputError, match=r"'steps' is torch.int64, which has no derivative: leave"):
        Hessian(model, cross_entropy, [batch], params=[model.steps])
    with pytest.raises(InputError, match=r"'steps' matches only what does not require a gradient"):
        Hessian(model, cross_entropy, [batch], params="steps")


def test_the_ways_to_choose_parameters():
    model, batch = mlp()
    with pytest.raises(InputError, match="params is empty: leave it out"):
        Hessian(model, cross_entropy, [batch], params=[])
    with pytest.raises(InputError, match="names and tensors: give one or the other"):
        Hessian(model, cross_entropy, [batch], params=["0.*", model[2].bias])
    for one in ("2.bias", model[2].bias, iter(["2.bias"]), (p for p in [model[2].bias])):
        assert list(Hessian(model, cross_entropy, [batch], params=one).blocks) == ["2.bias"]


def test_an_empty_loader():
    model, batch = mlp()
    loader = DataLoader(TensorDataset(batch[0][:3], batch[1][:3]), batch_size=8, drop_last=True)
    with pytest.raises(InputError, match="batches is empty"):
        by_hessian(model, cross_entropy, loader)


@pytest.mark.parametrize("cut", [lambda z: z.detach(), lambda z: z.argmax(1).double()])
def test_a_loss_cut_off_from_the_parameters(cut):
    model, batch = mlp()
    with pytest.raises(InputError, match="does not depend on the parameters: check"):
        by_hessian(model, lambda m, b: cut(m(b[0])).mean(), [batch])


@pytest.mark.parametrize("backend", ["autograd", "forward", "differences"])
def test_a_loss_that_is_not_a_number_only_in_the_second_batch(backend):
    model, batch = mlp()
    batches = split(batch, 12, 12)
    batches[1][0][0] = float("inf")
    operator = Hessian(model, cross_entropy, batches, backend=backend)
    with pytest.raises(InputError, match=r"loss of batch 1 \(counting from 0\) is nan"):
        operator.matmat(torch.ones(57, 1))


def test_curvature_looks_at_its_arguments_first():
    model, batch = mlp()
    with pytest.raises(InputError, match="probes is 0"):
        curvature(model, cross_entropy, [batch], sigma=0.1, probes=0)
    with pytest.raises(InputError, match="eigenvalues is 0"):
        curvature(model, cross_entropy, [batch], sigma=0.1, eigenvalues=0)
    with pytest.raises(InputError, match="sigma is -1"):
        curvature(model, cross_entropy, [batch], sigma=-1)


@pytest.mark.parametrize(
    ("batch", "count"),
    [
        ((torch.zeros(3, 2), torch.zeros(3)), 3),
        ([torch.zeros(3, 2), torch.zeros(3)], 3),
        ({"inputs": {"ids": torch.zeros(9, 4)}, "targets": torch.zeros(3)}, 3),
        ({"ids": torch.zeros(4, 7), "mask": torch.zeros(5)}, 4),
        (({"ids": torch.zeros(4, 7)}, "text"), 4),
        (torch.zeros(6, 2), 6),
    ],
)
def test_samples_are_counted(batch, count):
    assert sample_count(batch) == count
