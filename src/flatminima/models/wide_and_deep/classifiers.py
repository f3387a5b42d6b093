"""Wide and deep networks, and their limits, as scikit-learn classifiers."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.utils.validation import validate_data
from torch import Tensor

from flatminima.arguments import above, chosen, whole
from flatminima.errors import InputError
from flatminima.models.wide_and_deep.activations import DualActivation, optimal_activation
from flatminima.models.wide_and_deep.chunks import intrinsic_dimension, nearest_two
from flatminima.models.wide_and_deep.kernels import (
    Kind,
    log_kernel,
    log_singular,
    sufficient_depth,
)
from flatminima.models.wide_and_deep.solving import solve
from flatminima.models.wide_and_deep.voting import Floats, KernelVote
from flatminima.progress import Progress, silent

KINDS = ("nngp", "ntk", "limit")
SOLVERS = ("cholesky", "cg")
NAMED = {"erf": DualActivation.erf, "relu": DualActivation.relu}

SLOW_SERIES = 0.1
"""The part of B that a series may leave out: more, and near inputs part too slowly."""


class DeepKernelClassifier(KernelVote):
    r"""The classifier that an infinitely wide fully connected network of some depth is.

    $\mathrm{sign}(k_L(x, X) K_L(X, X)^{-1} y)$, without ridge, the labels one-hot, the largest
    score wins. `kind="limit"` is that of infinite depth, by its closed form: the nearest
    neighbour, the majority, or $\sum_i y_i \psi(x, x_i)$ with a singular kernel; which one is
    `limit_`. Inputs live on the part of a sphere without negative coordinates.

    Training inputs that are alike count once, with their labels' mean (the limits count each).
    Costs n^2 d + n^2 L for the kernel and n^3 / 3 for its factor; a prediction n (d + L).

    Source: Radhakrishnan, Belkin, Uhler, Wide and Deep Neural Networks Achieve Optimality for
    Classification, 2022, arXiv 2204.14126. `lift`, conjugate gradients, the estimate of the
    dimension and computing in logarithms are ours.

    Args:
        activation: "optimal", whose limit is Bayes-consistent; "erf", "relu", or a
            `DualActivation`.
        dimension: Of the data on the sphere, for "optimal"; None estimates it from nearest
            neighbours and rounds.
        depth: L, the number of hidden layers.
        kind: "nngp", the last layer trained; "ntk", all layers, which needs far more of them to
            be near the limit; or "limit".
        lift: Append a 1 to each row before it is brought to length 1, so that lengths are not
            lost. Without it only directions count.
        solver: "cholesky", or "cg" for kernels larger than memory: conjugate gradients, the
            kernel computed anew in each iteration.
        chunk: Rows of a kernel that are computed at once; None takes what fits.
        max_bytes: What kernels may take; None is half of what is free.
        device: As torch names it; None is a GPU if there is one.
        progress: Called as `(stage, done, total)` after each chunk; left out of pickles.

    Attributes:
        classes_: The labels.
        activation_: The dual activation.
        limit_: What it becomes with depth, a `Limit`.
        dimension_: That given or estimated; None where it plays no part.
        sufficient_depth_: A depth at which a singular limit is near; None of other limits, and
            where no depth is used.
        points_: Training inputs on the sphere; coefficients_: of each, and class.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> X, y = load_iris(return_X_y=True)
        >>> model = DeepKernelClassifier(dimension=2).fit(X, y)
        >>> model.limit_
        Limit(kind='singular', alpha=2.0)
    """

    def __init__(
        self,
        activation: Literal["optimal", "erf", "relu"] | DualActivation = "optimal",
        dimension: int | None = None,
        depth: int = 60,
        kind: Literal["nngp", "ntk", "limit"] = "nngp",
        lift: bool = True,
        solver: Literal["cholesky", "cg"] = "cholesky",
        chunk: int | None = None,
        max_bytes: int | None = None,
        device: str | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.activation = activation
        self.dimension = dimension
        self.depth = depth
        self.kind = kind
        self.lift = lift
        self.solver = solver
        self.chunk = chunk
        self.max_bytes = max_bytes
        self.device = device
        self.progress = progress

    def fit(self, X: ArrayLike, y: ArrayLike) -> DeepKernelClassifier:
        """Interpolate the labels; the limits only remember them.

        Args:
            X: Shape (n, d), finite and not negative; computed in float64.
            y: Shape (n,), labels of two classes or more.

        Raises:
            InputError: one class only; negative inputs; an argument out of its range; an
                activation without a limit; a kernel that does not fit (said before it is
                computed, with the chunk that does) or that is singular.
        """
        depth = whole("depth", self.depth, 1)
        chosen("kind", self.kind, KINDS)
        chosen("solver", self.solver, SOLVERS)
        inputs, labels = validate_data(self, X, y, dtype=np.float64)
        targets, points = self._labels(labels), self._points(inputs)
        chunks, progress = self._chunks(), self.progress or silent
        apart, group, times = np.unique(points, axis=0, return_inverse=True, return_counts=True)
        means = np.zeros((len(apart), targets.shape[1]))
        np.add.at(means, group.reshape(-1), targets)
        means /= times[:, None]
        interpolates = self.kind != "limit"
        chunks.size(len(apart) if interpolates else len(points))
        if interpolates and self.solver == "cholesky":
            chunks.refuse_matrix(len(apart))
        different = torch.from_numpy(apart).to(chunks.device)
        estimates = isinstance(self.activation, str) and self.activation == "optimal"
        estimates = estimates and self.dimension is None
        nearest = None
        if len(apart) > 2 and (interpolates or estimates):
            nearest = nearest_two(different, chunks, progress)
        self.activation_, self.dimension_ = self._activation(nearest)
        self.limit_ = self.activation_.taxonomy()
        self._refuse_slow_series()
        self.sufficient_depth_ = None
        if interpolates and self.limit_.kind == "singular" and nearest is not None:
            gap = 0.5 * float(nearest[0].min()) ** 2
            self.sufficient_depth_ = sufficient_depth(self.activation_, gap, len(apart))
        self.points_, self.coefficients_ = points, targets
        if interpolates:
            found = solve(
                self.solver,
                different,
                torch.from_numpy(means).to(chunks.device),
                self._kernel,
                chunks,
                progress,
                depth=depth,
                enough=self.sufficient_depth_,
            )
            self.points_, self.coefficients_ = apart, found.cpu().numpy()
        return self

    def _activation(
        self, nearest: tuple[Tensor, Tensor] | None
    ) -> tuple[DualActivation, int | None]:
        if isinstance(self.activation, DualActivation):
            return self.activation, None
        chosen("activation", self.activation, ["optimal", *NAMED])
        if self.activation in NAMED:
            return NAMED[self.activation](), None
        if self.dimension is not None:
            return optimal_activation(self.dimension), self.dimension
        estimate = 1.0 if nearest is None else intrinsic_dimension(*nearest)
        dimension = max(1, round(estimate))
        return optimal_activation(dimension), dimension

    def _refuse_slow_series(self) -> None:
        found = self.activation_
        kept = float(found.derivative(torch.ones((), dtype=torch.float64)))
        if kept < (1 - SLOW_SERIES) * found.slope_at_one:
            raise InputError(
                f"the activation's Hermite series of degree {len(found.squares) - 1} has "
                f"B = {kept:.3g}, and E[phi'^2] is {found.slope_at_one:.3g}: give "
                "DualActivation.from_function a higher degree"
            )

    def _points(self, X: Floats) -> Floats:
        if (X < 0).any():
            raise InputError(
                "Negative values in data: kernels of deep networks take inputs without them; "
                "scale with MinMaxScaler(clip=True)"
            )
        if self.lift:
            X = np.hstack([X, np.ones((len(X), 1))])
        # By the largest first, so that squares neither overflow nor vanish.
        largest = X.max(1, keepdims=True)
        if (largest == 0).any():
            raise InputError(
                f"row {int((largest == 0).argmax())} of the inputs is all 0 and has no direction: "
                "take lift=True"
            )
        X = X / largest
        found: Floats = X / np.linalg.norm(X, axis=1, keepdims=True)
        return found

    def _kernel(self, gaps: Tensor) -> Tensor:
        kind: Kind = "ntk" if self.kind == "ntk" else "nngp"
        return log_kernel(gaps, self.activation_, self.depth, kind).exp_()

    def _log_weights(self, distances: Tensor) -> Tensor:
        gaps = distances.square_().mul_(0.5).clamp_(max=1)
        if self.kind != "limit":
            kind: Kind = "ntk" if self.kind == "ntk" else "nngp"
            return log_kernel(gaps, self.activation_, self.depth, kind)
        if self.limit_.kind == "singular":
            return log_singular(gaps, self.activation_)
        if self.limit_.kind == "majority":
            return torch.zeros_like(gaps)
        return torch.where(gaps == gaps.amin(1, keepdim=True), 0.0, -math.inf)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = True
        return tags


class HilbertKernelClassifier(KernelVote):
    r"""A vote with weights $|x - x_i|^{-d}$: Bayes-consistent, and interpolates.

    What the optimal activation's network is like in the limit, in plain Euclidean space: there is
    nothing to choose but the distance's units. Costs n d a prediction, and nothing to fit.

    Source: Devroye, Gyorfi, Krzyzak, The Hilbert Kernel Regression Estimate, 1998, Journal of
    Multivariate Analysis 65.

    Args:
        dimension: d, above 0; None is the number of features.
        chunk: Rows of a kernel that are computed at once; None takes what fits.
        max_bytes: What kernels may take; None is half of what is free.
        device: As torch names it; None is a GPU if there is one.
        progress: Called as `(stage, done, total)` after each chunk; left out of pickles.

    Attributes:
        classes_: The labels.
        dimension_: d.
        points_: Training inputs; coefficients_: their labels, one-hot.
    """

    def __init__(
        self,
        dimension: float | None = None,
        chunk: int | None = None,
        max_bytes: int | None = None,
        device: str | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.dimension = dimension
        self.chunk = chunk
        self.max_bytes = max_bytes
        self.device = device
        self.progress = progress

    def fit(self, X: ArrayLike, y: ArrayLike) -> HilbertKernelClassifier:
        """Remember the samples.

        Args:
            X: Shape (n, d), finite numbers.
            y: Shape (n,), labels of two classes or more.

        Raises:
            InputError: one class only; an argument out of its range.
        """
        inputs, labels = validate_data(self, X, y, dtype=np.float64)
        given = inputs.shape[1] if self.dimension is None else self.dimension
        self.dimension_ = above("dimension", given)
        self.coefficients_ = self._labels(labels)
        self._chunks().size(len(inputs))
        self.points_ = inputs
        return self

    def predict_proba(self, X: ArrayLike) -> Floats:
        """Each class's part of the weights, shape (n, classes)."""
        return self._scores(X)

    def _points(self, X: Floats) -> Floats:
        return X

    def _log_weights(self, distances: Tensor) -> Tensor:
        return -self.dimension_ * distances.log()
