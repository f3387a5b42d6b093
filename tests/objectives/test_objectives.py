"""Objectives against what their equations say, computed another way."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from flatminima import NSO
from flatminima.errors import InputError
from flatminima.objectives import (
    BackwardCorrection,
    CrossEntropy,
    CutMix,
    GradientNorm,
    LabelSmoothing,
    Mixup,
    Remembering,
    Setting,
    TracePenalty,
    make_objective,
    objective_cards,
)
from flatminima.perturb import make

CLASSES = 5


def network():
    torch.manual_seed(0)
    layers = (nn.Flatten(), nn.Linear(12, 7), nn.Tanh(), nn.Linear(7, CLASSES))
    return nn.Sequential(*layers).double()


def batch(n=6):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 1, 3, 4, dtype=torch.float64, generator=generator)
    return x, torch.randint(CLASSES, (n,), generator=generator)


def every():
    given = {"backward-correction": {"noise": 0.3}, "gradient-norm": {"weight": 0.1}}
    given["trace-penalty"] = {"weight": 0.1}
    given["dual-t"] = {"start": 1}
    cards = [card for card in objective_cards() if "classification" in card.tasks]
    return [make_objective(card.name, **given.get(card.name, {})) for card in cards]


@pytest.mark.parametrize("objective", every(), ids=lambda o: type(o).__name__)
def test_in_evaluation_mode_all_are_the_cross_entropy(objective):
    model, (x, y) = network().eval(), batch()
    assert torch.equal(objective(model, (x, y)), cross_entropy(model(x), y))


@pytest.mark.parametrize("objective", every(), ids=lambda o: type(o).__name__)
def test_each_is_a_scalar_with_a_gradient_in_training_mode(objective):
    model = network().train()
    x, y = batch()
    if isinstance(objective, Remembering):
        objective.begin(Setting(samples=len(y), outputs=CLASSES, steps=2, steps_per_epoch=1))
    known = {"index": torch.arange(len(y)), "domain": torch.arange(len(y)) % 2}
    loss = objective(model, {"inputs": x, "targets": y, **known})
    loss.backward()
    assert loss.shape == ()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("alpha", [0.0, 0.2, 1.0])
def test_label_smoothing_spreads_the_target(alpha):
    model, (x, y) = network(), batch()
    logs = model(x).log_softmax(1)
    expected = (1 - alpha) * -logs[torch.arange(len(y)), y] - alpha * logs.mean(1)
    torch.testing.assert_close(LabelSmoothing(alpha)(model, (x, y)), expected.mean())


def test_mixup_mixes_inputs_and_targets_alike():
    model, (x, y) = network(), batch()
    torch.manual_seed(3)
    found = Mixup(alpha=0.5)(model, (x, y))
    torch.manual_seed(3)
    share = torch.distributions.Beta(0.5, 0.5).sample().item()
    order = torch.randperm(len(x))
    outputs = model(share * x + (1 - share) * x[order])
    expected = share * cross_entropy(outputs, y) + (1 - share) * cross_entropy(outputs, y[order])
    torch.testing.assert_close(found, expected)
    assert not torch.isclose(found, cross_entropy(model(x), y))


def test_cutmix_weighs_targets_by_the_area_that_is_left():
    objective, generator = CutMix(), torch.Generator().manual_seed(0)
    ours, theirs = torch.zeros(2, 3, 8, 10), torch.ones(2, 3, 8, 10)
    shares = []
    for _ in range(200):
        torch.manual_seed(int(torch.randint(10**6, (), generator=generator)))
        share = torch.rand(()).item()
        mixed, weight = objective.mix(ours, theirs, share)
        assert weight == pytest.approx(1 - mixed.mean().item())
        rows, columns = mixed[0, 0].any(1), mixed[0, 0].any(0)
        assert mixed[0, 0].sum() == rows.sum() * columns.sum()
        shares.append(weight - share)
    # A rectangle that sticks out is cut off, and sides are whole numbers: more is left.
    assert min(shares) > -1e-9
    assert torch.equal(ours, torch.zeros_like(ours))


@pytest.mark.parametrize("objective", [Mixup(0.0), CutMix(0.0)])
def test_nothing_is_mixed_at_alpha_0(objective):
    model, (x, y) = network(), batch()
    assert torch.equal(objective(model, (x, y)), cross_entropy(model(x), y))


@pytest.mark.parametrize("objective", [Mixup(), CutMix()], ids=["mixup", "cutmix"])
def test_the_passes_of_a_step_see_one_mixture(objective):
    seen, model = [], network()
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    optimizer = NSO(torch.optim.SGD(model.parameters(), lr=0.1), sigma=0.1)
    for _ in range(2):
        for _ in optimizer.passes():
            objective(model, batch()).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[2], seen[3])
    assert not torch.equal(seen[0], seen[2])


@pytest.mark.parametrize("noise", [0.0, 0.3, 0.75])
def test_backward_correction_is_the_clean_loss_on_the_mean_over_noise(noise):
    model, (x, y) = network(), batch()
    objective = BackwardCorrection(noise)
    flipped = torch.full((CLASSES, CLASSES), noise / (CLASSES - 1), dtype=torch.float64)
    flipped.fill_diagonal_(1 - noise)
    mean = torch.zeros((), dtype=torch.float64)
    for sample, label in zip(x, y, strict=True):
        for wrong in range(CLASSES):
            own = (sample[None], torch.tensor([wrong]))
            mean = mean + flipped[label, wrong] * objective(model, own) / len(y)
    torch.testing.assert_close(mean, cross_entropy(model(x), y))


def flat(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def test_the_gradient_norm_penalty_has_the_gradient_of_its_equation():
    model, data = network(), batch()
    names = [name for name, _ in model.named_parameters()]
    start = [p.detach() for p in model.parameters()]

    def loss(*weights):
        named = dict(zip(names, weights, strict=True))
        return cross_entropy(torch.func.functional_call(model, named, data[0]), data[1])

    sizes = [p.numel() for p in start]
    blocks = torch.autograd.functional.hessian(loss, tuple(start))
    hessian = torch.cat(
        [
            torch.cat([b.reshape(n, m) for b, m in zip(row, sizes, strict=True)], 1)
            for row, n in zip(blocks, sizes, strict=True)
        ]
    )
    CrossEntropy()(model, data).backward()
    g = flat(model)
    model.zero_grad()
    GradientNorm(0.7)(model, data).backward()
    torch.testing.assert_close(flat(model), g + 2 * 0.7 * hessian @ g)


class Cubic(nn.Module):
    """Logits whose softmax loss is a known function: log(1 + exp(c)), c = sum w^3."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.3, -0.5, 0.8], dtype=torch.float64))

    def forward(self, x):
        c = (self.w**3).sum()
        return torch.stack([torch.zeros_like(c), c]).expand(len(x), 2)


def test_the_trace_penalty_is_the_trace_on_the_mean_over_its_probes():
    model, data = Cubic(), (torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64))
    w = model.w.detach()
    hessian = torch.autograd.functional.hessian(
        lambda v: torch.nn.functional.softplus((v**3).sum()), w
    )
    torch.manual_seed(0)
    plain = CrossEntropy()(model, data)
    values = torch.stack([TracePenalty(1.0)(model, data) - plain for _ in range(400)])
    spread = values.std() / 20
    assert abs(values.mean() - hessian.trace()) < 4 * spread
    assert spread < 0.05 * hessian.trace().abs()


def test_the_trace_penalty_of_a_diagonal_hessian_has_no_noise():
    model = nn.Linear(4, 1, bias=False).double()

    class Quartic(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = copy.deepcopy(model.weight)

        def forward(self, x):
            raise NotImplementedError

    found = Quartic()
    objective = TracePenalty(0.5)
    value = (found.weight**4).sum()
    (gradient,) = torch.autograd.grad(value, [found.weight], create_graph=True)
    penalty = objective.penalty([(found.weight, gradient)])
    torch.testing.assert_close(penalty, (12 * found.weight**2).sum())
    (along,) = torch.autograd.grad(penalty, [found.weight])
    torch.testing.assert_close(along, 24 * found.weight)


class Attending(nn.Module):
    """Attention by torch's own function, which takes a fused kernel where it may."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(3, 3 * 4), nn.Linear(4, CLASSES)

    def forward(self, x):
        q, k, v = self.inner(x.transpose(2, 3)).chunk(3, -1)
        return self.head(nn.functional.scaled_dot_product_attention(q, k, v).mean((1, 2)))


@pytest.mark.parametrize("name", ["gradient-norm", "trace-penalty"])
def test_penalties_differentiate_through_attention(name):
    torch.manual_seed(0)
    model, (x, y) = Attending(), batch()
    objective = make_objective(name, weight=0.1)
    loss = objective(model, (x.float(), y))
    loss.backward()
    assert loss != cross_entropy(model(x.float()), y)
    assert all(p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("method", ["plain", "nso", "sam", "friendly-sam"])
@pytest.mark.parametrize("name", ["gradient-norm", "trace-penalty", "mixup"])
def test_objectives_and_perturbations_combine(name, method):
    model, data = network(), batch()
    given = {} if name == "mixup" else {"weight": 0.01}
    objective = make_objective(name, **given)
    strength = {"nso": {"sigma": 0.01}, "plain": {}}.get(method, {"rho": 0.01})
    optimizer = make(method, torch.optim.SGD(model.parameters(), lr=0.05), **strength)
    start = cross_entropy(model(data[0]), data[1]).item()
    for _ in range(30):
        for _ in optimizer.passes():
            objective(model, data).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert cross_entropy(model(data[0]), data[1]).item() < start


@pytest.mark.parametrize(
    ("make_it", "words"),
    [
        (lambda: LabelSmoothing(1.5), "alpha is 1.5"),
        (lambda: LabelSmoothing("much"), "alpha is 'much'"),
        (lambda: Mixup(-1), "alpha is -1"),
        (lambda: BackwardCorrection(1.2), "noise is 1.2"),
        (lambda: GradientNorm(-0.1), "weight is -0.1"),
        (lambda: make_objective("labelsmoothing"), "did you mean 'label-smoothing'"),
        (lambda: make_objective("mixup", alfa=1), "did you mean 'alpha'"),
        (lambda: make_objective("cross-entropy", alpha=1), "option of 'cross-entropy'"),
        (lambda: make_objective("gradient-norm"), "needs weight"),
        (lambda: make_objective("elr,mixup"), "is 2 names, and one objective is taken"),
        (lambda: make_objective("elr + mse"), "is 2 names, and one objective is taken"),
        (lambda: make_objective("elr,mixap"), "unknown objective 'elr,mixap': did you mean"),
        (lambda: make_objective("elr+"), r"two networks .* the class flatminima\.ELRPlus"),
        (lambda: make_objective("ELRPlus"), r"two networks .* the class flatminima\.ELRPlus"),
    ],
)
def test_what_cannot_be_is_refused(make_it, words):
    with pytest.raises(InputError, match=words):
        make_it()


def test_inputs_that_cannot_be_mixed_are_refused():
    class Tokens(nn.Module):
        def forward(self, ids):
            return torch.zeros(len(ids), 2, requires_grad=True)

    y = torch.zeros(3, dtype=torch.int64)
    ids = torch.ones(3, 5, dtype=torch.int64)
    with pytest.raises(InputError, match="whole numbers"):
        Mixup()(Tokens(), (ids, y))
    with pytest.raises(InputError, match="token ids"):
        Mixup()(Tokens(), {"ids": ids, "labels": y})
    with pytest.raises(InputError, match="use mixup"):
        CutMix()(nn.Linear(4, 2), (torch.zeros(3, 4), y))


@pytest.mark.parametrize("noise", [0.8, 0.95, 1.0])
def test_noise_at_which_labels_say_nothing_is_refused(noise):
    model, data = network(), batch()
    with pytest.raises(InputError, match=r"at 0\.8 a label among 5 classes says nothing"):
        BackwardCorrection(noise)(model, data)


@pytest.mark.parametrize(
    "name", ["cross-entropy", "label-smoothing", "mixup", "backward-correction", "gradient-norm"]
)
@pytest.mark.parametrize("training", [True, False])
def test_numbers_given_to_a_classifier_are_refused(name, training):
    given = {"backward-correction": {"noise": 0.3}, "gradient-norm": {"weight": 0.1}}
    objective, (x, y) = make_objective(name, **given.get(name, {})), batch()
    with pytest.raises(InputError, match=r"torch.float64 of shape \(6,\), which are no classes"):
        objective(network().train(training), (x, y.double()))


def test_probabilities_of_classes_are_targets_too():
    (x, y), model = batch(), network()
    hard = nn.functional.one_hot(y, CLASSES).double()
    torch.testing.assert_close(CrossEntropy()(model, (x, hard)), CrossEntropy()(model, (x, y)))


def test_the_backward_correction_of_half_precision_logits_is_in_single_precision():
    (x, y), model = batch(), network().bfloat16()
    rounded = nn.Sequential(model, Widened())
    found = BackwardCorrection(0.3)(model, (x.bfloat16(), y))
    assert torch.equal(found, BackwardCorrection(0.3)(rounded, (x.bfloat16(), y)))


class Widened(nn.Module):
    def forward(self, x):
        return x.float()
