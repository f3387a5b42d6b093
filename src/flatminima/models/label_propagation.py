"""Labels that spread over a graph of neighbours, solved by message passing on greedy trees."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import scipy.sparse as sparse
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.neighbors import NearestNeighbors
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from flatminima.arguments import between, whole
from flatminima.errors import InputError
from flatminima.optim.block_coordinate import GreedyBCD, LabelPropagation

UNLABELLED = -1


class GreedyLabelPropagation(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    r"""The harmonic labels of samples without one, on the graph of nearest neighbours.

    Samples i and j are joined where one is among the `n_neighbors` nearest of the other. Each class
    has the scores that minimize $\sum_{ij} w_{ij} (x_i - x_j)^2$ with 1 at its samples and 0 at
    those of other classes; a sample that no path joins to a label gets the classes' shares. A new
    sample has the mean of the scores of its neighbours.

    Cost: for each class but one, up to thousands of greedy trees, each O(edges), in Python.

    Source: Zhu, Ghahramani, Lafferty, ICML 2003, for the scores; Nutini, Laradji, Schmidt, 2022,
    arXiv 1712.08859, for the trees.

    Args:
        n_neighbors: Neighbours of a sample; all others if there are fewer.
        max_iter: Trees for each class, at most.
        tol: Stop where the largest entry of the gradient is so much of that at 0.

    Attributes:
        classes_: The labels, sorted, without -1.
        label_distributions_: (samples, classes), the scores of the samples that it was fitted to.
        transduction_: The label of each of them.
        n_iter_: The most trees that a class took.
    """

    def __init__(self, *, n_neighbors: int = 7, max_iter: int = 2000, tol: float = 1e-4) -> None:
        self.n_neighbors = n_neighbors
        self.max_iter = max_iter
        self.tol = tol

    def fit(self, X: Any, y: Any) -> GreedyLabelPropagation:
        """Fit to (samples, features) and (samples,) labels, -1 where there is none."""
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        self.classes_ = np.unique(y[y != UNLABELLED] if y.dtype.kind in "if" else y)
        if not len(self.classes_):
            raise InputError("y has no class: give at least one sample a label other than -1")
        whole("n_neighbors", self.n_neighbors, 1)
        whole("max_iter", self.max_iter, 1)
        between("tol", self.tol, 0)
        self.n_iter_ = 1
        hot = (y[:, None] == self.classes_).astype(np.float64)
        labelled = hot.any(1)
        self._neighbours = NearestNeighbors(n_neighbors=min(self.n_neighbors, len(X))).fit(X)
        self.label_distributions_ = hot
        if not labelled.all():
            self._spread(hot, labelled)
        self.transduction_ = self.classes_[self.label_distributions_.argmax(1)]
        return self

    def predict_proba(self, X: Any) -> Any:
        """The mean of the scores of the nearest samples of the fit, (samples, classes)."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        nearest = self._neighbours.kneighbors(X, return_distance=False)
        scores = self.label_distributions_[nearest].mean(1)
        return scores / scores.sum(1, keepdims=True)

    def predict(self, X: Any) -> Any:
        """The label of the largest score."""
        scores = self.predict_proba(X)
        return self.classes_[scores.argmax(1)]

    def _spread(self, hot: Any, labelled: Any) -> None:
        count = min(self.n_neighbors, len(hot) - 1)
        joined = self._neighbours.kneighbors_graph(n_neighbors=count)
        graph = joined.maximum(joined.T).tocsc()
        component = sparse.csgraph.connected_components(graph, directed=False)[1]
        inside = np.flatnonzero(np.isin(component, component[labelled]))
        scores = np.tile(hot[labelled].mean(0), (len(hot), 1))
        scores[labelled] = hot[labelled]
        graph, known = graph[inside][:, inside], labelled[inside]
        free = inside[~known]
        if free.size:
            # The scores of all classes add up to 1, so the last needs no solve.
            for c in range(hot.shape[1] - 1):
                labels = np.where(known, hot[inside, c], np.nan)
                scores[free, c] = self._harmonic(graph, labels)
            rest = 1 - scores[free, :-1].sum(1)
            scores[free, -1] = rest
            scores[free] = np.clip(scores[free], 0, 1)
        self.label_distributions_ = scores

    def _harmonic(self, graph: Any, labels: Any) -> Any:
        problem = LabelPropagation(graph, labels)
        solver = GreedyBCD(problem, None, selection="gs", partition=None, update="tree")
        found = solver.run(self.max_iter, self.tol * solver.violation())
        if not found.converged:
            warnings.warn(
                f"max_iter={self.max_iter} trees were not enough for tol={self.tol}",
                ConvergenceWarning,
                stacklevel=4,
            )
        self.n_iter_ = max(self.n_iter_, found.steps)
        return found.x
