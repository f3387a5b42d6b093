"""Softmax regression with tuned penalties: a bilevel problem whose constants are known."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from flatminima.errors import InputError
from flatminima.tuning.maid.regularity import Regularity

Samples = tuple[Tensor, Tensor]
"""Features (n, p), floating, and classes (n,), whole numbers."""


class SoftmaxRegression:
    r"""Multinomial logistic regression, its penalties tuned on the validation cross-entropy.

    With x of shape (classes, p + 1), the last column the biases, and $a_i$ the features with a 1
    appended,

    $$h(x, \theta) = \frac1n \sum_i \mathrm{CE}(x a_i, y_i) + \frac12 \sum_{cj} (r +
    e^{\theta_{k(c,j)}}) x_{cj}^2 + e^{\theta_d} \lVert W - W_0 \rVert_F^2$$

    and g the mean cross-entropy on the validation samples. k says which knob an entry of x belongs
    to; W is x without the biases, and the last knob is that of the distance if there is a $W_0$.
    The factors are those of weight decay in torch's optimizers and of `DistancePenalty`.

    The constants: $\mu$ is the smallest penalty; the Hessian of CE in the logits is at most 1/2, so
    $L_g = \lambda_{\max}(S_v)/2$ with $S = \frac1n \sum a_i a_i^\top$; its third derivative along
    logits u, u, v is a third central moment, at most $\frac12 \lVert u \rVert^2 \sqrt2 \lVert v
    \rVert$, so $L_H = \frac{1}{\sqrt2} \min(\lambda_{\max}(S) \max_i \lVert a_i \rVert, \frac1n
    \sum_i \lVert a_i \rVert^3)$; J is bounded by its Frobenius norm.

    Args:
        train: The samples of the lower level.
        validation: Those of the upper level.
        groups: k, whole numbers from 0 of the shape of x; None leaves only the distance to tune.
        start: $W_0$, shape (classes, p), which the distance is from; None leaves it out.
        ridge: r, fixed, 0 or above.

    Raises:
        InputError: shapes or types that do not fit; nothing to tune.
    """

    def __init__(
        self,
        train: Samples,
        validation: Samples,
        *,
        groups: Tensor | None,
        start: Tensor | None = None,
        ridge: float = 0.0,
    ) -> None:
        if groups is None and start is None:
            raise InputError("there is nothing to tune: give groups of weights, or a start")
        (self._a, self._y), (self._v, self._w) = _samples(train), _samples(validation)
        if self._a.shape[1] != self._v.shape[1]:
            raise InputError(
                f"train has {self._a.shape[1] - 1} features and validation "
                f"{self._v.shape[1] - 1}: they must be those of one network"
            )
        highest = int(torch.maximum(self._y.max(), self._w.max())) + 1
        classes = highest if start is None else len(start)
        self.shape = (classes, self._a.shape[1])
        if start is not None and tuple(start.shape) != (classes, self.shape[1] - 1):
            raise InputError(f"start is {tuple(start.shape)}: give (classes, features)")
        if groups is not None and tuple(groups.shape) != self.shape:
            raise InputError(f"groups are {tuple(groups.shape)}: give the shape of x, {self.shape}")
        if highest > classes:
            raise InputError(f"a class is {highest - 1}, and the head has {classes} outputs")
        if not 0 <= ridge < math.inf:
            raise InputError(f"ridge is {ridge}: give a finite number, 0 or above")
        self._groups, self._start, self._ridge = groups, start, ridge
        decays = 0 if groups is None else int(groups.max()) + 1
        self.knobs = decays + (start is not None)
        """How many knobs theta has."""
        size = torch.linalg.vector_norm(self._a, dim=1)
        cubes = float((size**3).mean())
        self._hessian = min(_largest(self._a) * float(size.max()), cubes) / math.sqrt(2)
        self._upper = _largest(self._v) / 2

    def lower(self, x: Tensor, theta: Tensor) -> Tensor:
        """h(x, theta)."""
        loss = cross_entropy(self._a @ x.T, self._y) + self._ridge / 2 * x.square().sum()
        if self._groups is not None:
            loss = loss + 0.5 * (theta.exp()[self._groups] * x.square()).sum()
        if self._start is not None:
            loss = loss + theta[-1].exp() * (x[:, :-1] - self._start).square().sum()
        return loss

    def upper(self, x: Tensor, theta: Tensor) -> Tensor:
        """g(x)."""
        return cross_entropy(self._v @ x.T, self._w)

    def regularity(self, x: Tensor, theta: Tensor) -> Regularity:
        """The constants at (x, theta), all from theory."""
        factors = theta.exp()
        least = x.new_full(self.shape, self._ridge)
        squares, cross = 0.0, 0.0
        if self._groups is not None:
            own = factors[self._groups]
            least = least + own
            squares += float((own * x).square().sum())
            cross += float(own.max()) ** 2
        if self._start is not None:
            far = 2 * factors[-1]
            least[:, :-1] += far
            squares += float((far * (x[:, :-1] - self._start)).square().sum())
            cross += float(far) ** 2
        return Regularity(
            strong=float(least.min()),
            upper=self._upper,
            cross=math.sqrt(cross),
            hessian=self._hessian,
            coupling=math.sqrt(squares),
            convex=True,
        )


def _samples(given: Samples) -> Samples:
    features, classes = given
    if (
        features.dim() != 2
        or not features.is_floating_point()
        or classes.shape != features.shape[:1]
    ):
        raise InputError(
            f"features are {tuple(features.shape)} of {features.dtype} and classes "
            f"{tuple(classes.shape)}: give (n, p) floating numbers and (n,) whole ones"
        )
    if not len(features) or not features.isfinite().all() or classes.is_floating_point():
        raise InputError("features must be finite, classes whole numbers, and at least one of each")
    return torch.cat([features, features.new_ones(len(features), 1)], 1), classes


def _largest(a: Tensor) -> float:
    """The largest eigenvalue of a'a / n, by the singular values of a."""
    return float(torch.linalg.matrix_norm(a, 2)) ** 2 / len(a)
