"""Boosted networks as scikit-learn estimators."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, softmax
from sklearn.base import BaseEstimator, ClassifierMixin, MultiOutputMixin, RegressorMixin
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import nn

from flatminima.arguments import above, between, whole
from flatminima.errors import InputError
from flatminima.models.boosted_networks.boosting import Boosted, boost
from flatminima.models.boosted_networks.losses import Binary, Floats, Loss, Multiclass, Squares
from flatminima.progress import Progress, silent


class _BoostedNetwork(BaseEstimator):  # type: ignore[misc]
    """What classifier and regressor share: the stages, their prefixes, the export."""

    network_: Boosted
    n_features_in_: int

    def __init__(
        self,
        units: int = 200,
        units_per_step: int = 1,
        learning_rate: float = 0.1,
        subsample: float = 0.5,
        alpha: float = 1e-4,
        max_iter: int = 200,
        standardize: bool = True,
        monotone: bool = True,
        validation_fraction: float | None = None,
        random_state: Any = None,
        progress: Progress | None = None,
    ) -> None:
        self.units = units
        self.units_per_step = units_per_step
        self.learning_rate = learning_rate
        self.subsample = subsample
        self.alpha = alpha
        self.max_iter = max_iter
        self.standardize = standardize
        self.monotone = monotone
        self.validation_fraction = validation_fraction
        self.random_state = random_state
        self.progress = progress

    def to_module(
        self, stages: int | None = None, dtype: torch.dtype = torch.float64
    ) -> nn.Sequential:
        """One network, Linear - Sigmoid - Linear, of inputs as `predict` takes them.

        Its outputs are predictions of shape (n, k) for a regressor, and logits for a classifier:
        (n, classes), or with two classes (n, 1), whose sigmoid is the chance of `classes_[1]`.

        Args:
            stages: Of the first stages only; by default of `stages_`.
            dtype: Of its weights. Below float64, standardize inputs far from 0 yourself: their
                means are in the biases.

        Raises:
            InputError: there are not so many stages.
        """
        check_is_fitted(self)
        found, kept = self.network_, self._stages(stages)
        count = kept * found.units_per_step
        weights = found.inner[:count], found.inner_bias[:count]
        factor = self._logits_per_score()
        outer = factor * found.outer[:, :count], factor * found.outer_bias[kept]
        inputs = found.inner.shape[1]
        layers = _linear(inputs, count, dtype), _linear(count, len(outer[1]), dtype)
        with torch.no_grad():
            for layer, (weight, bias) in zip(layers, (weights, outer), strict=True):
                layer.weight.copy_(torch.from_numpy(weight.copy()))
                layer.bias.copy_(torch.from_numpy(np.array(bias)))
        return nn.Sequential(layers[0], nn.Sigmoid(), layers[1])

    def _logits_per_score(self) -> float:
        return 1.0

    def _boost(self, X: Floats, y: Floats, loss: Loss, labels: NDArray[Any] | None) -> None:
        """Fit to y of shape (n, k), as the loss takes it."""
        per_step = whole("units_per_step", self.units_per_step, 1)
        if whole("units", self.units, 1) < per_step:
            raise InputError(
                f"units is {self.units}, below units_per_step={per_step}: not one stage fits in"
            )
        settings: dict[str, Any] = {
            "stages": self.units // per_step,
            "units_per_step": per_step,
            "learning_rate": above("learning_rate", self.learning_rate),
            "subsample": above("subsample", self.subsample, 0, 1),
            "alpha": between("alpha", self.alpha, 0),
            "max_iter": whole("max_iter", self.max_iter, 1),
            "monotone": self.monotone,
            "random": check_random_state(self.random_state),
            "progress": self.progress or silent,
        }
        held = None
        if self.validation_fraction is not None:
            part = above("validation_fraction", self.validation_fraction, 0, 1)
            if part == 1:
                raise InputError("validation_fraction is 1, which leaves nothing to train on")
            try:
                split = train_test_split(
                    X, y, test_size=part, stratify=labels, random_state=settings["random"]
                )
            except ValueError as error:
                raise InputError(
                    f"validation_fraction={part:g} of {len(X)} samples cannot be held out: {error}"
                ) from error
            X, apart, y, y_apart = split
            held = (apart, y_apart)
        center, scale = _standard(X, self.standardize)
        # Classes are what they are; only real targets have a scale.
        shift, spread = _standard(y, self.standardize and labels is None)
        if held:
            held = ((held[0] - center) / scale, (held[1] - shift) / spread)
        found = boost((X - center) / scale, (y - shift) / spread, loss, held=held, **settings)
        self.network_ = found.on_raw(center, scale, shift, spread)
        self.n_iter_ = found.iterations
        self.loss_curve_ = found.losses
        self.validation_loss_curve_ = found.held_losses
        self.stages_ = int(found.held_losses.argmin()) if held else found.stages

    def _stages(self, stages: int | None) -> int:
        most = self.network_.stages
        stages = self.stages_ if stages is None else stages
        if whole("stages", stages, 0) > most:
            raise InputError(f"stages is {stages}, and there are {most}: give 0 up to {most}")
        return stages

    def _scores(self, X: ArrayLike, stages: int | None) -> Floats:
        check_is_fitted(self)
        return self.network_.scores(self._inputs(X), self._stages(stages))

    def _staged(self, X: ArrayLike) -> Iterator[Floats]:
        check_is_fitted(self)
        return self.network_.staged(self._inputs(X))

    def _inputs(self, X: ArrayLike) -> Floats:
        found: Floats = validate_data(self, X, dtype=np.float64, reset=False)
        return found

    def __getstate__(self) -> dict[str, Any]:
        # What shows progress is often a closure, which cannot be pickled.
        return {**super().__getstate__(), "progress": None}


class BoostedNetworkClassifier(ClassifierMixin, _BoostedNetwork):  # type: ignore[misc]
    r"""A hidden layer grown by gradient boosting, for classes.

    $F_t = F_{t-1} + \eta \rho_t h_t$: each stage fits `units_per_step` sigmoid units $h_t$ to the
    negative gradients of the loss so far, by least squares with L-BFGS on a random part of the
    rows, and goes one Newton step $\rho_t$ along them, on all rows. All stages together are one
    network with a hidden layer. Two classes: log(1 + exp(-2 y F)), y = -1 or 1, started at half
    the log-odds. More: cross-entropy of softmax(F), started at 0, one net for all classes, and
    the Newton step with the diagonal of the Hessian, which can be too long.

    Source: Emami, Martinez-Munoz, Sequential Training of Neural Networks with Gradient Boosting,
    IEEE Access 11, 2023, arXiv 1909.12098. Standardizing, `monotone` and the choice of a prefix
    are ours.

    Args:
        units: Hidden units in all; what is over after whole stages is left out.
        units_per_step: Hidden units of a stage, J.
        learning_rate: eta, above 0.
        subsample: The part of the rows that a stage is fitted to, in (0, 1], without replacement.
        alpha: Weight of a stage's squared weights over its number of rows, 0 or above.
        max_iter: The most L-BFGS iterations of a stage.
        standardize: Whether inputs are brought to mean 0 and standard deviation 1 for training;
            the exported network has that folded in.
        monotone: Halve a step until the training loss does not rise; False is the paper's.
        validation_fraction: Hold this part of the rows out, and predict with the number of
            stages that is best on it; None trains on all and predicts with all.
        random_state: Seed, `RandomState` or None.
        progress: Called as `(stage, done, total)` after each stage; left out of pickles.

    Attributes:
        classes_: The labels.
        stages_: The stages used where none are named; may be set.
        loss_curve_: Mean training loss after 0, 1, ..., T stages.
        validation_loss_curve_: That of the rows held out; empty without `validation_fraction`.
        network_: The weights.
        n_iter_: The most L-BFGS iterations that a stage took.

    Example:
        >>> from sklearn.datasets import load_breast_cancer
        >>> X, y = load_breast_cancer(return_X_y=True)
        >>> model = BoostedNetworkClassifier(units=30, random_state=0).fit(X, y)
        >>> model.predict(X, stages=10).shape
        (569,)
    """

    def fit(self, X: ArrayLike, y: ArrayLike) -> BoostedNetworkClassifier:
        """Grow the hidden layer.

        Args:
            X: Shape (n, d), finite numbers; computed in float64.
            y: Shape (n,), labels of two classes or more.

        Raises:
            InputError: one class only; an argument out of its range.
        """
        inputs, labels = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(labels)
        self.classes_, index = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise InputError(
                f"y has one class only, {self.classes_[0]}: a classifier needs two or more"
            )
        loss: Loss = Binary() if len(self.classes_) == 2 else Multiclass()
        targets: Floats = np.eye(len(self.classes_))[index]
        targets = targets[:, 1:] - targets[:, :1] if len(self.classes_) == 2 else targets
        self._boost(inputs, targets, loss, index)
        return self

    def decision_function(self, X: ArrayLike, stages: int | None = None) -> Floats:
        """Logits: shape (n, classes), or with two classes log-odds of the second, shape (n,)."""
        return self._logits(self._scores(X, stages))

    def predict_proba(self, X: ArrayLike, stages: int | None = None) -> Floats:
        """Probabilities, shape (n, classes)."""
        return self._chances(self.decision_function(X, stages))

    def predict(self, X: ArrayLike, stages: int | None = None) -> NDArray[Any]:
        """Labels, shape (n,).

        Args:
            X: Shape (n, d).
            stages: Use the first stages only; by default `stages_`. 0 is the constant F_0.

        Raises:
            InputError: there are not so many stages.
        """
        return self._labels(self.decision_function(X, stages))

    def staged_decision_function(self, X: ArrayLike) -> Iterator[Floats]:
        """`decision_function` after 1, 2, ..., T stages, at the cost of the last."""
        return (self._logits(scores) for scores in self._staged(X))

    def staged_predict_proba(self, X: ArrayLike) -> Iterator[Floats]:
        """`predict_proba` after 1, 2, ..., T stages, at the cost of the last."""
        return (self._chances(logits) for logits in self.staged_decision_function(X))

    def staged_predict(self, X: ArrayLike) -> Iterator[NDArray[Any]]:
        """`predict` after 1, 2, ..., T stages, at the cost of the last."""
        return (self._labels(logits) for logits in self.staged_decision_function(X))

    def _logits_per_score(self) -> float:
        return 2.0 if len(self.classes_) == 2 else 1.0

    def _logits(self, scores: Floats) -> Floats:
        return 2 * scores[:, 0] if len(self.classes_) == 2 else scores

    def _chances(self, logits: Floats) -> Floats:
        both = (expit(-logits), expit(logits)) if logits.ndim == 1 else ()
        found: Floats = np.stack(both, axis=1) if both else softmax(logits, axis=1)
        return found

    def _labels(self, logits: Floats) -> NDArray[Any]:
        index = (logits > 0).astype(int) if logits.ndim == 1 else logits.argmax(1)
        found: NDArray[Any] = self.classes_[index]
        return found


class BoostedNetworkRegressor(RegressorMixin, MultiOutputMixin, _BoostedNetwork):  # type: ignore[misc]
    r"""A hidden layer grown by gradient boosting, for real targets.

    As `BoostedNetworkClassifier`, with the loss (y - F)^2: started at the mean of y, fitted to
    y - F, and $\rho_t = 1$. Several targets are fitted by one net with an output each, and
    `standardize` weighs them alike; it brings targets to mean 0 and standard deviation 1 as well.

    Source: Emami, Martinez-Munoz, Sequential Training of Neural Networks with Gradient Boosting,
    IEEE Access 11, 2023, arXiv 1909.12098.

    Args:
        units: Hidden units in all; what is over after whole stages is left out.
        units_per_step: Hidden units of a stage, J.
        learning_rate: eta, above 0.
        subsample: The part of the rows that a stage is fitted to, in (0, 1], without replacement.
        alpha: Weight of a stage's squared weights over its number of rows, 0 or above.
        max_iter: The most L-BFGS iterations of a stage.
        standardize: Whether inputs and targets are brought to mean 0 and standard deviation 1 for
            training; the exported network has that folded in.
        monotone: Halve a step until the training loss does not rise; False is the paper's.
        validation_fraction: Hold this part of the rows out, and predict with the number of
            stages that is best on it; None trains on all and predicts with all.
        random_state: Seed, `RandomState` or None.
        progress: Called as `(stage, done, total)` after each stage; left out of pickles.

    Attributes:
        stages_: The stages used where none are named; may be set.
        loss_curve_: Mean squared error on the training rows after 0, 1, ..., T stages, of
            standardized targets, summed over them.
        validation_loss_curve_: That of the rows held out; empty without `validation_fraction`.
        network_: The weights.
        n_iter_: The most L-BFGS iterations that a stage took.
    """

    def fit(self, X: ArrayLike, y: ArrayLike) -> BoostedNetworkRegressor:
        """Grow the hidden layer.

        Args:
            X: Shape (n, d), finite numbers; computed in float64.
            y: Shape (n,) or (n, k), finite numbers.

        Raises:
            InputError: an argument out of its range.
        """
        options = {"multi_output": True, "y_numeric": True}
        inputs, targets = validate_data(self, X, y, dtype=np.float64, **options)
        targets = np.asarray(targets, np.float64)
        # Objects become numbers only here: None is not a number then.
        if not np.isfinite(targets).all():
            raise InputError("y has targets that are missing or not finite: leave these rows out")
        self._flat = targets.ndim == 1
        self._boost(inputs, targets.reshape(len(targets), -1), Squares(), None)
        return self

    def predict(self, X: ArrayLike, stages: int | None = None) -> Floats:
        """Predictions of the shape of y.

        Args:
            X: Shape (n, d).
            stages: Use the first stages only; by default `stages_`. 0 is the mean of y.

        Raises:
            InputError: there are not so many stages.
        """
        scores = self._scores(X, stages)
        return scores[:, 0] if self._flat else scores

    def staged_predict(self, X: ArrayLike) -> Iterator[Floats]:
        """`predict` after 1, 2, ..., T stages, at the cost of the last."""
        return (scores[:, 0] if self._flat else scores for scores in self._staged(X))


def _linear(inputs: int, outputs: int, dtype: torch.dtype) -> nn.Linear:
    """A layer whose weights are still to be written, made without drawing random numbers."""
    with warnings.catch_warnings():
        # The network of no stages has a hidden layer of no units, of which torch warns.
        warnings.filterwarnings("ignore", message="Initializing zero-element tensors")
        layer = nn.Linear(inputs, outputs, device="meta", dtype=dtype)
    return layer.to_empty(device="cpu")


def _standard(values: Floats, wanted: bool) -> tuple[Floats, Floats]:
    """What to take from each column and what to divide it by; constant columns are only moved."""
    if not wanted:
        return np.zeros(values.shape[1]), np.ones(values.shape[1])
    center, scale = values.mean(0), values.std(0)
    # A constant column can have a deviation of some rounding errors.
    constant = scale <= 1e-13 * np.abs(center)
    return center, np.where(constant | (scale == 0), 1.0, scale)
