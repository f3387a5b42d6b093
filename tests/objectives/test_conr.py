"""ConR against its equation written as loops, and what must hold of it."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flatminima import NSO, ConR, ConRLoss, features_of
from flatminima.errors import InputError
from flatminima.objectives import AbsoluteError, SquaredError, make_objective
from flatminima.reparam import LoRA

B, D = 10, 6


def samples(n=B, seed=0, scale=4.0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, D, dtype=torch.float64, generator=generator)
    labels = scale * torch.rand(n, dtype=torch.float64, generator=generator)
    predictions = scale * torch.rand(n, dtype=torch.float64, generator=generator)
    return features, labels, predictions


def by_loops(f, y, p, window, temperature, push, eta=None, official=False):
    """The equation, one number at a time."""
    n = len(y)
    eta = [1.0] * n if eta is None else eta.tolist()
    u = [row / row.norm() for row in f]
    total = f.new_zeros(())
    for i in range(n):
        near = [abs(float(y[i] - y[j])) <= window for j in range(n)]
        positive = [j for j in range(n) if j != i and near[j]]
        negative = [j for j in range(n) if not near[j] and abs(float(p[i] - p[j])) <= window]
        if not positive or not negative:
            continue
        z = sum(torch.exp(u[i] @ u[j] / temperature) for j in positive)
        for j in negative:
            pushed = eta[i] * math.exp(push * abs(float(y[i] - y[j])))
            z = z + pushed * torch.exp(u[i] @ u[j] / temperature)
        if official:
            z = z + n - len(positive)
        each = [-(u[i] @ u[j] / temperature - z.log()) for j in positive]
        total = total + eta[i] * sum(each) / len(positive)
    return total / n


@pytest.mark.parametrize("official", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("window", "temperature", "push"), [(1, 0.07, 0.01), (0.5, 0.5, 0.3)])
def test_it_is_its_equation(official, weighted, window, temperature, push):
    f, y, p = samples()
    f.requires_grad_()
    eta = torch.linspace(0.5, 2, B, dtype=torch.float64) if weighted else None
    found = ConRLoss(window, temperature, push, official)(f, y, p, eta)
    slow = by_loops(f, y, p, window, temperature, push, eta, official)
    torch.testing.assert_close(found, slow, rtol=1e-12, atol=1e-12)
    (ours,) = torch.autograd.grad(found, f)
    (theirs,) = torch.autograd.grad(slow, f)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    assert found > 0


def test_the_two_denominators_differ():
    f, y, p = samples()
    strict, official = (ConRLoss(1.0, 0.2, 0.01, way)(f, y, p) for way in (False, True))
    assert official > strict + 0.01


def test_without_negatives_it_is_0_and_trains_nothing():
    f, y, _ = samples()
    f.requires_grad_()
    loss = ConRLoss(1.0)(f, y, y)
    loss.backward()
    assert loss == 0
    assert torch.equal(f.grad, torch.zeros_like(f))


def test_without_positives_it_is_0_and_no_nan():
    f, _, p = samples()
    f.requires_grad_()
    y = 100.0 * torch.arange(B, dtype=torch.float64)
    for official in (False, True):
        loss = ConRLoss(1.0, official_denominator=official)(f, y, torch.zeros_like(p))
        loss.backward()
        assert loss == 0
        assert torch.equal(f.grad, torch.zeros_like(f))


@pytest.mark.parametrize("n", [1, 2])
def test_batches_of_one_or_two_are_no_trouble(n):
    f, y, p = samples(n)
    assert ConRLoss(1.0)(f, y, p) == 0


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), factor=st.floats(0.01, 100))
def test_the_length_of_a_feature_does_not_matter(seed, factor):
    f, y, p = samples(seed=seed)
    f.requires_grad_()
    loss = ConRLoss(1.0)(f, y, p)
    lengths = torch.linspace(1, factor, B, dtype=torch.float64)[:, None]
    torch.testing.assert_close(ConRLoss(1.0)(f * lengths, y, p), loss)
    (gradient,) = torch.autograd.grad(loss, f)
    # Euler: a function of the direction alone has no derivative along it.
    assert (f * gradient).sum(1).abs().max() < 1e-12


def test_with_one_positive_each_and_no_push_it_is_infonce_over_the_negatives():
    f, _, p = samples()
    y = torch.arange(B // 2, dtype=torch.float64).repeat_interleave(2) * 10
    found = ConRLoss(1.0, 0.3, push=0.0)(f, y, p)
    u = nn.functional.normalize(f, dim=1)
    logits = u @ u.T / 0.3
    expected = []
    for i in range(B):
        twin = i ^ 1
        far = [j for j in range(B) if j not in (i, twin) and abs(p[i] - p[j]) <= 1]
        if far:
            row = logits[i, [twin, *far]]
            expected.append(nn.functional.cross_entropy(row, torch.tensor(0)))
    assert 0 < len(expected) <= B
    torch.testing.assert_close(found, torch.stack(expected).sum() / B)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_order_of_the_samples_does_not_matter(seed):
    f, y, p = samples(seed=seed)
    order = torch.randperm(B, generator=torch.Generator().manual_seed(seed))
    eta = torch.linspace(0.5, 2, B, dtype=torch.float64)
    one = ConRLoss(1.0)(f, y, p, eta)
    torch.testing.assert_close(ConRLoss(1.0)(f[order], y[order], p[order], eta[order]), one)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), c=st.sampled_from([0.125, 0.5, 4.0, 64.0]))
def test_units_of_the_label_do_not_matter(seed, c):
    f, y, p = samples(seed=seed)
    one = ConRLoss(1.0, push=0.3)(f, y, p)
    torch.testing.assert_close(ConRLoss(c, push=0.3 / c)(f, c * y, c * p), one)


def test_no_gradient_reaches_labels_predictions_or_weights():
    f, y, p = samples()
    eta = torch.ones(B, dtype=torch.float64)
    given = [t.requires_grad_() for t in (f, y, p, eta)]
    loss = ConRLoss(1.0)(*given)
    found = torch.autograd.grad(loss, given, allow_unused=True)
    assert found[0] is not None
    assert found[1:] == (None, None, None)


def test_vectors_as_labels_are_compared_by_their_distance():
    f, y, p = samples()
    torch.testing.assert_close(
        ConRLoss(1.0)(f, y[:, None], p[:, None]), ConRLoss(1.0)(f, y, p), rtol=1e-12, atol=0
    )
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)
    wide, told = torch.stack([y, p], 1), torch.stack([p, y], 1)
    turned = ConRLoss(1.0)(f, wide @ turn, told @ turn)
    torch.testing.assert_close(turned, ConRLoss(1.0)(f, wide, told))


def test_extreme_temperatures_and_labels_stay_finite():
    f, y, p = (tensor.float() for tensor in samples())
    f.requires_grad_()
    loss = ConRLoss(1e3, 0.001, push=10.0)(f, 1e4 * y, p)
    loss.backward()
    assert loss.isfinite()
    assert f.grad.isfinite().all()


def test_half_precision_is_summed_in_float32():
    f, y, p = samples()
    exact = ConRLoss(1.0)(f.bfloat16().double(), y, p)
    with torch.autocast("cpu", torch.bfloat16):
        found = ConRLoss(1.0)(f.bfloat16(), y.float(), p.float())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=0)


class Branched(nn.Module):
    """A convolution, pooling and a head, its modules not in the order in which they run."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 1)
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh())
        self.side = nn.Linear(4, 4)

    def forward(self, x):
        return self.head(self.side(self.body(x).mean((2, 3))))


def test_features_are_what_enters_the_linear_layer_that_runs_last():
    torch.manual_seed(0)
    model, x = Branched(), torch.randn(5, 1, 6, 6)
    with features_of(model) as features:
        outputs = model(x)
    torch.testing.assert_close(model.head(features.of(5)), outputs)
    with features_of(model, "side") as features:
        model(x)
    torch.testing.assert_close(features.of(5), model.body(x).mean((2, 3)))
    with features_of(model, "body") as features:
        model(x)
    assert torch.equal(features.of(5), x.flatten(1))
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_a_head_with_adapters_counts_whole():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)), torch.randn(5, 4)
    LoRA(model, rank=2, targets="0,2")
    nn.init.normal_(model[2].lora_B.default.weight)
    with features_of(model) as features:
        outputs = model(x)
    assert features.of(5).shape == (5, 8)
    torch.testing.assert_close(model[2](features.of(5)), outputs)
    with features_of(model, "0") as features:
        model(x)
    assert torch.equal(features.of(5), x)


def test_a_layer_of_ones_own_may_have_a_base_layer():
    class Backbone(nn.Module):
        def __init__(self):
            super().__init__()
            self.base_layer = nn.Linear(4, 4)
            self.head = nn.Linear(4, 1)

        def forward(self, x):
            return self.head(self.base_layer(x).tanh())

    model, x = Backbone(), torch.randn(5, 4)
    with features_of(model) as features:
        model(x)
    torch.testing.assert_close(features.of(5), model.base_layer(x).tanh())


def test_hooks_are_gone_after_an_error():
    model = Branched()
    with pytest.raises(RuntimeError), features_of(model):
        model(torch.randn(2, 3))
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_a_compiled_or_wrapped_model_has_the_same_names():
    class Wrapper(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, x):
            return self.module(x)

    model, x = Wrapper(Branched()), torch.randn(5, 1, 6, 6)
    with features_of(model, "side") as features:
        model(x)
    assert features.of(5).shape == (5, 4)


@pytest.mark.parametrize(
    ("model", "layer", "words"),
    [
        (nn.Sequential(nn.Conv1d(1, 1, 1)), "", "no linear layer"),
        (Branched(), "haed", "did you mean 'head'"),
    ],
)
def test_a_layer_that_is_not_there_is_named(model, layer, words):
    with pytest.raises(InputError, match=words), features_of(model, layer):
        pass


def test_a_layer_that_does_not_run_or_mixes_samples_is_named():
    model = Branched()
    with pytest.raises(InputError, match="did not run"), features_of(model) as features:
        features.of(3)
    with features_of(model) as features:
        model(torch.randn(5, 1, 6, 6))
    with pytest.raises(InputError, match="5 rows for 4 samples"):
        features.of(4)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()


def batch(n=16):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 4, dtype=torch.float64, generator=generator)
    return x, 3 * torch.rand(n, dtype=torch.float64, generator=generator)


def test_the_objective_is_the_loss_of_the_batch_and_conr_of_two_views():
    model, (x, y) = network().train(), batch()
    torch.manual_seed(3)
    found = ConR(window=0.5, beta=2.0, push=0.2)(model, (x, y))
    torch.manual_seed(3)
    views = torch.cat([x + 0.1 * torch.randn_like(x) for _ in range(2)])
    features, labels = model[:2](views), torch.cat([y, y])
    contrast = ConRLoss(0.5, push=0.2)(features, labels, model(views)[:, 0])
    expected = nn.functional.l1_loss(model(x)[:, 0], y) + 2.0 * contrast
    torch.testing.assert_close(found, expected)
    assert contrast > 0


def test_conr_trains_the_body_and_never_the_head():
    model, given = network().train(), batch()
    torch.manual_seed(3)
    with_it = torch.autograd.grad(ConR(window=0.5)(model, given), model.parameters())
    without = torch.autograd.grad(ConR(window=0.5, beta=0)(model, given), model.parameters())
    assert not torch.allclose(with_it[0], without[0])
    for ours, plain in zip(with_it[2:], without[2:], strict=True):
        torch.testing.assert_close(ours, plain)


def test_without_beta_and_in_evaluation_mode_it_is_the_regression_loss():
    model, given = network(), batch()
    assert torch.equal(ConR(window=1, beta=0)(model, given), AbsoluteError()(model, given))
    of_squares = ConR(window=1, loss="mse")
    assert torch.equal(of_squares(model.eval(), given), SquaredError()(model, given))


@pytest.mark.parametrize(("loss", "power"), [("absolute-error", 1), ("squared-error", 2)])
def test_standardized_labels_change_it_by_a_factor_alone(loss, power):
    model, (x, y), deviation = network().train(), batch(), 7.0
    in_units = copy.deepcopy(model)
    in_units[2].load_state_dict({k: v * deviation for k, v in model[2].state_dict().items()})
    objective = ConR(window=0.5 * deviation, beta=2, push=0.3 / deviation, loss=loss)
    torch.manual_seed(3)
    found = objective.standardized(deviation)(model, (x, y))
    torch.manual_seed(3)
    expected = objective(in_units, (x, y * deviation))
    torch.testing.assert_close(found * deviation**power, expected)


def test_the_passes_of_a_step_see_the_same_views():
    seen, model = [], network().train()
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    optimizer = NSO(torch.optim.SGD(model.parameters(), lr=0.1), sigma=0.1)
    for _ in range(2):
        for _ in optimizer.passes():
            ConR(window=0.5)(model, batch()).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[2], seen[3])
    assert not torch.equal(seen[0], seen[2])


def test_views_may_be_given():
    model, given = network().train(), batch()
    same = ConR(window=0.5, views=lambda x: x)
    assert torch.equal(same(model, given), same(model, given))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"window": -1}, "window is -1"),
        ({"window": float("nan")}, "window is nan"),
        ({"window": math.inf}, "finite"),
        ({"window": 1, "temperature": 0}, "temperature is 0"),
        ({"window": 1, "push": -0.1}, "push is -0.1"),
        ({"window": 1, "beta": "much"}, "beta is 'much'"),
        ({"window": 1, "jitter": -1}, "jitter is -1"),
        ({"window": 1, "loss": "mixup"}, "added to absolute-error or squared-error"),
        ({"window": 1, "loss": "huber"}, "unknown objective 'huber'"),
        ({"window": 1, "views": "crop"}, "give a function"),
        ({}, "'conr' needs window; start with"),
        ({"windw": 1}, "did you mean 'window'"),
    ],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        make_objective("conr", **options)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f, y, p: (f, y[:-1], p), "10 features come with labels of shape"),
        (lambda f, y, p: (f, y, p[:, None]), "predictions of shape"),
        (lambda f, y, p: (f, y, p, torch.ones(3)), "the weights have the shape"),
        (lambda f, y, p: (f, y * math.nan, p), "labels are not finite"),
        (lambda f, y, p: (f, y.where(y > y.min(), math.inf), p), "labels are not finite"),
        (lambda f, y, p: (f, y, p, -torch.ones(B)), "weights go from -1 to -1: give finite"),
        (lambda f, y, p: (f, y, p, torch.arange(B)), "weights go from 0 to 9"),
        (lambda f, y, p: (f, y, p, torch.full((B,), math.inf)), "weights go from inf to inf"),
    ],
)
def test_batches_that_do_not_fit_are_refused(change, words):
    with pytest.raises(InputError, match=words):
        ConRLoss(1.0)(*change(*samples()))


@pytest.mark.parametrize("inputs", [torch.arange(8).view(4, 2), {"input_ids": torch.ones(4, 2)}])
def test_inputs_without_views_are_refused(inputs):
    with pytest.raises(InputError, match="token ids and whole numbers"):
        ConR(window=1)(network().train(), (inputs, torch.ones(4)))


def test_images_need_views_of_their_own():
    with pytest.raises(InputError, match=r"shape \(4, 1, 6, 6\): give views="):
        ConR(window=1)(Branched().train(), (torch.ones(4, 1, 6, 6), torch.ones(4)))


def test_views_of_batchnorm_models_train_too():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1)).double()
    loss = ConR(window=0.5)(model.train(), batch())
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert model[1].num_batches_tracked == 1


def test_the_committed_results_show_what_the_page_claims():
    results = Path(__file__).parents[2] / "docs/results/system-conr.json"
    found = json.loads(results.read_text())
    assert found["seeds"] == 10
    curve, digits = (found["sets"][name]["betas"] for name in ("curve", "digits"))
    for beta, rise in (("1", 0.13), ("4", 0.19)):
        spearman = curve[beta]["spearman"]
        assert spearman["higher"] == 10
        assert spearman["difference"] == pytest.approx(rise, abs=0.005)
        assert spearman["least"] > 0.04
        assert digits[beta]["spearman"]["difference_ci95"][1] < 0
    low, high = curve["1"]["mae"]["difference_ci95"]
    assert low < 0 < high
    assert curve["4"]["mae"]["difference_ci95"][1] < 0
    assert curve["4"]["mae"]["higher"] == 2
    assert digits["4"]["mae_few"]["higher"] == 10
    assert digits["4"]["mae_few"]["mean"] > 2 * digits["0"]["mae_few"]["mean"]
