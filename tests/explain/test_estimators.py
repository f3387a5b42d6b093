"""Scikit-learn's linear estimators, and those that are not linear."""

import numpy as np
import pytest

pytest.importorskip("sklearn")

from sklearn import datasets, decomposition, linear_model, pipeline, preprocessing, svm
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.multiclass import OneVsOneClassifier, OneVsRestClassifier
from sklearn.neighbors import NearestCentroid
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


RIDGE = linear_model.RidgeClassifier()
SCALED = pipeline.make_pipeline(preprocessing.MinMaxScaler(), RIDGE)

BY_PREDICTION = [
    OneVsRestClassifier(linear_model.LogisticRegression(max_iter=300)),
    OneVsRestClassifier(SCALED),
    NearestCentroid(),
    NearestCentroid(shrink_threshold=0.3),
    NearestCentroid(priors="empirical"),
    pipeline.make_pipeline(preprocessing.MaxAbsScaler(), NearestCentroid()),
    GridSearchCV(SCALED, {"ridgeclassifier__alpha": [0.1, 1.0]}, cv=2),
]


@pytest.mark.filterwarnings("ignore:self.within_class_std_dev_")
@pytest.mark.parametrize("classes", [(7, 9), (1, 3, 7, 9)], ids=["two", "four"])
@pytest.mark.parametrize("estimator", BY_PREDICTION, ids=str)
def test_the_scores_decide_as_predict_does(digits, estimator, classes):
    X, y = of(digits, *classes)
    uneven = np.concatenate([np.flatnonzero(y == 9)[::2], np.flatnonzero(y != 9)[::6]])
    X, y = X[uneven], y[uneven]
    found = linear_scores(estimator.fit(X, y))
    assert found.classes == classes
    decided = np.array(classes)[(X @ found.weight.T + found.bias).argmax(1)]
    assert (decided == estimator.predict(X)).all()
    tilts = tilt_estimator(estimator, X, y)
    assert tilts.accuracy == pytest.approx(estimator.score(X, y))


def test_nearest_centroids_are_not_tilted(digits):
    X, y = of(digits, 1, 7, 9)
    tilts = tilt_estimator(NearestCentroid().fit(X[:, 20:30], y), X[:, 20:30], y)
    assert tilts.mean_degrees == pytest.approx(0, abs=1e-6)
    assert tilts.of == "NearestCentroid"


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
    told = []
    path = tilt_path(
        lambda c: linear_model.LogisticRegression(C=c, max_iter=3000),
        [1e-3, 1.0, 1e3],
        X[:160],
        y[:160],
        X[160:],
        y[160:],
        progress=lambda *one: told.append(one),
    )
    assert told == [("tilt path", 1, 3), ("tilt path", 2, 3), ("tilt path", 3, 3)]
    degrees = [one.degrees for one in path.reports]
    assert degrees[0] < 2 < degrees[1] < degrees[2]
    assert path.reports[0].strength < 1.01
    assert path.excess[path.best] == 0
    assert path.kinds[path.best] == 1
    assert path.kinds[2] == 2
    assert path.validation_accuracy[path.best] == max(path.validation_accuracy)


def test_a_path_of_wrong_arguments_is_refused(digits):
    X, y = of(digits, 7, 9)

    def make(c):
        return svm.LinearSVC(C=c)

    for arguments, words in (
        ((3, [1.0], X, y, X, y), "factory is 3"),
        ((lambda c: 3, [1.0], X, y, X, y), "factory gave 3"),
        ((make, 3, X, y, X, y), "values is 3"),
        ((make, ["a"], X, y, X, y), "values is"),
        ((make, [1.0], "X", y, X, y), "X is 'X'"),
        ((make, [1.0], X, 0 * y, X, y), "these are 1"),
        ((make, [1.0], X, y, X, y[:3]), "validation samples"),
        ((make, [1.0], X, y, X[:, :2], y), "X_validation has 2 features"),
    ):
        with pytest.raises(InputError, match=words):
            tilt_path(*arguments)


@pytest.mark.filterwarnings("ignore:self.within_class_std_dev_")
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
    for estimator in ("x", None, 3.0, np.ones(3)):
        with pytest.raises(InputError, match="no estimator"):
            tilt_estimator(estimator, X, y)
    with pytest.raises(InputError, match="LinearSVC is a class"):
        tilt_estimator(svm.LinearSVC, X, y)
    with pytest.raises(InputError, match="OneVsOneClassifier is not linear"):
        tilt_estimator(OneVsOneClassifier(svm.LinearSVC()).fit(X, y), X, y)
    with pytest.raises(InputError, match="metric 'manhattan' is not linear"):
        tilt_estimator(NearestCentroid(metric="manhattan").fit(X[:, 20:30], y), X[:, 20:30], y)
    both = np.stack([y == 7, X[:, 20] > 0.5], axis=1).astype(int)
    several = OneVsRestClassifier(svm.LinearSVC()).fit(X, both)
    with pytest.raises(InputError, match="several labels a sample"):
        tilt_estimator(several, X, y)
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
    for samples in ("X", {}, X.astype(str) + "a"):
        with pytest.raises(InputError, match="the samples"):
            tilt_estimator(fitted, samples, y)
    with pytest.raises(InputError, match="centroids lacks the class 9"):
        tilt_estimator(fitted, X, y, centroids={7: X[0]})
    with pytest.raises(InputError, match="no mapping"):
        tilt_estimator(fitted, X, y, centroids=5)
    with pytest.raises(InputError, match="single class"):
        tilt_estimator(fitted, X[y == 7], y[y == 7])
    with pytest.raises(InputError, match="the samples have the shape"):
        tilt_estimator(fitted, X[:, :3], y)
