"""Scikit-learn's linear estimators, and those that are not linear."""

import numpy as np
import pytest

pytest.importorskip("sklearn")

from sklearn import datasets, decomposition, linear_model, pipeline, preprocessing, svm
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import RandomForestClassifier
from sklearn.neural_network import MLPClassifier

from flatminima.errors import InputError
from flatminima.explain import linear_scores, tilt_estimator, tilt_path, tilt_report

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(scope="module")
def digits():
    X, y = datasets.load_digits(return_X_y=True)
    return X / 16, y


def of(digits, *classes):
    X, y = digits
    here = np.isin(y, classes)
    return X[here], y[here]


BINARY = [
    linear_model.LogisticRegression(max_iter=300),
    linear_model.RidgeClassifier(),
    linear_model.Perceptron(),
    linear_model.SGDClassifier(random_state=0),
    svm.LinearSVC(),
    svm.SVC(kernel="linear"),
    LinearDiscriminantAnalysis(),
    pipeline.make_pipeline(preprocessing.StandardScaler(), svm.LinearSVC()),
    pipeline.make_pipeline(
        preprocessing.MinMaxScaler(), "passthrough", decomposition.PCA(5), svm.LinearSVC()
    ),
]


@pytest.mark.parametrize("estimator", BINARY, ids=lambda e: type(e).__name__)
def test_the_weights_decide_as_the_estimator_does(digits, estimator):
    X, y = of(digits, 7, 9)
    estimator.fit(X, y)
    found = linear_scores(estimator)
    w, b = found.between(0, 1)
    np.testing.assert_allclose(X @ w + b, estimator.decision_function(X), atol=1e-8)
    tilts = tilt_estimator(estimator, X, y)
    assert list(tilts.pairs) == [(7, 9)]
    assert tilts.accuracy == pytest.approx(estimator.score(X, y))
    assert tilts.pairs[7, 9] == tilt_report(w, b, X, y)


@pytest.mark.parametrize(
    "estimator", [linear_model.LogisticRegression(max_iter=300), svm.LinearSVC()]
)
def test_of_many_classes_every_two_are_reported(digits, estimator):
    X, y = of(digits, 0, 1, 7, 9)
    names = np.array(["zero", "one", "", "", "", "", "", "seven", "", "nine"])[y]
    tilts = tilt_estimator(estimator.fit(X, names), X, names)
    assert len(tilts.pairs) == 6
    assert tilts.accuracy == pytest.approx(estimator.score(X, names))
    assert set(tilts.pairs) >= {("nine", "seven"), ("one", "zero")}, "sorted, as in classes_"


def test_a_regularization_path_tilts_and_its_best_is_told(digits):
    X, y = of(digits, 7, 9)
    y = y.copy()
    y[:160:20] = 16 - y[:160:20]
    path = tilt_path(
        lambda c: linear_model.LogisticRegression(C=c, max_iter=3000),
        [1e-3, 1.0, 1e3],
        X[:160],
        y[:160],
        X[160:],
        y[160:],
    )
    degrees = [one.degrees for one in path.reports]
    assert degrees[0] < 2 < degrees[1] < degrees[2]
    assert path.reports[0].strength < 1.01
    assert path.excess[path.best] == 0
    assert path.kinds[path.best] == 1
    assert path.kinds[2] == 2
    assert path.validation_accuracy[path.best] == max(path.validation_accuracy)


def test_what_is_not_linear_is_refused(digits):
    X, y = of(digits, 7, 9)
    for estimator, words in (
        (svm.SVC(kernel="rbf"), "kernel 'rbf' is not linear"),
        (RandomForestClassifier(3), "RandomForestClassifier is not linear"),
        (MLPClassifier((3,), max_iter=2), "MLPClassifier is not linear"),
        (linear_model.LinearRegression(), "no classifier"),
        (
            pipeline.make_pipeline(preprocessing.PolynomialFeatures(2), svm.LinearSVC()),
            "PolynomialFeatures is not affine",
        ),
        (
            pipeline.make_pipeline(preprocessing.MinMaxScaler(clip=True), svm.LinearSVC()),
            "MinMaxScaler is not affine",
        ),
    ):
        with pytest.raises(InputError, match=words):
            tilt_estimator(estimator.fit(X[:, ::8], y), X[:, ::8], y)
    with pytest.raises(InputError, match="not fitted"):
        tilt_estimator(svm.LinearSVC(), X, y)
    three, labels = of(digits, 1, 7, 9)
    for X_, y_ in ((three, labels), of(digits, 0, 1, 7, 9)):
        pairwise = svm.SVC(kernel="linear").fit(X_, y_)
        with pytest.raises(InputError, match="one a pair"):
            tilt_estimator(pairwise, X_, y_)
    with pytest.raises(InputError, match="two classes"):
        tilt_path(lambda c: svm.LinearSVC(C=c), [1.0], three, labels, three, labels)
    with pytest.raises(InputError, match="values is empty"):
        tilt_path(lambda c: svm.LinearSVC(C=c), [], X, y, X, y)
    fitted = svm.LinearSVC().fit(X, y)
    with pytest.raises(InputError, match="single class"):
        tilt_estimator(fitted, X[y == 7], y[y == 7])
    with pytest.raises(InputError, match="the samples have the shape"):
        tilt_estimator(fitted, X[:, :3], y)
