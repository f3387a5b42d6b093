"""Linear estimators of scikit-learn as weights in the space of their inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from flatminima.arguments import floats, function
from flatminima.errors import InputError
from flatminima.explain.tilting import Floats, TiltReport, tilt_report
from flatminima.explain.tilting_pairs import PairTilts, tilt_pairs
from flatminima.progress import Progress, silent


@dataclass(frozen=True, eq=False)
class LinearScores:
    """Scores `W x + b`, a row a class.

    Attributes:
        weight: (classes, d), in the space of the inputs.
        bias: (classes,).
        classes: Their names.
    """

    weight: Floats
    bias: Floats
    classes: tuple[Any, ...]

    def between(self, low: int, high: int) -> tuple[Floats, float]:
        """w and b of the boundary between two classes by index, w pointing to the second."""
        weight, bias = self.weight[high] - self.weight[low], self.bias[high] - self.bias[low]
        return weight, float(bias)


def linear_scores(estimator: Any) -> LinearScores:
    """A fitted linear classifier as weights in the space of its inputs.

    Taken are estimators with `coef_`, `intercept_` and `classes_` (logistic regression, linear
    support vector machines, ridge and perceptron classifiers, linear discriminant analysis, ...);
    `OneVsRestClassifier` of such; `NearestCentroid` of Euclidean distances; searches that found
    one; and pipelines that end in one, behind steps that are affine (scalers, principal
    components): the weights are brought back through them, so that angles and distances are those
    of inputs. The scores decide as the estimator's `predict` does.

    Args:
        estimator: Fitted.

    Raises:
        InputError: one that is not linear, no classifier, or not fitted; a step that is not affine.
    """
    # A search over settings is what it found.
    estimator = getattr(estimator, "best_estimator_", estimator)
    steps = getattr(estimator, "steps", None)
    if steps is not None:
        found = linear_scores(steps[-1][1])
        return _through([step for _, step in steps[:-1]], found)
    if isinstance(estimator, type):
        raise InputError(f"{estimator.__name__} is a class: give one that is made and fitted")
    if hasattr(estimator, "estimators_") and hasattr(estimator, "multilabel_"):
        return _one_against_the_rest(estimator)
    if hasattr(estimator, "centroids_"):
        return _nearest_centroids(estimator)
    name = type(estimator).__name__
    coefficients = getattr(estimator, "coef_", None)
    if coefficients is None:
        keys = getattr(estimator, "__dict__", ())
        fitted = any(key.endswith("_") and not key.startswith("_") for key in keys)
        kernel = getattr(estimator, "kernel", None)
        if not fitted:
            raise InputError(f"{name} is not fitted, or is no estimator: fit it first")
        said = f"{name} with the kernel {kernel!r}" if isinstance(kernel, str) else name
        raise InputError(
            f"{said} is not linear, or has no coef_ to say how, so it has no one boundary to tilt: "
            "give a linear estimator, such as LogisticRegression or LinearSVC"
        )
    if getattr(estimator, "classes_", None) is None:
        raise InputError(f"{name} is no classifier: give one, such as LogisticRegression")
    weight = np.atleast_2d(floats("coef_", coefficients))
    bias = np.broadcast_to(floats("intercept_", estimator.intercept_), len(weight))
    names = _names(estimator)
    if len(names) == 2 and len(weight) == 1:
        return LinearScores(np.concatenate([0 * weight, weight]), np.array([0.0, bias[0]]), names)
    # Three classes have three pairs too, so that counting rows would not tell them.
    if len(weight) != len(names) or hasattr(estimator, "kernel"):
        raise InputError(
            f"{name} has {len(weight)} boundaries for {len(names)} classes, one a pair: fit it on "
            "two classes, or take tilt_report with its rows"
        )
    return LinearScores(weight, bias, names)


def tilt_estimator(estimator: Any, X: ArrayLike, y: ArrayLike, **options: Any) -> PairTilts:
    """The tilting of a scikit-learn linear classifier, for every two of its classes.

    Args:
        estimator: Fitted; see `linear_scores`.
        X: Samples (n, d), as the estimator takes them.
        y: Their classes (n,).
        options: Of `tilt_pairs`: `centroids`, where X are not the samples trained on; `progress`.

    Raises:
        InputError: an estimator that is not linear; samples of a single class, or that do not fit.
    """
    found = linear_scores(estimator)
    estimator = getattr(estimator, "best_estimator_", estimator)
    name = type(getattr(estimator, "steps", [("", estimator)])[-1][1]).__name__
    return tilt_pairs(found.weight, found.bias, X, y, found.classes, of=name, **options)


@dataclass(frozen=True)
class TiltPath:
    """A path of estimators from weak to strong regularization, or the other way round.

    Attributes:
        values: Of what is varied.
        reports: On the training samples, one a value.
        validation_accuracy: One a value.
        best: The index of the highest validation accuracy; of equals, the least tilted.
    """

    values: tuple[float, ...]
    reports: tuple[TiltReport, ...]
    validation_accuracy: tuple[float, ...]
    best: int

    @property
    def excess(self) -> tuple[float, ...]:
        """The angle beyond that of the best, in radians: above 0 is tilting that nothing needs."""
        best = self.reports[self.best].deviation_angle
        return tuple(one.deviation_angle - best for one in self.reports)

    @property
    def kinds(self) -> tuple[int, ...]:
        """2: tilted more than the best (overfitted); 1: the best's angle; 0: tilted less."""
        return tuple(0 if e < 0 else 2 if e > 0 else 1 for e in self.excess)


def tilt_path(
    factory: Callable[[float], Any],
    values: Sequence[float],
    X: ArrayLike,
    y: ArrayLike,
    X_validation: ArrayLike,
    y_validation: ArrayLike,
    *,
    progress: Progress = silent,
) -> TiltPath:
    """Fit an estimator for each value of its regularization, and report how each is tilted.

    Source: Tanay, Griffin, 2018, arXiv 1806.11186. The three kinds are our reading of the taxonomy
    of 2016, arXiv 1608.07690: the best along the path stands in for the best there is.

    Args:
        factory: From a value to an estimator that is not fitted yet.
        values: Along the path.
        X: Training samples (n, d) of two classes.
        y: Their classes.
        X_validation: Samples to choose by.
        y_validation: Their classes.
        progress: Called with ("tilt path", estimators fitted, estimators).

    Raises:
        InputError: no values; other numbers of classes than two; an estimator that is not linear;
            shapes that do not fit.
    """
    function("factory", factory)
    path = floats("values", values)
    if path.ndim != 1:
        raise InputError(f"values is {values!r}: give a list of numbers to fit with")
    if not len(path):
        raise InputError("values is empty: give at least one to fit with")
    floats("X", X)
    count = len(np.unique(np.asarray(y)))
    if count != 2:
        raise InputError(f"a path is of two classes, and these are {count}")
    reports, accuracies = [], []
    held, classes = floats("X_validation", X_validation), np.asarray(y_validation)
    if held.ndim != 2 or classes.shape != held.shape[:1]:
        raise InputError(
            f"the validation samples have the shape {held.shape} and their classes "
            f"{classes.shape}: give (n, d) and (n,)"
        )
    for done, value in enumerate(values, 1):
        estimator = factory(value)
        if not hasattr(estimator, "fit"):
            raise InputError(f"factory gave {estimator!r}: have it make an estimator with fit")
        estimator = estimator.fit(X, y)
        found = linear_scores(estimator)
        w, b = found.between(0, 1)
        reports.append(tilt_report(w, b, X, y))
        if held.shape[1] != len(w):
            raise InputError(f"X_validation has {held.shape[1]} features, and X {len(w)}")
        predicted = np.asarray(found.classes)[(held @ w + b > 0).astype(int)]
        accuracies.append(float((predicted == classes).mean()))
        progress("tilt path", done, len(path))
    order = range(len(values))
    best = max(order, key=lambda k: (accuracies[k], -reports[k].deviation_angle))
    return TiltPath(tuple(path.tolist()), tuple(reports), tuple(accuracies), best)


def _one_against_the_rest(estimator: Any) -> LinearScores:
    """The scores of scikit-learn's `OneVsRestClassifier`: each class's own, highest wins."""
    if estimator.multilabel_:
        raise InputError(
            "this OneVsRestClassifier gives several labels a sample, so that no boundary lies "
            "between two: give one of its estimators_, or fit it on one class a sample"
        )
    rows = [linear_scores(one).between(0, 1) for one in estimator.estimators_]
    weight, bias = np.stack([w for w, _ in rows]), np.array([b for _, b in rows])
    if len(rows) == 1:
        weight, bias = np.concatenate([0 * weight, weight]), np.array([0.0, *bias])
    return LinearScores(weight, bias, _names(estimator))


def _nearest_centroids(estimator: Any) -> LinearScores:
    r"""The scores of scikit-learn's `NearestCentroid`: $x \cdot c_k - |c_k|^2 / 2$.

    With priors that are not uniform it measures distances in units of the standard deviations
    within classes, and adds the logarithm of the prior.
    """
    metric = getattr(estimator, "metric", "euclidean")
    if metric != "euclidean":
        raise InputError(
            f"NearestCentroid with the metric {metric!r} is not linear: take metric='euclidean'"
        )
    centroids = floats("centroids_", estimator.centroids_)
    scale, prior = np.ones(centroids.shape[1]), np.ones(len(centroids))
    given = getattr(estimator, "class_prior_", None)
    if given is not None and not np.isclose(given, 1 / len(centroids)).all():
        deviation = floats("within_class_std_dev_", estimator.within_class_std_dev_)
        scale, prior = np.where(deviation == 0, 1.0, deviation), np.asarray(given)
    weight = centroids / scale**2
    with np.errstate(divide="ignore"):
        bias = np.log(prior) - (centroids * weight).sum(1) / 2
    if not np.isfinite(bias).all():
        raise InputError("a class has the prior 0, and no boundary: fit it without this class")
    return LinearScores(weight, bias, _names(estimator))


def _names(estimator: Any) -> tuple[Any, ...]:
    return tuple(
        value.item() if isinstance(value, np.generic) else value for value in estimator.classes_
    )


def _through(steps: list[Any], scores: LinearScores) -> LinearScores:
    """Scores of a pipeline's end in the space of its inputs, if what lies between is affine."""
    weight, bias = scores.weight, scores.bias
    for step in reversed(steps):
        if step is None or step == "passthrough":
            continue
        name = type(step).__name__
        count = getattr(step, "n_features_in_", None)
        if count is None or not hasattr(step, "transform"):
            raise InputError(f"the step {name} is not fitted, or does not count its features")
        matrix, offset = _affine(step, name, int(count))
        weight, bias = weight @ matrix.T, bias + weight @ offset
    return LinearScores(weight, bias, scores.classes)


def _affine(step: Any, name: str, count: int) -> tuple[Floats, Floats]:
    """A and c of a step x -> x A + c, found by asking it, and checked on other points."""

    def ask(points: Floats) -> Floats:
        found = step.transform(points)
        dense = found.toarray() if hasattr(found, "toarray") else found
        return np.asarray(dense, dtype=np.float64)

    offset = ask(np.zeros((1, count)))[0]
    matrix = ask(np.eye(count)) - offset
    points = 10.0 ** np.arange(-1, 4)[:, None] * np.random.default_rng(0).normal(size=(5, count))
    expected = points @ matrix + offset
    if not np.allclose(ask(points), expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max()):
        raise InputError(
            f"the step {name} is not affine, so the pipeline is not linear in its inputs: give the "
            "samples as they are behind it, and the last estimator alone"
        )
    return matrix, offset
