"""Votes of training samples, weighted by a kernel: what the classifiers share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from flatminima.errors import InputError
from flatminima.models.wide_and_deep.chunks import Chunks
from flatminima.progress import Progress, silent

Floats = NDArray[np.float64]


class KernelVote(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Scores are weighted means over training samples, computed a few rows at a time.

    Subclasses fit `points_` and `coefficients_`, and say `_points`, where inputs are compared, and
    `_log_weights`, how much a training sample at some distance counts.
    """

    classes_: NDArray[Any]
    points_: Floats
    coefficients_: Floats
    chunk: int | None
    max_bytes: int | None
    device: str | None
    progress: Progress | None

    def decision_function(self, X: ArrayLike) -> Floats:
        """Weighted means of the coefficients: shape (n, classes), with two classes (n,).

        Weights are the kernel over its sum in the row, which changes no prediction and keeps what
        depth makes too small for a float. With two classes it is the second's score minus the
        first's.
        """
        scores = self._scores(X)
        found: Floats = scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores
        return found

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Labels, shape (n,); the first of classes that tie."""
        index = self._scores(X).argmax(1)
        found: NDArray[Any] = self.classes_[index]
        return found

    def _labels(self, y: NDArray[Any]) -> Floats:
        """One-hot labels, their classes noted."""
        check_classification_targets(y)
        self.classes_, index = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise InputError(
                f"y has one class only, {self.classes_[0]}: a classifier needs two or more"
            )
        found: Floats = np.eye(len(self.classes_))[index]
        return found

    def _chunks(self) -> Chunks:
        return Chunks.of(self.device, self.max_bytes, self.chunk)

    def _scores(self, X: ArrayLike) -> Floats:
        check_is_fitted(self)
        chunks, progress = self._chunks(), self.progress or silent
        inputs = validate_data(self, X, dtype=np.float64, reset=False)
        left, right = (
            torch.from_numpy(part).to(chunks.device)
            for part in (self._points(inputs), self.points_)
        )
        coefficients = torch.from_numpy(self.coefficients_).to(chunks.device)
        found = left.new_empty(len(left), coefficients.shape[1])
        for rows, distances in chunks.distances(left, right, "predicting", progress):
            found[rows] = _shares(self._log_weights(distances)) @ coefficients
        scores: Floats = found.cpu().numpy()
        return scores

    def _points(self, X: Floats) -> Floats:
        """Where inputs are compared."""
        raise NotImplementedError

    def _log_weights(self, distances: Tensor) -> Tensor:
        """log of the weights of training samples at these distances; inf for all there is."""
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        # What shows progress is often a closure, which cannot be pickled.
        return {**super().__getstate__(), "progress": None}


def _shares(log_weights: Tensor) -> Tensor:
    """Weights over their sum in each row; where some are infinite, those alone, alike."""
    top = log_weights.amax(1, keepdim=True)
    # Rows of all or of nothing have no largest finite weight to divide by.
    weights = torch.where(top.isinf(), (log_weights == top).double(), (log_weights - top).exp())
    return weights / weights.sum(1, keepdim=True)
