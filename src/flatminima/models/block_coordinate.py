"""Linear models in the style of scikit-learn, fitted by greedy block coordinate descent."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import scipy.sparse as sparse
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.extmath import safe_sparse_dot
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from flatminima.arguments import between, whole
from flatminima.errors import InputError
from flatminima.optim.block_coordinate import GreedyBCD, LeastSquares, Logistic, Softmax


class _Linear(BaseEstimator):  # type: ignore[misc]
    """What the models share: options, data with a column for the intercept, and the fit."""

    def __init__(
        self,
        *,
        l1: float = 0.0,
        l2: float = 0.0,
        positive: bool = False,
        fit_intercept: bool = True,
        block_size: int = 20,
        selection: str = "gsd",
        partition: str | None = None,
        update: str = "tmp",
        max_iter: int = 10_000,
        tol: float = 1e-6,
        random_state: Any = 0,
    ) -> None:
        self.l1 = l1
        self.l2 = l2
        self.positive = positive
        self.fit_intercept = fit_intercept
        self.block_size = block_size
        self.selection = selection
        self.partition = partition
        self.update = update
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def _solve(self, X: Any, objective: Any, classes: int = 1) -> tuple[Any, Any]:
        """Coefficients, (features, classes), and intercepts, (classes,).

        Dense columns are centered, so that the intercept does not slow the coefficients down.
        """
        l1, l2 = (between(name, getattr(self, name), 0) for name in ("l1", "l2"))
        block_size = whole("block_size", self.block_size, 1)
        most, tol = whole("max_iter", self.max_iter, 1), between("tol", self.tol, 0)
        samples, features = X.shape
        mean = np.zeros(features)
        if self.fit_intercept and sparse.issparse(X):
            X = sparse.hstack([X, np.ones((samples, 1))], format="csc")
        elif self.fit_intercept:
            mean = X.mean(0)
            X = np.column_stack([X - mean, np.ones(samples)])
        penalized = np.repeat(np.arange(X.shape[1]) < features, classes)
        lower = np.where(penalized & bool(self.positive), 0.0, -np.inf)
        problem = objective(X, l2=l2 * penalized)
        solver = GreedyBCD(
            problem,
            min(block_size, problem.size),
            selection=self.selection,
            partition=self.partition,
            update=self.update,
            l1=l1 * penalized,
            bounds=(lower, None) if self.positive else None,
            seed=int(check_random_state(self.random_state).randint(2**31 - 1)),
        )
        found = solver.run(most, tol * solver.violation())
        if not found.converged:
            warnings.warn(
                f"max_iter={self.max_iter} blocks were not enough for tol={self.tol}: raise "
                "max_iter or block_size, or scale the features",
                ConvergenceWarning,
                stacklevel=3,
            )
        self.n_iter_, self.objective_ = max(found.steps, 1), found.value
        weights = np.asarray(found.x).reshape(-1, classes)
        intercept = weights[features] if self.fit_intercept else np.zeros(classes)
        return weights[:features], intercept - mean @ weights[:features]


class GreedyLinearRegressor(RegressorMixin, _Linear):  # type: ignore[misc]
    r"""$\min \frac12 \lVert y - Xw - b \rVert^2 + \lambda_1 |w|_1 + \frac{\lambda_2}{2} |w|^2$.

    Least squares, ridge, the Lasso, the elastic net, and with `positive` their non-negative forms.
    The loss is a sum over samples: Lasso of scikit-learn has l1 = n alpha, Ridge l2 = alpha.

    Source: Nutini, Laradji, Schmidt, 2022, arXiv 1712.08859.

    Args:
        l1: lambda_1, 0 or above.
        l2: lambda_2, 0 or above.
        positive: Whether w must not be below 0.
        fit_intercept: Whether there is b, which is not penalized.
        block_size: Variables in a block; all of them if there are fewer.
        selection: As of `GreedyBCD`.
        partition: As of `GreedyBCD`.
        update: As of `GreedyBCD`; "hb" and "newton" without l1 and bounds only.
        max_iter: Blocks to update, at most.
        tol: Stop where the largest entry of the proximal gradient is so much of that at 0.
        random_state: Of the random rules.

    Attributes:
        coef_: w, (features,).
        intercept_: b.
        n_iter_: Blocks updated.
        objective_: The minimum found.
    """

    def fit(self, X: Any, y: Any) -> GreedyLinearRegressor:
        """Fit to (samples, features), dense or sparse, and (samples,) targets."""
        X, y = validate_data(
            self, X, y, accept_sparse="csc", dtype=np.float64, y_numeric=True, ensure_min_samples=1
        )
        shift = y.mean() if self.fit_intercept else 0.0
        coef, intercept = self._solve(X, lambda A, l2: LeastSquares(A, y - shift, l2=l2))
        self.coef_, self.intercept_ = coef[:, 0], float(intercept[0] + shift)
        return self

    def predict(self, X: Any) -> Any:
        """X w + b, (samples,)."""
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse="csr", dtype=np.float64, reset=False)
        return safe_sparse_dot(X, self.coef_) + self.intercept_


class GreedyLogisticClassifier(ClassifierMixin, _Linear):  # type: ignore[misc]
    r"""Logistic regression, for more than two classes with softmax, with l1 and l2 penalties.

    The loss is a sum over samples: the LogisticRegression of scikit-learn has l2 = 1 / C.

    Source: Nutini, Laradji, Schmidt, 2022, arXiv 1712.08859.

    Args:
        l1: As of `GreedyLinearRegressor`, and the other options too.
        l2: With 0, data that can be separated have no solution.
        positive: Whether coefficients must not be below 0.
        fit_intercept: Whether there are intercepts, which are not penalized.
        block_size: Variables in a block; all of them if there are fewer.
        selection: As of `GreedyBCD`.
        partition: As of `GreedyBCD`.
        update: As of `GreedyBCD`; "hb" and "newton" without l1 and bounds only.
        max_iter: Blocks to update, at most.
        tol: Stop where the largest entry of the proximal gradient is so much of that at 0.
        random_state: Of the random rules.

    Attributes:
        classes_: The labels, sorted.
        coef_: (1, features) for two classes, else (classes, features).
        intercept_: (1,) or (classes,).
        n_iter_: Blocks updated.
        objective_: The minimum found.
    """

    def __init__(
        self,
        *,
        l1: float = 0.0,
        l2: float = 1.0,
        positive: bool = False,
        fit_intercept: bool = True,
        block_size: int = 20,
        selection: str = "gsd",
        partition: str | None = None,
        update: str = "tmp",
        max_iter: int = 10_000,
        tol: float = 1e-6,
        random_state: Any = 0,
    ) -> None:
        super().__init__(
            l1=l1,
            l2=l2,
            positive=positive,
            fit_intercept=fit_intercept,
            block_size=block_size,
            selection=selection,
            partition=partition,
            update=update,
            max_iter=max_iter,
            tol=tol,
            random_state=random_state,
        )

    def fit(self, X: Any, y: Any) -> GreedyLogisticClassifier:
        """Fit to (samples, features), dense or sparse, and (samples,) labels."""
        X, y = validate_data(self, X, y, accept_sparse="csc", dtype=np.float64)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        count = len(self.classes_)
        if count < 2:
            raise InputError("y has one class: a classifier needs samples of at least two classes")
        if count == 2:
            coef, intercept = self._solve(X, lambda A, l2: Logistic(A, 2.0 * labels - 1, l2=l2))
        else:
            coef, intercept = self._solve(
                X, lambda A, l2: Softmax(A, labels, classes=count, l2=l2), count
            )
        self.coef_, self.intercept_ = np.ascontiguousarray(coef.T), intercept
        return self

    def decision_function(self, X: Any) -> Any:
        """X w + b: (samples,) for two classes, above 0 for the second; else (samples, classes)."""
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse="csr", dtype=np.float64, reset=False)
        scores = safe_sparse_dot(X, self.coef_.T) + self.intercept_
        return scores[:, 0] if len(self.classes_) == 2 else scores

    def predict_log_proba(self, X: Any) -> Any:
        """Logarithms of the probabilities, (samples, classes)."""
        scores = self.decision_function(X)
        if scores.ndim == 1:
            scores = np.column_stack([np.zeros_like(scores), scores])
        scores = scores - scores.max(1, keepdims=True)
        return scores - np.log(np.exp(scores).sum(1, keepdims=True))

    def predict_proba(self, X: Any) -> Any:
        """Probabilities, (samples, classes)."""
        return np.exp(self.predict_log_proba(X))

    def predict(self, X: Any) -> Any:
        """The likeliest label of each sample."""
        scores = self.decision_function(X)
        chosen = (scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(1)
        return self.classes_[chosen]
