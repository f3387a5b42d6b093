"""Hessian alignment against explicit Hessians, and its closed forms against autograd."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, hessian
from torch.nn.functional import cross_entropy

from flatminima import (
    NSO,
    HessianAlignment,
    HutchinsonAlignment,
    hessian_alignment,
    linear_head_alignment,
)
from flatminima.errors import InputError
from flatminima.objectives.linear_head import LinearHeadLoss
from flatminima.reparam import LoRA

DOMAINS, SAMPLES, WIDTH, CLASSES = 3, 7, 4, 3
METHODS = ("hgp", "hutchinson", "diag-exact")


class Net(nn.Module):
    def __init__(self, head=None, bias=True):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, WIDTH), nn.Tanh())
        self.head = head or nn.Linear(WIDTH, CLASSES, bias=bias)

    def forward(self, x):
        return self.head(self.body(x))


def network(**given):
    torch.manual_seed(0)
    return Net(**given).double()


def deep_head():
    return nn.Sequential(nn.Linear(WIDTH, 3), nn.Softplus(), nn.Linear(3, CLASSES))


def domains(number=DOMAINS, seed=1):
    g = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(SAMPLES + e, 5, dtype=torch.float64, generator=g),
            torch.randint(CLASSES, (SAMPLES + e,), generator=g),
        )
        for e in range(number)
    ]


def batch(data=None):
    data = data or domains()
    place = torch.cat([torch.full((len(y),), 10 + e) for e, (_, y) in enumerate(data)])
    x, y = torch.cat([x for x, _ in data]), torch.cat([y for _, y in data])
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(2))
    return {"inputs": x[order], "targets": y[order], "domain": place[order]}


def losses(model, data=None):
    return [cross_entropy(model(x), y) for x, y in data or domains()]


def by_autograd(model, method="hgp", alpha=1.0, beta=1.0, data=None, **more):
    generator = torch.Generator().manual_seed(3)
    return hessian_alignment(
        losses(model, data),
        model.head.parameters(),
        method,
        alpha,
        beta,
        generator=generator,
        **more,
    )


def by_closed_form(model, method="hgp", alpha=1.0, beta=1.0, data=None, **more):
    data = data or domains()
    features = [model.body(x) for x, _ in data]
    return linear_head_alignment(
        features,
        [model.head(f) for f in features],
        [y for _, y in data],
        method,
        alpha,
        beta,
        bias=model.head.bias is not None,
        generator=torch.Generator().manual_seed(3),
        **more,
    )


def gradient(value, model):
    found = torch.autograd.grad(value, list(model.parameters()), allow_unused=True)
    return torch.cat([g.flatten() for g in found if g is not None])


def explicit(model, x, y):
    """Gradient and Hessian by the head's parameters, dense."""
    names = [f"head.{name}" for name, _ in model.head.named_parameters()]
    own = dict(model.named_parameters())
    flat = torch.cat([own[name].detach().flatten() for name in names])

    def loss(vector):
        parts = vector.split([own[name].numel() for name in names])
        swapped = {n: v.view_as(own[n]) for n, v in zip(names, parts, strict=True)}
        return cross_entropy(functional_call(model, swapped, (x,)), y)

    return torch.func.grad(loss)(flat), hessian(loss)(flat)


@pytest.mark.parametrize("head", [None, deep_head], ids=["linear", "deep"])
@pytest.mark.parametrize("method", ["hgp", "diag-exact"])
def test_the_penalty_is_that_of_explicit_hessians(head, method):
    model = network(head=None if head is None else head())
    pairs = [explicit(model, x, y) for x, y in domains()]
    mean_g = torch.stack([g for g, _ in pairs]).mean(0)
    mean_h = torch.stack([h for _, h in pairs]).mean(0)
    expected = 0.0
    for g, h in pairs:
        far = h @ g - mean_h @ mean_g if method == "hgp" else (h - mean_h).diagonal()
        expected += (2 * far.square().sum() + 0.5 * (g - mean_g).square().sum()) / DOMAINS
    found = by_autograd(model, method, 2.0, 0.5)
    torch.testing.assert_close(found.detach(), expected, rtol=1e-12, atol=0)


def test_the_mean_product_is_not_the_mean_of_products():
    model = network()
    pairs = [explicit(model, x, y) for x, y in domains()]
    mean_of_products = torch.stack([h @ g for g, h in pairs]).mean(0)
    wrong = torch.stack([(h @ g - mean_of_products).square().sum() for g, h in pairs]).mean()
    assert (by_autograd(model, "hgp", 1.0, 0.0) / wrong - 1).abs() > 0.001


def test_three_ways_to_a_hessian_gradient_product_agree():
    model = network()
    x, y = domains()[0]
    params = list(model.head.parameters())

    def flat(parts):
        return torch.cat([part.flatten() for part in parts])

    loss = cross_entropy(model(x), y)
    g = flat(torch.autograd.grad(loss, params, create_graph=True))
    half = flat(torch.autograd.grad(g.square().sum() / 2, params, retain_graph=True))
    norm = g.norm()
    scaled = norm * flat(torch.autograd.grad(norm, params))
    expected_g, h = explicit(model, x, y)
    closed = LinearHeadLoss(model.body(x), model(x), y).product(expected_g)
    for found in (half, scaled.detach(), closed.detach()):
        torch.testing.assert_close(found, h @ expected_g, rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("detach_mean", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_closed_forms_are_autograd_in_value_and_gradient(method, detach_mean, bias):
    model = network(bias=bias)
    given = {"alpha": 2.0, "beta": 0.5, "detach_mean": detach_mean, "probes": 4}
    slow, fast = by_autograd(model, method, **given), by_closed_form(model, method, **given)
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient(fast, model), gradient(slow, model), rtol=1e-9, atol=1e-16)


@settings(max_examples=30, deadline=None)
@given(
    classes=st.integers(2, 5),
    width=st.integers(1, 4),
    samples=st.integers(1, 6),
    scale=st.sampled_from([0.0, 1.0, 30.0]),
    seed=st.integers(0, 99),
)
def test_the_linear_heads_forms_are_the_hessians_whatever_the_sizes(
    classes, width, samples, scale, seed
):
    g = torch.Generator().manual_seed(seed)
    f = torch.randn(samples, width, dtype=torch.float64, generator=g)
    y = torch.randint(classes, (samples,), generator=g)
    flat = scale * torch.randn(classes * (width + 1), dtype=torch.float64, generator=g)
    vectors = torch.randn(2, len(flat), dtype=torch.float64, generator=g)

    def scores(theta):
        return f @ theta[: classes * width].view(classes, width).T + theta[classes * width :]

    head = LinearHeadLoss(f, scores(flat), y)
    dense = hessian(lambda theta: cross_entropy(scores(theta), y))(flat)
    slope = torch.func.grad(lambda theta: cross_entropy(scores(theta), y))(flat)
    close = {"rtol": 1e-8, "atol": 1e-10}
    torch.testing.assert_close(head.gradient(), slope, **close)
    torch.testing.assert_close(head.products(vectors), vectors @ dense, **close)
    torch.testing.assert_close(head.diagonal(), dense.diagonal(), **close)
    own = torch.stack(
        [
            torch.func.grad(lambda t, i=i: cross_entropy(scores(t)[i : i + 1], y[i : i + 1]))(flat)
            for i in range(samples)
        ]
    )
    torch.testing.assert_close(head.gradient_variance(), own.var(0, correction=0), **close)


@pytest.mark.parametrize("compute", [by_autograd, by_closed_form])
@pytest.mark.parametrize("method", METHODS)
def test_identical_domains_have_no_penalty_and_no_gradient(compute, method):
    model, (first, *_) = network(), domains()
    value = compute(model, method, data=[first, first], probes=3)
    # A rounding of 1e-16 is squared.
    assert value.item() < 1e-30
    assert gradient(value, model).abs().max() < 1e-15


def test_the_estimated_diagonal_has_the_predicted_mean_and_variance():
    model, k, draws = network(), 5, 4000
    x, y = domains()[0]
    _, h = explicit(model, x, y)
    head = LinearHeadLoss(model.body(x), model(x), y)
    signs = 2.0 * torch.randint(2, (draws * k, len(h)), generator=torch.Generator().manual_seed(4))
    signs = (signs - 1).double()
    with torch.no_grad():
        found = (signs * head.products(signs)).view(draws, k, -1).mean(1)
    variance = (h.square().sum(1) - h.diagonal().square()) / k
    z = (found.mean(0) - h.diagonal()) / (variance / draws).sqrt()
    assert z.abs().max() < 4
    assert (found.var(0).sum() / variance.sum()).item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(("method", "alpha"), [("hgp", 0.0), ("hutchinson", 1.0)])
def test_detaching_a_plain_mean_changes_no_gradient(method, alpha):
    model = network()
    free = gradient(by_autograd(model, method, alpha, detach_mean=False), model)
    held = gradient(by_autograd(model, method, alpha), model)
    torch.testing.assert_close(held, free, rtol=1e-10, atol=1e-16)


def test_detaching_the_mean_of_hgp_changes_its_gradient():
    model = network()
    free = gradient(by_autograd(model, "hgp", detach_mean=False, beta=0.0), model)
    held = gradient(by_autograd(model, "hgp", beta=0.0), model)
    assert (held - free).norm() > 0.01 * free.norm()


def test_the_penalty_moves_the_featurizer_too():
    model = network()
    by_autograd(model).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.body.parameters())


SLOTS = {
    "hgp": (HessianAlignment, {"alpha": 2.0, "beta": 0.5, "weight": 3.0}),
    "hutchinson": (HutchinsonAlignment, {"alpha": 2.0, "weight": 3.0, "probes": 4}),
    "diag-exact": (HutchinsonAlignment, {"alpha": 2.0, "weight": 3.0, "exact": True}),
}


@pytest.mark.parametrize("head", [None, deep_head], ids=["linear", "deep"])
@pytest.mark.parametrize("method", METHODS)
def test_the_objective_adds_the_penalty_to_the_mean_loss(method, head):
    cls, own = SLOTS[method]
    model = network(head=None if head is None else head()).train()
    objective = cls(**own, layer="head")
    torch.manual_seed(5)
    found = objective(model, batch())
    torch.manual_seed(5)
    own = {"beta": 1.0, **own}
    penalty = hessian_alignment(
        losses(model), model.head.parameters(), method, own["alpha"], own["beta"], probes=4
    )
    expected = torch.stack(losses(model)).mean() + 3 * penalty
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(
        gradient(found, model), gradient(expected, model), rtol=1e-8, atol=1e-14
    )
    assert objective._is_linear == (head is None)


def test_a_head_whose_outputs_are_changed_after_it_is_differentiated_by_autograd():
    class Scaled(Net):
        def forward(self, x):
            return 2 * super().forward(x)

    torch.manual_seed(0)
    model = Scaled().double().train()
    found = HessianAlignment()(model, batch())
    expected = torch.stack(losses(model)).mean() + hessian_alignment(
        losses(model), model.head.parameters()
    )
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)


def test_a_head_with_adapters_is_aligned_by_what_is_free_of_it():
    model = network(bias=True)
    LoRA(model, rank=2, targets="head", head=False)
    torch.nn.init.normal_(model.head.lora_B.default.weight)
    objective = HessianAlignment(alpha=0.5, beta=2.0, weight=3.0)
    found = objective(model.train(), batch())
    sides = [model.head.lora_A.default.weight, model.head.lora_B.default.weight]
    penalty = hessian_alignment(losses(model), sides, "hgp", 0.5, 2.0)
    torch.testing.assert_close(found, torch.stack(losses(model)).mean() + 3.0 * penalty)
    assert not objective._is_linear


def test_without_weights_it_has_the_gradient_of_erm():
    model = network().train()
    expected = gradient(torch.stack(losses(model)).mean(), model)
    for objective in (HessianAlignment(alpha=0, beta=0), HessianAlignment(weight=0)):
        found = gradient(objective(model, batch()), model)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


def test_passes_without_gradients_see_the_same_loss():
    for head in (None, deep_head()):
        model = network(head=head).train()
        expected = HessianAlignment()(model, batch())
        with torch.no_grad():
            found = HessianAlignment()(model, batch())
        assert not found.requires_grad
        torch.testing.assert_close(found, expected.detach())


def test_the_passes_of_a_step_share_their_signs():
    model = network().train()
    optimizer = NSO(torch.optim.SGD(model.parameters(), lr=0.1), sigma=1e-9, seed=0)
    objective, seen = HutchinsonAlignment(probes=1, weight=100), []
    for _ in optimizer.passes():
        loss = objective(model, batch())
        seen.append(loss.item())
        loss.backward()
    assert len(seen) == 2
    assert seen[0] == pytest.approx(seen[1], rel=1e-6)
    assert objective(model, batch()).item() != pytest.approx(seen[0], rel=1e-6)


def test_half_precision_is_near_single():
    model = network().float().train()
    data = {k: v.float() if v.is_floating_point() else v for k, v in batch().items()}
    objective = HessianAlignment(weight=10)
    whole = objective(model, data)
    with torch.autocast("cpu", torch.bfloat16):
        half = HessianAlignment(weight=10)
        value = half(model, data)
    assert half._is_linear
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(whole.item(), rel=0.05)
    value.backward()


def test_mistakes_are_named():
    model = network()
    with pytest.raises(InputError, match="1 domain"):
        hessian_alignment(losses(model)[:1], model.head.parameters())
    with pytest.raises(InputError, match="did you mean 'hgp'"):
        hessian_alignment(losses(model), model.head.parameters(), "hpg")
    with pytest.raises(InputError, match="head_params is empty"):
        hessian_alignment(losses(model), [])
    with pytest.raises(InputError, match="does not depend on the head"):
        hessian_alignment(losses(model), [torch.zeros(2, requires_grad=True)])
    with pytest.raises(InputError, match="no graph"):
        hessian_alignment([loss.detach() for loss in losses(model)], model.head.parameters())
    with pytest.raises(InputError, match="alpha is -1"):
        hessian_alignment(losses(model), model.head.parameters(), alpha=-1)
    with pytest.raises(InputError, match="probes is 0"):
        hessian_alignment(losses(model), model.head.parameters(), "hutchinson", probes=0)
    with pytest.raises(InputError, match="two domains or more"):
        linear_head_alignment([torch.ones(2, 2)], [torch.ones(2, 2)], [torch.ones(2)])
    with pytest.raises(InputError, match=r"give \(n, d\)"):
        linear_head_alignment(*[[torch.ones(2, 2), torch.ones(3, 2)]] * 3)
