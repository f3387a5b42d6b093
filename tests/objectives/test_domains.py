"""Objectives of several domains, and what they have in common."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from flatminima import CORAL, ERM, IRM, Fishr, HessianAlignment, VREx
from flatminima.errors import InputError
from flatminima.objectives import make_objective

CLASSES = 3
DIFFERENCES = (ERM(), CORAL(), VREx(), Fishr(), HessianAlignment())
ALL = (*DIFFERENCES, IRM())


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, CLASSES)).double().train()


def batch():
    g = torch.Generator().manual_seed(1)
    x = torch.randn(19, 5, dtype=torch.float64, generator=g)
    y, domain = (torch.randint(CLASSES, (19,), generator=g) for _ in range(2))
    return {"inputs": x, "targets": y, "domain": domain}


def parts(data):
    return [
        (data["inputs"][data["domain"] == e], data["targets"][data["domain"] == e])
        for e in range(CLASSES)
    ]


def mean_loss(model, data):
    return torch.stack([cross_entropy(model(x), y) for x, y in parts(data)]).mean()


def penalty(objective, model, data):
    return (objective(model, data) - mean_loss(model, data)) / objective.weight


def test_erm_weighs_domains_and_not_samples():
    model, data = network(), batch()
    assert data["domain"].bincount().unique().numel() > 1
    torch.testing.assert_close(ERM()(model, data), mean_loss(model, data))


def test_irm_is_the_squared_derivative_by_a_scale_of_the_logits():
    model, data = network(), batch()
    expected = 0.0
    for x, y in parts(data):
        w = torch.ones((), dtype=torch.float64, requires_grad=True)
        expected += torch.autograd.grad(cross_entropy(w * model(x), y), w)[0] ** 2 / CLASSES
    torch.testing.assert_close(penalty(IRM(), model, data), expected)


def test_vrex_is_the_variance_of_the_losses():
    model, data = network(), batch()
    losses = torch.stack([cross_entropy(model(x), y) for x, y in parts(data)])
    torch.testing.assert_close(penalty(VREx(), model, data), losses.var(correction=0))


def test_coral_is_the_distance_of_means_and_covariances_over_pairs():
    model, data = network(), batch()
    features = [model[:2](x) for x, _ in parts(data)]
    expected = 0.0
    for a, b in ((0, 1), (0, 2), (1, 2)):
        apart = (features[a].mean(0) - features[b].mean(0)).square().mean()
        apart = apart + (features[a].T.cov() - features[b].T.cov()).square().mean()
        expected += apart / 3
    torch.testing.assert_close(penalty(CORAL(), model, data), expected)


def test_fishr_is_the_distance_of_gradient_variances():
    model, data = network(), batch()
    variances = []
    for x, y in parts(data):
        own = []
        for i in range(len(y)):
            loss = cross_entropy(model(x[i : i + 1]), y[i : i + 1])
            own.append(
                torch.cat(
                    [g.flatten() for g in torch.autograd.grad(loss, [*model[2].parameters()])]
                )
            )
        variances.append(torch.stack(own).var(0, correction=0))
    v = torch.stack(variances)
    expected = (v - v.mean(0)).square().sum(1).mean()
    torch.testing.assert_close(penalty(Fishr(), model, data), expected)


@pytest.mark.parametrize("objective", DIFFERENCES, ids=lambda o: type(o).__name__)
def test_domains_of_the_same_samples_cost_nothing(objective):
    model, (first, *_) = network(), parts(batch())
    data = {
        "inputs": torch.cat([first[0]] * 2),
        "targets": torch.cat([first[1]] * 2),
        "domain": torch.arange(2).repeat_interleave(len(first[1])),
    }
    expected = cross_entropy(model(first[0]), first[1])
    torch.testing.assert_close(objective(model, data), expected)


@pytest.mark.parametrize("objective", ALL, ids=lambda o: type(o).__name__)
def test_a_batch_of_one_domain_has_the_plain_loss(objective):
    model, data = network(), batch()
    data["domain"] = torch.zeros_like(data["domain"])
    expected = cross_entropy(model(data["inputs"]), data["targets"])
    torch.testing.assert_close(objective(model, data), expected)


@pytest.mark.parametrize("objective", ALL, ids=lambda o: type(o).__name__)
def test_the_order_of_samples_and_the_numbers_of_domains_do_not_matter(objective):
    model, data = network(), batch()
    order = torch.randperm(19, generator=torch.Generator().manual_seed(7))
    other = {name: values[order] for name, values in data.items()}
    other["domain"] = 5 - 2 * other["domain"]
    torch.testing.assert_close(objective(model, other), objective(model, data))


def test_the_penalty_has_its_early_weight_until_the_warmup_is_over():
    model, data = network(), batch()
    plain = mean_loss(model, data)
    spread = penalty(VREx(weight=2.0), model, data)
    objective = VREx(weight=50.0, warmup=2, early_weight=0.5)
    seen = []
    for taken in (True, False, True):
        seen.append(objective(model, data))
        objective.after_step(taken)
    torch.testing.assert_close(seen[0], plain + 0.5 * spread)
    torch.testing.assert_close(seen[1], plain + 0.5 * spread)
    torch.testing.assert_close(seen[2], plain + 50 * spread)
    assert VREx(weight=50.0, warmup=2).early_weight == 1
    assert VREx(weight=0.1, warmup=2).early_weight == 0.1


def test_rescaling_divides_by_a_weight_above_one_only():
    model, data = network(), batch()
    for weight, by in ((50.0, 50.0), (0.5, 1.0)):
        whole = VREx(weight=weight)(model, data)
        torch.testing.assert_close(VREx(weight=weight, rescale=True)(model, data), whole / by)


def test_the_count_of_steps_is_saved():
    objective = VREx(warmup=3)
    for _ in range(2):
        objective.after_step()
    other = VREx(warmup=3)
    other.load_state_dict(copy.deepcopy(objective.state_dict()))
    assert other.step == 2


def test_mistakes_are_named():
    model, data = network(), batch()
    with pytest.raises(InputError, match="does not say where its samples are"):
        IRM()(model, (data["inputs"], data["targets"]))
    with pytest.raises(InputError, match=r"warmup is 2\.5"):
        make_objective("vrex", warmup=2.5)
    with pytest.raises(InputError, match="weight is -1"):
        make_objective("irm", weight=-1)
    with pytest.raises(InputError, match="did you mean 'alpha'"):
        make_objective("hgp", alpa=1)
    with pytest.raises(InputError, match="unknown layer"):
        CORAL(layer="heaad")(model, data)
    for others in (data["domain"][:-1], torch.cat([data["domain"]] * 2)):
        with pytest.raises(InputError, match=f'"domain" names {len(others)} domains for 19'):
            ERM()(model, {**data, "domain": others})
    with pytest.raises(InputError, match="which are no classes"):
        ERM()(model, {**data, "targets": data["targets"].double()})
    bent = nn.Sequential(*network(), nn.Softplus()).train()
    with pytest.raises(InputError, match="take hgp"):
        Fishr()(bent, data)


def test_a_model_of_transformers_batches_is_not_given_the_domain():
    class Wants(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(5, CLASSES).double()

        def forward(self, x):
            return self.head(x)

    data = batch()
    given = {"x": data["inputs"], "labels": data["targets"], "domain": data["domain"]}
    model = Wants().train()
    torch.testing.assert_close(
        HessianAlignment()(model, {**given, "index": torch.arange(19)}),
        HessianAlignment()(model, data),
    )
