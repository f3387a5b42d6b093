"""ConR: features of close labels attract, those of far labels that are predicted alike repel."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from flatminima.arguments import above, between, truth
from flatminima.cards import Card
from flatminima.errors import InputError
from flatminima.objectives.cross_entropy import NONE
from flatminima.objectives.features import features_of
from flatminima.objectives.registry import objective_card, register
from flatminima.objectives.regression import predictions
from flatminima.objectives.supervised import Batch, inputs_and_targets

CRITERIA: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], int]] = {
    "absolute-error": (nn.functional.l1_loss, 1),
    "squared-error": (nn.functional.mse_loss, 2),
}
"""The losses of numbers that ConR is added to, and the power of the label's unit they are in."""


class ConRLoss(nn.Module):
    r"""The contrastive regularizer of a batch's features.

    With $u_i = f_i / \lVert f_i \rVert$, $s_{ij} = u_i \cdot u_j / \tau$, positives
    $P_i = \{j \ne i : |y_i - y_j| \le w\}$, negatives
    $N_i = \{j : |y_i - y_j| > w, |\hat y_i - \hat y_j| \le w\}$ (far in label, near in prediction)
    and $S_{ij} = \eta_i \exp(e |y_i - y_j|)$,

    $$ Z_i = \sum_{p \in P_i} \exp s_{ip} + \sum_{q \in N_i} S_{iq} \exp s_{iq}, \quad
       \ell_i = -\frac{1}{|P_i|} \sum_{j \in P_i} (s_{ij} - \log Z_i), \quad
       L = \frac{1}{B} \sum_i \eta_i \ell_i , $$

    where $\ell_i = 0$ for a sample without a positive or without a negative. Predictions and labels
    only decide who is near: no gradient reaches them. Labels that are vectors are compared by
    their Euclidean distance. Nothing here overflows: sums are of logarithms, in float32 at least.
    Cost: a B x B matrix product and a few B x B arrays.

    Source: Keramati, Meng and Evans, ConR: Contrastive Regularizer for Deep Imbalanced Regression,
    2024, arXiv 2309.06651.

    Args:
        window: w, how near two labels (or predictions) are alike; in units of the label.
        temperature: tau, above 0.
        push: e, how much more those far apart repel; in 1 / unit of the label.
        official_denominator: As the authors' code computes it: Z_i has B - |P_i| more, since there
            what is no positive is multiplied by 0 before the exponential, not after.

    Raises:
        InputError: a number out of its range; at a call, shapes that do not fit.
    """

    def __init__(
        self,
        window: float,
        temperature: float = 0.07,
        push: float = 0.01,
        official_denominator: bool = False,
    ) -> None:
        super().__init__()
        self.window, self.push = between("window", window, 0), between("push", push, 0)
        self.temperature = above("temperature", temperature)
        self.official_denominator = truth("official_denominator", official_denominator)

    def forward(
        self, features: Tensor, labels: Tensor, predictions: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """The loss of a batch, a scalar tensor.

        Args:
            features: f, before the last layer, shape (B, D); more dimensions are flattened.
            labels: y, shape (B,) or (B, k).
            predictions: Of the same shape.
            weights: eta, above 0, shape (B,): 1 / density of the label, of mean 1. Default: 1.

        Raises:
            InputError: shapes that do not fit, labels that are not finite, or weights that are
                not above 0.
        """
        samples = len(features)
        _check_shapes(features, labels, predictions, weights)
        _check_values(labels, weights)
        kind = torch.promote_types(features.dtype, torch.float32)
        # In half precision exp(1 / tau) and sums of it are infinite.
        with torch.autocast(features.device.type, enabled=False):
            units = nn.functional.normalize(features.flatten(1).to(kind), dim=1)
            similarity = units @ units.T / self.temperature
            apart = _distances(labels.detach().to(kind))
            near = apart <= self.window
            confused = _distances(predictions.detach().to(kind)) <= self.window
            positive = near & ~torch.eye(samples, dtype=torch.bool, device=features.device)
            negative = ~near & confused
            eta = features.new_ones(samples, dtype=kind)
            if weights is not None:
                eta = weights.detach().to(kind)
            counted = positive.any(1) & negative.any(1)
            pushed = similarity + eta.log()[:, None] + self.push * apart
            terms = torch.where(positive, similarity, pushed)
            terms = terms.masked_fill(~(positive | negative), -math.inf)
            if self.official_denominator:
                others = (samples - positive.sum(1)).to(kind).log()
                terms = torch.cat([terms, others[:, None]], dim=1)
            # A row of -inf has no gradient: what does not count is cut off before the logarithm.
            log_z = torch.where(counted[:, None], terms, 0.0).logsumexp(1)
            attracted = torch.where(positive, similarity, 0.0).sum(1) / positive.sum(1).clamp_min(1)
            own: Tensor = torch.where(counted, eta * (log_z - attracted), 0.0)
            return own.sum() / samples


@register(
    Card(
        name="conr",
        title="ConR",
        equation="L_reg + beta L_ConR: near labels attract, far ones predicted alike repel",
        gradients="about 3",
        buffers=NONE,
        strength="window",
        suggested="the difference between labels that makes none, as 1 for ages in years",
        source="Keramati et al., 2024, arXiv 2309.06651",
        slot="objective",
        tasks=("regression",),
    )
)
class ConR:
    r"""$L_{reg} + \beta L_{ConR}$ in training mode; in evaluation mode $L_{reg}$ alone.

    $L_{reg}$ is of the batch; $L_{ConR}$ is of two views of each sample, which are random changes
    of its inputs. The three go through the network in one forward pass of three times the batch, so
    BatchNorm's statistics are of all. Features are what enters the model's last linear layer.

    Random numbers are torch's global ones on the CPU, which the passes of a step share. Pairs are
    of samples that are in memory together: micro-batches and processes each compare their own.

    Source: Keramati et al., 2024, arXiv 2309.06651. Their views are of images; the jitter of
    vectors is ours.

    Args:
        window: See `ConRLoss`; in units of the label, as `push` is.
        beta: How much ConR counts beside the regression loss, 0 or above. It goes with the unit
            of the label, for that loss does; the paper has 4 for ages and 0.2 for depths in metres.
        temperature: See `ConRLoss`.
        push: See `ConRLoss`.
        official_denominator: See `ConRLoss`.
        loss: "absolute-error", which the paper has, or "squared-error".
        jitter: The standard deviation of what is added to vectors for a view.
        layer: The name of the layer whose inputs are the features. Default: the last linear one.
        views: Changes inputs at random, shape to same shape. Default: the jitter, of vectors only.

    Raises:
        InputError: a number out of its range; at a call, inputs of which there are no views.
    """

    def __init__(
        self,
        window: float,
        beta: float = 1.0,
        temperature: float = 0.07,
        push: float = 0.01,
        official_denominator: bool = False,
        loss: str = "absolute-error",
        jitter: float = 0.1,
        layer: str = "",
        views: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.contrast = ConRLoss(window, temperature, push, official_denominator)
        self.beta = between("beta", beta, 0)
        known = objective_card(loss).name
        if known not in CRITERIA:
            raise InputError(f"ConR is added to {' or '.join(CRITERIA)}, and loss is {loss!r}")
        self.loss = known
        self.criterion, self._power = CRITERIA[known]
        self.jitter = between("jitter", jitter, 0)
        self.layer = layer
        if views is not None and not callable(views):
            raise InputError(f"views is {views!r}: give a function of the inputs, from Python")
        self.views = views

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss of `model` on `batch`, a scalar tensor."""
        if not model.training or self.beta == 0:
            return self.criterion(*predictions(model, batch))
        inputs, targets = inputs_and_targets(batch)
        samples = len(targets)
        views = [self._view(inputs), self._view(inputs)]
        with features_of(model, self.layer) as features:
            both = (torch.cat([inputs, *views]), torch.cat([targets] * 3))
            predicted, labels = predictions(model, both)
        seen = features.of(3 * samples)[samples:]
        contrast = self.contrast(seen, labels[samples:], predicted[samples:])
        own = self.criterion(predicted[:samples], labels[:samples])
        loss: Tensor = own + self.beta * contrast
        return loss

    def standardized(self, deviation: float) -> ConR:
        """The same for labels that are divided by `deviation`: this / deviation^p, p of the loss.

        Args:
            deviation: What the labels were divided by, in their unit.
        """
        given: dict[str, Any] = {
            "window": self.contrast.window / deviation,
            "beta": self.beta / deviation**self._power,
            "temperature": self.contrast.temperature,
            "push": self.contrast.push * deviation,
            "official_denominator": self.contrast.official_denominator,
            "loss": self.loss,
            "jitter": self.jitter,
            "layer": self.layer,
            "views": self.views,
        }
        return ConR(**given)

    def _view(self, inputs: Any) -> Tensor:
        if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
            raise InputError(
                "conr compares two views of each sample, and there are none of token ids and "
                "whole numbers: use it on vectors or images"
            )
        if self.views is not None:
            return self.views(inputs)
        if inputs.dim() != 2:
            raise InputError(
                f"conr jitters vectors (n, d), and these inputs have the shape "
                f"{tuple(inputs.shape)}: give views=, a function that changes such inputs at random"
            )
        noise = torch.randn(inputs.shape, dtype=inputs.dtype)
        return inputs + self.jitter * noise.to(inputs.device)


def _distances(values: Tensor) -> Tensor:
    """The distance of each two rows, shape (B, B)."""
    if values.dim() == 1:
        return (values[:, None] - values[None]).abs()
    rows = values.flatten(1)
    distances: Tensor = torch.linalg.vector_norm(rows[:, None] - rows[None], dim=2)
    return distances


def _check_shapes(
    features: Tensor, labels: Tensor, predictions: Tensor, weights: Tensor | None
) -> None:
    samples = len(features)
    if len(labels) != samples or labels.shape != predictions.shape:
        raise InputError(
            f"{samples} features come with labels of shape {tuple(labels.shape)} and predictions "
            f"of shape {tuple(predictions.shape)}: give one label and one prediction for each"
        )
    if weights is not None and weights.shape != (samples,):
        raise InputError(
            f"the weights have the shape {tuple(weights.shape)} for {samples} samples: give one "
            "for each"
        )


def _check_values(labels: Tensor, weights: Tensor | None) -> None:
    """Refuse what would count no pair at all, or pull where it is to push."""
    if not bool(labels.isfinite().all()):
        raise InputError(
            "labels are not finite, and such a label is near no other: leave those samples out"
        )
    if weights is not None and not bool((weights.isfinite() & (weights > 0)).all()):
        raise InputError(
            f"the weights go from {weights.min():g} to {weights.max():g}: give finite numbers "
            "above 0, as 1 / density of the label"
        )
