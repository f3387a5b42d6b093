"""The estimators of block coordinate descent: scikit-learn's checks, and its solvers' answers."""

import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
import scipy.sparse as sparse
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris, make_moons
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import ElasticNet, Lasso, LinearRegression, LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from flatminima.errors import InputError
from flatminima.models import (
    GreedyLabelPropagation,
    GreedyLinearRegressor,
    GreedyLogisticClassifier,
)


def known(estimator):
    """What cannot pass: -1 is no class of a semi-supervised estimator."""
    if isinstance(estimator, GreedyLabelPropagation):
        return {"check_classifiers_classes": "has samples of a class -1"}
    return {}


@pytest.mark.parametrize(
    "estimator",
    [
        GreedyLinearRegressor(),
        GreedyLinearRegressor(l1=0.1, positive=True, partition="sort", update="lb", max_iter=200),
        GreedyLogisticClassifier(),
        GreedyLogisticClassifier(l1=0.1, l2=0.0, selection="random", partition="order"),
        GreedyLabelPropagation(),
    ],
    ids=lambda e: type(e).__name__,
)
def test_the_checks_of_scikit_learn_pass(estimator):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = check_estimator(estimator, expected_failed_checks=known(estimator), on_fail=None)
    bad = [f"{c['check_name']}: {c['exception']}" for c in done if c["status"] == "failed"]
    assert not bad
    assert sum(c["status"] == "passed" for c in done) > 30


def regression():
    X, y = load_diabetes(return_X_y=True)
    return 20 * X + 1, y


@pytest.mark.parametrize("convert", [np.asarray, sparse.csr_matrix])
@pytest.mark.parametrize(
    ("options", "other"),
    [
        ({}, LinearRegression()),
        ({"l2": 3.0}, Ridge(alpha=3.0)),
        ({"l1": 442 * 2.0}, Lasso(alpha=2.0, tol=1e-12)),
        ({"l1": 442 * 2.0, "positive": True}, Lasso(alpha=2.0, tol=1e-12, positive=True)),
        ({"l1": 221.0, "l2": 221.0}, ElasticNet(alpha=1.0, l1_ratio=0.5, tol=1e-12)),
        ({"l2": 3.0, "fit_intercept": False}, Ridge(alpha=3.0, fit_intercept=False)),
    ],
)
def test_regressions_are_those_of_scikit_learn(options, other, convert):
    X, y = regression()
    mine = GreedyLinearRegressor(tol=1e-10, block_size=5, **options).fit(convert(X), y)
    other.fit(X, y)
    np.testing.assert_allclose(mine.coef_, other.coef_, atol=2e-4)
    np.testing.assert_allclose(mine.predict(convert(X)), other.predict(X), atol=1e-3)


@pytest.mark.parametrize("convert", [np.asarray, sparse.csc_matrix])
@pytest.mark.parametrize("load", [load_breast_cancer, load_iris])
def test_classifiers_are_those_of_scikit_learn(load, convert):
    X, y = load(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    mine = GreedyLogisticClassifier(l2=2.0, tol=1e-9).fit(convert(X), y)
    other = LogisticRegression(C=0.5, tol=1e-10, max_iter=10_000).fit(X, y)
    np.testing.assert_allclose(mine.coef_, other.coef_, atol=1e-5)
    np.testing.assert_allclose(mine.predict_proba(convert(X)), other.predict_proba(X), atol=1e-5)
    np.testing.assert_array_equal(mine.predict(X), other.predict(X))


def test_a_penalty_selects_features_as_scikit_learn_does():
    X, y = load_breast_cancer(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    mine = GreedyLogisticClassifier(l1=5.0, l2=0.0, tol=1e-9).fit(X, y)
    other = LogisticRegression(
        C=0.2, l1_ratio=1.0, solver="saga", tol=1e-8, max_iter=20_000
    ).fit(X, y)  # fmt: skip
    np.testing.assert_allclose(mine.coef_, other.coef_, atol=1e-4)
    assert 0 < np.count_nonzero(mine.coef_) < 30


def test_labels_spread_over_two_moons():
    X, truth = make_moons(300, noise=0.05, random_state=0)
    y = np.full(300, -1)
    for c in (0, 1):
        y[np.flatnonzero(truth == c)[:5]] = c
    found = GreedyLabelPropagation(n_neighbors=5).fit(X, y)
    assert (found.transduction_ == truth).mean() > 0.97
    assert (found.predict(X) == truth).mean() > 0.97
    np.testing.assert_allclose(found.label_distributions_.sum(1), 1, atol=1e-8)


def test_spread_labels_are_harmonic_and_islands_get_the_shares():
    X, truth = make_moons(120, noise=0.05, random_state=0)
    y = np.where(np.arange(120) < 20, truth, -1)
    far = np.full((8, 2), 50.0) + np.arange(8)[:, None]
    found = GreedyLabelPropagation(n_neighbors=4, tol=1e-10).fit(
        np.concatenate([X, far]), np.append(y, [-1] * 8)
    )
    shares = np.bincount(truth[:20]) / 20
    np.testing.assert_allclose(found.label_distributions_[120:], np.tile(shares, (8, 1)))
    joined = found._neighbours.kneighbors_graph()
    graph = joined.maximum(joined.T)
    mean = graph @ found.label_distributions_ / np.asarray(graph.sum(1))
    inside = slice(20, 120)
    np.testing.assert_allclose(mean[inside], found.label_distributions_[inside], atol=1e-6)


def test_estimators_work_in_pipelines_and_searches_and_are_pickled():
    X, y = load_iris(return_X_y=True)
    pipeline = make_pipeline(StandardScaler(), GreedyLogisticClassifier(max_iter=200, tol=1e-3))
    search = GridSearchCV(pipeline, {"greedylogisticclassifier__l2": [0.1, 10.0]}, cv=3).fit(X, y)
    assert search.best_score_ > 0.9
    again = pickle.loads(pickle.dumps(search))
    np.testing.assert_array_equal(again.predict_proba(X), search.predict_proba(X))


def test_too_few_steps_warn():
    X, y = regression()
    with pytest.warns(ConvergenceWarning, match="max_iter=3"):
        GreedyLinearRegressor(max_iter=3, block_size=2).fit(X, y)


def test_bad_options_say_what_is_wrong():
    X, y = regression()
    for options, words in (
        ({"l1": -1.0}, "l1 is -1.0"),
        ({"l2": -1.0}, "l2 is -1.0"),
        ({"block_size": 0}, "block_size"),
        ({"selection": "best"}, "unknown selection"),
        ({"block_size": 1.5}, "block_size is 1.5"),
        ({"l1": "a"}, "l1 is 'a'"),
        ({"l2": None}, "l2 is None"),
        ({"max_iter": "a"}, "max_iter is 'a'"),
        ({"tol": "a"}, "tol is 'a'"),
        ({"update": "hb", "l1": 1.0}, "use 'tmp' or 'lb'"),
    ):
        with pytest.raises(InputError, match=words):
            clone(GreedyLinearRegressor(**options)).fit(X, y)
    for options, words in (
        ({"n_neighbors": 0}, "n_neighbors is 0"),
        ({"n_neighbors": 1.5}, "n_neighbors is 1.5"),
        ({"max_iter": "a"}, "max_iter is 'a'"),
        ({"tol": -1}, "tol is -1"),
    ):
        with pytest.raises(InputError, match=words):
            GreedyLabelPropagation(**options).fit(X, np.arange(442) % 2)
    with pytest.raises(InputError, match="no class"):
        GreedyLabelPropagation().fit(X, np.full(442, -1))


def test_the_cards_of_models_need_no_scikit_learn():
    show = "import sys, flatminima.models as m\nassert len(m.CARDS) > 2\n"
    show += "assert 'sklearn' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
