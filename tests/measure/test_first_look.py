"""What is found out before the first product: randomness, sums, and batches that change later."""

import math
import random

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from flatminima.errors import InputError
from flatminima.measure import GaussNewton, Hessian, hessian_trace
from flatminima.measure.batches import Contents
from flatminima.objectives import Supervised

from .cases import DOUBLE, cross_entropy, dense_hessian, mlp, split

BACKENDS = ["autograd", "forward", "differences"]


def matrix(operator):
    return operator.matmat(torch.eye(operator.shape[0], dtype=operator.dtype))


def dropping():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(5, 6), nn.BatchNorm1d(6), nn.GELU(), nn.Dropout(0.5), nn.Linear(6, 3)
    )
    return model.to(DOUBLE).train(), mlp()[1]


def test_what_is_random_is_named_and_drawn_once_by_every_backend():
    model, batch = dropping()
    products = []
    for backend in BACKENDS:
        torch.manual_seed(7)
        batches = split(batch, 10, 14)
        operator = Hessian(model, cross_entropy, batches, eval_mode=False, backend=backend)
        first = matrix(operator)
        torch.rand(5)  # what is drawn elsewhere changes nothing
        assert torch.allclose(matrix(operator), first, rtol=1e-5, atol=1e-7)
        assert torch.allclose(first, first.T, rtol=1e-4, atol=1e-6)
        assert operator.description.endswith(
            "; one draw of what is random: Dropout '3'; "
            "each batch by its own statistics: BatchNorm1d '1'"
        )
        products.append(first)
    for other in products[1:]:
        assert (other - products[0]).norm() < 1e-5 * products[0].norm()


def test_a_random_function_is_told_without_a_name():
    model, batch = mlp()

    def noisy(model, batch):
        return cross_entropy(model, (batch[0] + torch.randn_like(batch[0]), batch[1]))

    trace = hessian_trace(Hessian(model, noisy, [batch]), probes=3)
    assert "; one draw of what is random: no module known for it" in trace.method


def test_nothing_is_said_of_a_loss_that_is_not_random():
    model, batch = dropping()
    for operator in (
        Hessian(model, cross_entropy, [batch]),
        GaussNewton(model, cross_entropy, [batch]),
    ):
        matrix(operator)
        assert operator.remarks == ""


def test_randomness_that_torch_does_not_rule_is_refused():
    model, batch = mlp()
    generator = random.Random(0)

    def noisy(model, batch):
        return cross_entropy(model, batch) * (1 + generator.random())

    with pytest.raises(InputError, match=r"same weights, samples and random state .* take out"):
        matrix(Hessian(model, noisy, [batch]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sum_over_samples_is_refused(backend):
    model, batch = mlp()

    def summed(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="sum")

    with pytest.raises(InputError, match=r"not their mean: return the mean over samples"):
        matrix(Hessian(model, summed, [batch], backend=backend))


def test_losses_that_tie_samples_together_are_measured():
    model, (x, y) = mlp()

    def contrastive(model, batch):
        z = model(batch[0])
        return nn.functional.cross_entropy(z @ z.T, torch.arange(len(z)))

    operator = Hessian(model, contrastive, [(x, y)])
    assert matrix(operator).abs().sum() > 0
    assert "not the mean of its parts" in operator.remarks


def test_a_weighted_mean_is_remarked_and_a_mean_is_not():
    model, (x, y) = mlp()
    y = y.sort().values  # so that the halves hold other classes
    weights = torch.linspace(1.0, 5.0, model(x).shape[1], dtype=x.dtype)
    weighted = Supervised(nn.CrossEntropyLoss(weight=weights))
    for objective, expected in ((weighted, True), (cross_entropy, False)):
        operator = Hessian(model, objective, [(x, y)])
        matrix(operator)
        assert ("not the mean of its parts" in operator.remarks) is expected


def test_models_of_a_fixed_batch_size_are_measured():
    model, (x, y) = mlp()

    def fixed(model, batch):
        return cross_entropy(model, (batch[0].view(24, 5), batch[1]))

    found = matrix(Hessian(model, fixed, [(x, y)]))
    assert torch.allclose(found, dense_hessian(model, (x, y)))


def test_objectives_that_differentiate_or_use_torch_func_are_measured():
    model, (x, y) = mlp()

    def penalty(model, batch):
        x = batch[0].clone().requires_grad_()
        (slope,) = torch.autograd.grad(cross_entropy(model, (x, batch[1])), x, create_graph=True)
        return cross_entropy(model, batch) + len(x) * slope.square().sum()

    def by_func(model, batch):
        def of(x, y):
            return cross_entropy(model, (x[None], y[None]))

        slope = torch.func.vmap(torch.func.grad(of))(*batch)
        return cross_entropy(model, batch) + slope.square().sum(1).mean()

    found = [matrix(Hessian(model, f, [(x, y)])) for f in (penalty, by_func)]
    assert torch.allclose(*found)


class Augmented(Dataset):
    """Inputs that no torch generator shakes, so little that the loss hardly notices."""

    def __init__(self, batch, size):
        self.batch, self.size, self.generator = batch, size, random.Random(0)

    def __len__(self):
        return len(self.batch[1])

    def __getitem__(self, i):
        shake = self.size * (self.generator.random() - 0.5)
        return self.batch[0][i] + shake, self.batch[1][i]


@pytest.mark.parametrize("size", [1e-4, 1.0])
def test_random_augmentation_is_told_by_the_contents(size):
    model, batch = mlp()
    operator = Hessian(model, cross_entropy, DataLoader(Augmented(batch, size), batch_size=8))
    operator.matmat(torch.ones(57, 1))
    with pytest.raises(InputError, match="hold other samples, so give ones that stay the same"):
        operator.matmat(torch.ones(57, 1))


def test_samples_left_out_in_turn_are_told():
    class Turning:
        start = 0

        def __iter__(self):
            self.start += 1
            order = torch.roll(torch.arange(24), self.start)[:20]
            return iter([(x[order], y[order])])

    model, (x, y) = mlp()
    operator = Hessian(model, cross_entropy, Turning())
    operator.matmat(torch.ones(57, 1))
    with pytest.raises(InputError, match=r"over 20 samples and .* hold other samples"):
        operator.matmat(torch.ones(57, 1))


@pytest.mark.parametrize("change", ["drawn anew", "dealt anew"])
def test_labels_that_change_are_told_by_the_contents(change):
    class Relabelled:
        seed = 0

        def __iter__(self):
            self.seed += 1
            g = torch.Generator().manual_seed(self.seed)
            dealt = y[torch.randperm(24, generator=g)]
            labels = torch.randint(3, (24,), generator=g) if change == "drawn anew" else dealt
            return iter(split((x, labels), 10, 14))

    model, (x, y) = mlp()
    operator = Hessian(model, cross_entropy, Relabelled())
    operator.matmat(torch.ones(57, 1))
    with pytest.raises(InputError, match="hold other samples, so give ones that stay the same"):
        operator.matmat(torch.ones(57, 1))


@pytest.mark.parametrize("odd", [1.0, math.nan])
def test_the_same_samples_in_another_order_are_the_same_contents(odd):
    x, y = mlp()[1]
    x = x.index_fill(0, torch.tensor([3]), odd)
    first, turned, twice = Contents(), Contents(), Contents()
    order = torch.roll(torch.arange(24), 5)
    for batch in split((x, y), 10, 14):
        first.add(batch)
        twice.add(batch)
        twice.add(batch)
    for batch in split((x[order], y[order]), 7, 17):
        turned.add(batch)
    assert not first.differ(turned)
    assert first.differ(twice)


def test_a_shuffled_loader_has_one_order_for_one_operator():
    model, batch = mlp()
    orders = []

    class Noting(nn.Module):
        def forward(self, x):
            orders.append(x[:, 0].tolist())
            return model(x)

    wrapper = Noting()
    wrapper.model = model
    loader = DataLoader(TensorDataset(*batch), batch_size=24, shuffle=True)
    operator = Hessian(wrapper, cross_entropy, loader)
    for _ in range(2):
        operator.matmat(torch.ones(57, 1))
        torch.rand(3)
    assert orders[-2] == orders[-1] != batch[0][:, 0].tolist()
