"""Boosted networks against autograd, and against boosting written out."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_iris
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from flatminima import BoostedNetworkClassifier, BoostedNetworkRegressor
from flatminima.errors import InputError
from flatminima.models.boosted_networks.boosting import boost
from flatminima.models.boosted_networks.losses import Binary, Multiclass, Squares
from flatminima.models.boosted_networks.units import Units, fit_units, objective

KINDS = ("squares", "binary", "multiclass")
LOSSES = {"squares": Squares(), "binary": Binary(), "multiclass": Multiclass()}
SMALL = {"units": 12, "units_per_step": 3, "max_iter": 40, "random_state": 0}


def problem(kind, n=40, d=4, seed=0):
    random = np.random.RandomState(seed)
    X = random.normal(size=(n, d))
    signal = X[:, 0] * X[:, 1] + 0.3 * random.normal(size=n)
    if kind == "squares":
        return X, np.stack([signal, X[:, 2]], axis=1)
    if kind == "binary":
        return X, np.where(signal > 0, 1.0, -1.0)[:, None]
    return X, np.eye(3)[np.digitize(signal, [-0.4, 0.4])]


def labels(kind, y):
    return {"squares": y, "binary": y[:, 0], "multiclass": y.argmax(1)}[kind]


def estimator(kind, **options):
    chosen = BoostedNetworkRegressor if kind == "squares" else BoostedNetworkClassifier
    return chosen(**{**SMALL, **options})


def summed(kind, y, F):
    """The total loss, in torch."""
    y = torch.as_tensor(y)
    if kind == "squares":
        return (y - F).square().sum()
    if kind == "binary":
        return torch.logaddexp(torch.zeros_like(F), -2 * y * F).sum()
    return (F.logsumexp(1) - (y * F).sum(1)).sum()


def derivatives_along(kind, y, F, h):
    """The first and second derivative of the summed loss at F + rho h, rho = 0."""
    rho = torch.zeros((), dtype=torch.float64, requires_grad=True)
    loss = summed(kind, y, torch.as_tensor(F) + rho * torch.as_tensor(h))
    (first,) = torch.autograd.grad(loss, rho, create_graph=True)
    (second,) = torch.autograd.grad(first, rho)
    return first.item(), second.item()


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 10_000), size=st.floats(0.01, 30))
@settings(max_examples=15, deadline=None)
def test_residuals_are_minus_the_gradient(kind, seed, size):
    _, y = problem(kind, seed=seed)
    F = size * np.random.RandomState(seed).normal(size=y.shape)
    scores = torch.tensor(F, requires_grad=True)
    (gradient,) = torch.autograd.grad(summed(kind, y, scores), scores)
    factor = 2 if kind == "squares" else 1
    found = factor * LOSSES[kind].residuals(y, F)
    np.testing.assert_allclose(found, -gradient.numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_loss_is_the_summed_loss_over_samples(kind):
    _, y = problem(kind)
    F = np.random.RandomState(1).normal(size=y.shape)
    whole = summed(kind, y, torch.as_tensor(F)).item()
    assert LOSSES[kind].mean(y, F) == pytest.approx(whole / len(y), rel=1e-12)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_the_binary_step_is_newtons(seed):
    _, y = problem("binary", seed=seed)
    random = np.random.RandomState(seed)
    F, h = random.normal(size=y.shape), random.normal(size=y.shape)
    first, second = derivatives_along("binary", y, F, h)
    assert Binary().step(y, F, h) == pytest.approx(-first / second, rel=1e-9)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_the_step_of_many_classes_is_newtons_but_for_the_hessians_other_entries(seed):
    _, y = problem("multiclass", seed=seed)
    random = np.random.RandomState(seed)
    F, h = random.normal(size=y.shape), random.normal(size=y.shape)
    first, second = derivatives_along("multiclass", y, F, h)
    P = torch.as_tensor(F).softmax(1).numpy()
    cross = sum(
        (P[:, k] * P[:, m] * h[:, k] * h[:, m]).sum() for k in range(3) for m in range(3) if k != m
    )
    assert Multiclass().step(y, F, h) == pytest.approx(-first / (second + cross), rel=1e-9)


@pytest.mark.parametrize("kind", ["squares", "binary"])
def test_no_other_constant_to_start_from_is_better(kind):
    _, y = problem(kind)
    start = torch.tensor(LOSSES[kind].start(y), requires_grad=True)
    (gradient,) = torch.autograd.grad(summed(kind, y, start.expand(y.shape)), start)
    assert gradient.abs().max() < 1e-12


def test_losses_do_not_overflow_on_huge_scores():
    for kind in ("binary", "multiclass"):
        _, y = problem(kind)
        F = 1e4 * np.random.RandomState(0).normal(size=y.shape)
        loss = LOSSES[kind]
        h = np.ones_like(F) + F
        with np.errstate(all="raise", under="ignore"):
            found = loss.mean(y, F), loss.step(y, F, h), loss.residuals(y, F)
        assert all(np.isfinite(part).all() for part in found)


def test_the_objective_of_units_is_that_of_autograd():
    X, y = problem("squares")
    flat = np.random.RandomState(3).normal(size=3 * 4 + 3 + 2 * 3 + 2)
    value, gradient = objective(flat, X, y, 3, alpha=0.7)
    w = torch.tensor(flat, requires_grad=True)
    inner, inner_bias = w[:12].view(3, 4), w[12:15]
    outer, outer_bias = w[15:21].view(2, 3), w[21:]
    outputs = torch.sigmoid(torch.tensor(X) @ inner.T + inner_bias) @ outer.T + outer_bias
    loss = 0.5 * (outputs - torch.tensor(y)).square().mean()
    loss = loss + 0.5 * 0.7 * (inner.square().sum() + outer.square().sum()) / len(X)
    (wanted,) = torch.autograd.grad(loss, w)
    assert value == pytest.approx(loss.item(), rel=1e-12)
    np.testing.assert_allclose(gradient, wanted.numpy(), atol=1e-12)


def test_units_find_the_unit_that_made_their_targets():
    random = np.random.RandomState(0)
    X = random.normal(size=(80, 3))
    teacher = Units(random.normal(size=(1, 3)), np.ones(1), np.full((1, 1), 2.0), np.zeros(1))
    found = fit_units(X, teacher(X), 1, alpha=0, max_iter=500, random=random)
    # A sigmoid is 1 minus its mirror image, so only outputs can be compared.
    np.testing.assert_allclose(found(X), teacher(X), atol=1e-3)


def test_without_penalty_the_best_length_along_fitted_units_is_one():
    X, y = problem("squares")
    residuals = y - y.mean(0)
    random = np.random.RandomState(0)
    h = fit_units(X, residuals, 2, alpha=0, max_iter=2000, random=random)(X)
    assert (residuals * h).sum() / (h * h).sum() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_network_is_boosting_written_out(kind):
    X, y = problem(kind)
    # Few iterations: L-BFGS makes more of a rounding error in the residuals with each.
    settings = {"alpha": 0.01, "max_iter": 8}
    found = boost(
        X,
        y,
        LOSSES[kind],
        stages=4,
        units_per_step=2,
        learning_rate=0.5,
        subsample=0.5,
        monotone=False,
        random=np.random.RandomState(7),
        **settings,
    )
    random = np.random.RandomState(7)
    F = np.tile(LOSSES[kind].start(y), (len(X), 1))
    np.testing.assert_array_equal(found.scores(X, 0), F)
    for stage, staged in enumerate(found.staged(X)):
        scores = torch.tensor(F, requires_grad=True)
        (gradient,) = torch.autograd.grad(summed(kind, y, scores), scores)
        residuals = -gradient.numpy() / (2 if kind == "squares" else 1)
        rows = random.permutation(40)[:20]
        h = fit_units(X[rows], residuals[rows], 2, random=random, **settings)(X)
        first, second = derivatives_along(kind, y, F, h)
        if kind == "multiclass":
            P = torch.as_tensor(F).softmax(1).numpy()
            second = (h**2 * P * (1 - P)).sum()
        F = F + 0.5 * (1.0 if kind == "squares" else -first / second) * h
        np.testing.assert_allclose(staged, F, atol=1e-7)
        np.testing.assert_allclose(found.scores(X, stage + 1), F, atol=1e-7)
        assert found.losses[stage + 1] == pytest.approx(
            summed(kind, y, torch.tensor(F)).item() / 40, rel=1e-6
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stages", [None, 0, 1, 3, 4])
def test_the_exported_module_computes_what_the_prefix_does(kind, stages):
    X, y = problem(kind)
    X = 50 * X + 300
    model = estimator(kind).fit(X, labels(kind, y))
    module = model.to_module(stages)
    assert [type(layer).__name__ for layer in module] == ["Linear", "Sigmoid", "Linear"]
    assert module[0].out_features == 3 * (4 if stages is None else stages)
    outputs = module(torch.from_numpy(X)).detach().numpy()
    if kind == "squares":
        np.testing.assert_allclose(outputs, model.predict(X, stages), atol=1e-10)
        return
    wanted = model.decision_function(X, stages)
    np.testing.assert_allclose(outputs, wanted.reshape(len(X), -1), atol=1e-10)
    chances = model.predict_proba(X, stages)
    if kind == "binary":
        np.testing.assert_allclose(chances[:, 1:], 1 / (1 + np.exp(-outputs)), atol=1e-12)
    np.testing.assert_allclose(chances.sum(1), 1, atol=1e-12)


def test_exporting_leaves_torchs_random_numbers_alone_and_casts():
    X, y = problem("binary")
    model = estimator("binary").fit(X, y[:, 0])
    before = torch.get_rng_state()
    module = model.to_module(dtype=torch.float32)
    assert torch.equal(before, torch.get_rng_state())
    outputs = module(torch.tensor(X, dtype=torch.float32)).detach().numpy()[:, 0]
    np.testing.assert_allclose(outputs, model.decision_function(X), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_staged_predictions_are_those_of_the_prefixes(kind):
    X, y = problem(kind)
    model = estimator(kind).fit(X, labels(kind, y))
    names = ["predict"]
    names += [] if kind == "squares" else ["predict_proba", "decision_function"]
    for name in names:
        staged = list(getattr(model, f"staged_{name}")(X))
        assert len(staged) == 4
        for stages, found in enumerate(staged, 1):
            np.testing.assert_allclose(found, getattr(model, name)(X, stages=stages), atol=1e-10)


@given(scale=st.floats(1e-3, 1e3), shift=st.floats(-1e2, 1e2))
@settings(max_examples=8, deadline=None)
def test_units_of_measurement_do_not_matter(scale, shift):
    X, y = problem("squares")
    model = estimator("squares", units=3).fit(X, y)
    moved = estimator("squares", units=3).fit(scale * X + shift, y / scale - shift)
    size = (1 + abs(shift)) / scale + abs(shift)
    np.testing.assert_allclose(
        moved.predict(scale * X + shift), model.predict(X) / scale - shift, atol=1e-5 * size
    )


@pytest.mark.parametrize("kind", KINDS)
def test_monotone_losses_never_rise_where_plain_ones_do(kind):
    X, y = problem(kind)
    options = {"learning_rate": 2.5, "units": 30}
    plain = estimator(kind, monotone=False, **options).fit(X, labels(kind, y))
    model = estimator(kind, **options).fit(X, labels(kind, y))
    assert (np.diff(plain.loss_curve_) > 0).any()
    assert (np.diff(model.loss_curve_) <= 0).all()
    assert model.loss_curve_[-1] < model.loss_curve_[0]


def test_what_cannot_be_improved_is_left_as_it_is():
    X, _ = problem("squares")
    model = estimator("squares").fit(X, np.full(40, 3.5))
    assert model.network_.stages == 4
    np.testing.assert_array_equal(model.predict(X), np.full(40, 3.5))


def test_constant_inputs_are_harmless():
    X, y = problem("binary")
    X[:, 1] = 1e8
    model = estimator("binary").fit(X, y[:, 0])
    assert np.isfinite(model.decision_function(X)).all()


def test_the_prefix_that_is_best_on_held_out_rows_predicts():
    X, y = load_diabetes(return_X_y=True)
    model = BoostedNetworkRegressor(
        units=40, learning_rate=0.5, validation_fraction=0.3, random_state=0
    ).fit(X, y)
    curve = model.validation_loss_curve_
    assert len(curve) == 41
    assert 0 < model.stages_ == curve.argmin() < 40
    np.testing.assert_array_equal(model.predict(X), model.predict(X, stages=model.stages_))
    model.stages_ = 40
    np.testing.assert_array_equal(model.predict(X), model.predict(X, stages=40))


def test_the_held_out_curve_is_the_loss_of_prefixes_on_rows_not_trained_on():
    X, y = problem("binary", n=60)
    model = estimator("binary", validation_fraction=0.25).fit(X, y[:, 0])
    chances = [np.full(60, model.predict_proba(X, 0)[:, 1])]
    chances += [found[:, 1] for found in model.staged_predict_proba(X)]
    losses = np.array([-np.log(np.where(y[:, 0] > 0, p, 1 - p)) for p in chances])
    whole = 45 * model.loss_curve_ + 15 * model.validation_loss_curve_
    np.testing.assert_allclose(losses.sum(1), whole, rtol=1e-8)


def test_labels_of_any_kind_come_back():
    X, y = load_iris(return_X_y=True)
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    model = BoostedNetworkClassifier(**SMALL).set_params(learning_rate=0.5).fit(X, names)
    assert model.score(X, names) > 0.95
    assert model.classes_.tolist() == ["setosa", "versicolor", "virginica"]


def test_a_seed_repeats_a_fit_and_another_does_not():
    X, y = problem("multiclass")
    first, second, other = (
        estimator("multiclass", random_state=seed).fit(X, labels("multiclass", y))
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first.decision_function(X), second.decision_function(X))
    assert not np.allclose(first.decision_function(X), other.decision_function(X))


def test_pipelines_grid_search_and_pickling():
    X, y = load_iris(return_X_y=True)
    seen = []
    net = BoostedNetworkClassifier(
        **{**SMALL, "progress": lambda stage, done, total: seen.append((done, total))}
    )
    steps = make_pipeline(StandardScaler(), net)
    grid = {
        "boostednetworkclassifier__learning_rate": [1e-6, 0.5],
        "boostednetworkclassifier__units_per_step": [2, 4],
    }
    search = GridSearchCV(steps, grid, cv=2, scoring="neg_log_loss").fit(X, y)
    assert search.best_params_["boostednetworkclassifier__learning_rate"] == 0.5
    assert seen[0] == (1, 6)
    assert seen[-1][0] == seen[-1][1]
    again = pickle.loads(pickle.dumps(search.best_estimator_))
    np.testing.assert_array_equal(again.predict_proba(X), search.predict_proba(X))
    assert again[-1].progress is None
    assert clone(net).progress is not None


@pytest.mark.parametrize("kind", ["squares", "binary"])
@pytest.mark.filterwarnings("ignore")
def test_scikit_learn_accepts_the_estimator(kind):
    check_estimator(estimator(kind, learning_rate=0.5))


def test_bad_input_is_named_with_its_mend():
    X, y = problem("binary")
    y = y[:, 0]
    with pytest.raises(InputError, match="one class only"):
        BoostedNetworkClassifier().fit(X, np.ones(40))
    for options, words in (
        ({"units": 2, "units_per_step": 3}, "not one stage"),
        ({"units": 0}, "units is 0"),
        ({"units_per_step": 1.5}, "units_per_step is 1.5"),
        ({"learning_rate": 0}, "learning_rate is 0: give a finite number above 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"subsample": 1.5}, "subsample is 1.5: give a finite number above 0 and not above 1"),
        ({"alpha": -1}, "alpha is -1: give a finite number 0 or above"),
        ({"max_iter": True}, "max_iter is True"),
        ({"validation_fraction": 2}, "validation_fraction is 2"),
        ({"validation_fraction": 0.001}, "of 40 samples cannot be held out"),
        ({"units": "a"}, "units is 'a'"),
    ):
        with pytest.raises(InputError, match=words):
            BoostedNetworkClassifier(**{**SMALL, **options}).fit(X, y)
    with pytest.raises(InputError, match="y has targets that are missing"):
        BoostedNetworkRegressor(**SMALL).fit(X, [None, *y[1:]])
    model = BoostedNetworkClassifier(**SMALL).fit(X, y)
    for use in (model.predict, model.predict_proba, model.decision_function):
        with pytest.raises(InputError, match="stages is 5, and there are 4: give 0 up to 4"):
            use(X, stages=5)
    with pytest.raises(InputError, match="stages is -1"):
        model.to_module(stages=-1)
    with pytest.raises(ValueError, match="NaN"):
        model.predict(np.full((1, 4), np.nan))


def test_without_scikit_learn_it_says_which_extra_brings_it(monkeypatch):
    import sys

    import flatminima.models

    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(InputError, match=r"flatminima\[estimators\]"):
        flatminima.models.__getattr__("BoostedNetworkClassifier")
