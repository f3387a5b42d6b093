"""What Hessian alignment is compared with: ERM, CORAL, IRM, V-REx and Fishr."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flatminima.cards import Card
from flatminima.errors import InputError
from flatminima.objectives.cross_entropy import NONE
from flatminima.objectives.domains import AcrossDomains, Head, Part
from flatminima.objectives.registry import register


@register(
    Card(
        name="erm",
        title="Empirical risk minimization over domains",
        equation="mean_e L_e, L_e: mean -log p_y of domain e",
        gradients="1",
        buffers=NONE,
        strength="",
        suggested="",
        source="the usual objective of several domains, each with the same weight",
        slot="objective",
    )
)
class ERM(AcrossDomains):
    r"""$\frac1E \sum_e L_e$: the cross-entropy, each domain of the batch with the same weight.

    See `AcrossDomains` for what a batch must say.
    """

    penalizes = False

    def __init__(self) -> None:
        super().__init__(0.0)


@register(
    Card(
        name="coral",
        title="CORAL",
        equation="mean_e L_e + weight mean_(e<f)(mean |m_e - m_f|^2 + mean |C_e - C_f|^2), m, C: "
        "mean and covariance of features",
        gradients="1",
        buffers="none; a covariance of the features for each domain",
        strength="weight",
        suggested="1",
        source="Sun and Saenko, 2016, arXiv 1607.01719",
        slot="objective",
    )
)
class CORAL(AcrossDomains):
    r"""$\bar L$ and the distance of the features' means and covariances between domains.

    $$\frac{2}{E (E - 1)} \sum_{e < f} \frac1d \lVert m_e - m_f \rVert^2
    + \frac1{d^2} \lVert C_e - C_f \rVert_F^2$$

    with m and C mean and covariance (divided by n - 1) of the d features of a domain's samples. The
    paper has covariances only, divided by 4 d^2; the means, and all pairs, are as DomainBed does
    it (recalled, not checked). See `AcrossDomains` for the rest.

    Source: Sun and Saenko, Deep CORAL, 2016, arXiv 1607.01719.

    Args:
        weight: Of the distance, 0 or above.
        warmup: Steps before it has that weight.
        early_weight: Its weight in those steps. Default: 1, or `weight` if that is smaller.
        rescale: Divide loss and penalty by the weight while it is above 1.
        layer: The name of the layer that is given the features. Default: the linear layer that
            runs last.

    Raises:
        InputError: a number out of its range; at a call, batches without "domain", or no such
            layer.
    """

    watches_features = True

    def penalty(self, parts: Sequence[Part], head: Head | None) -> Tensor:
        """The distance."""
        means, covariances = [], []
        for part in parts:
            assert part.features is not None
            mean = part.features.mean(0)
            centred = part.features - mean
            means.append(mean)
            covariances.append(centred.T @ centred / max(1, len(centred) - 1))
        first, second = torch.triu_indices(len(parts), len(parts), 1)
        apart = 0.0 * means[0].sum()
        for stacked in (torch.stack(means), torch.stack(covariances)):
            gaps = stacked[first] - stacked[second]
            apart = apart + gaps.square().flatten(1).mean(1).mean()
        return apart


@register(
    Card(
        name="irm",
        title="Invariant risk minimization (IRMv1)",
        equation="mean_e L_e + weight mean_e (d/dw L_e(w z) at w = 1)^2",
        gradients="1",
        buffers=NONE,
        strength="weight",
        suggested="100 after a warmup",
        source="Arjovsky et al., 2019, arXiv 1907.02893",
        slot="objective",
    )
)
class IRM(AcrossDomains):
    r"""$\bar L$ and how much each domain would scale the logits, squared.

    $$\frac1E \sum_e \Bigl( \frac{d}{dw} L_e(w z) \Big|_{w = 1} \Bigr)^2, \quad
    \frac{d}{dw} L_e(w z) \Big|_{w=1} = \frac1n \sum_i \langle p_i - y_i, z_i \rangle$$

    It is computed by the right-hand side, of logits z and probabilities p, so nothing is
    differentiated twice. The square of a batch's mean is above that of the whole domain on the
    mean. See `AcrossDomains` for the rest.

    Source: Arjovsky, Bottou, Gulrajani, Lopez-Paz, Invariant Risk Minimization, 2019, arXiv
    1907.02893.

    Args:
        weight: Of the penalty, 0 or above.
        warmup: Steps before it has that weight.
        early_weight: Its weight in those steps. Default: 1, or `weight` if that is smaller.
        rescale: Divide loss and penalty by the weight while it is above 1.

    Raises:
        InputError: a number out of its range; at a call, batches without "domain".
    """

    def __init__(
        self,
        weight: float = 100.0,
        warmup: int = 0,
        early_weight: float | None = None,
        rescale: bool = False,
    ) -> None:
        super().__init__(weight, warmup, early_weight, rescale)

    def penalty(self, parts: Sequence[Part], head: Head | None) -> Tensor:
        """The mean square of the derivatives."""
        derivatives = []
        for part in parts:
            own = part.logits.gather(1, part.labels[:, None])[:, 0]
            derivatives.append(((part.logits.softmax(1) * part.logits).sum(1) - own).mean())
        return torch.stack(derivatives).square().mean()


@register(
    Card(
        name="vrex",
        title="Variance risk extrapolation (V-REx)",
        equation="mean_e L_e + weight mean_e (L_e - mean_f L_f)^2",
        gradients="1",
        buffers=NONE,
        strength="weight",
        suggested="10 after a warmup",
        source="Krueger et al., 2020, arXiv 2003.00688",
        slot="objective",
    )
)
class VREx(AcrossDomains):
    r"""$\bar L$ and the variance of the domains' losses, $\frac1E \sum_e (L_e - \bar L)^2$.

    See `AcrossDomains` for the rest.

    Source: Krueger et al., Out-of-Distribution Generalization via Risk Extrapolation, 2020, arXiv
    2003.00688.

    Args:
        weight: Of the variance, 0 or above.
        warmup: Steps before it has that weight.
        early_weight: Its weight in those steps. Default: 1, or `weight` if that is smaller.
        rescale: Divide loss and penalty by the weight while it is above 1.

    Raises:
        InputError: a number out of its range; at a call, batches without "domain".
    """

    def __init__(
        self,
        weight: float = 10.0,
        warmup: int = 0,
        early_weight: float | None = None,
        rescale: bool = False,
    ) -> None:
        super().__init__(weight, warmup, early_weight, rescale)

    def penalty(self, parts: Sequence[Part], head: Head | None) -> Tensor:
        """The variance."""
        return torch.stack([part.loss for part in parts]).var(correction=0)


@register(
    Card(
        name="fishr",
        title="Fishr",
        equation="mean_e L_e + weight mean_e |v_e - mean_f v_f|^2, v_e: variance of the samples' "
        "gradients by the head",
        gradients="1",
        buffers=NONE,
        strength="weight",
        suggested="1000 after a warmup",
        source="Rame et al., 2021, arXiv 2109.02934",
        slot="objective",
    )
)
class Fishr(AcrossDomains):
    r"""$\bar L$ and how far the variance of gradients by the head is from its mean over domains.

    $$\frac1E \sum_e \lVert v_e - \bar v \rVert^2, \quad
    v_e = \frac1n \sum_i (g_i - g_e)^2$$

    with $g_i = ((p_i - y_i) f_i^\top, p_i - y_i)$ the gradient of a sample's loss by the linear
    head, squared number by number. The authors' code smooths v over steps; this has that of the
    batch (ours). See `AcrossDomains` for the rest.

    Source: Rame, Dancette, Cord, Fishr: Invariant Gradient Variances for Out-of-Distribution
    Generalization, 2021, arXiv 2109.02934.

    Args:
        weight: Of the penalty, 0 or above.
        warmup: Steps before it has that weight.
        early_weight: Its weight in those steps. Default: 1, or `weight` if that is smaller.
        rescale: Divide loss and penalty by the weight while it is above 1.
        layer: The name of the head. Default: the linear layer that runs last.

    Raises:
        InputError: a number out of its range; at a call, batches without "domain", or logits that
            are not a linear layer's.
    """

    watches_features = True

    def __init__(
        self,
        weight: float = 1000.0,
        warmup: int = 0,
        early_weight: float | None = None,
        rescale: bool = False,
        layer: str = "",
    ) -> None:
        super().__init__(weight, warmup, early_weight, rescale, layer)

    def penalty(self, parts: Sequence[Part], head: Head | None) -> Tensor:
        """The mean squared distance."""
        assert head is not None
        if not head.linear:
            raise InputError(
                "fishr needs each sample's gradient by the head, which it knows of a linear layer "
                "that gives the logits, and this model's are no such layer's: take hgp"
            )
        variances = torch.stack([head.of(part).gradient_variance() for part in parts])
        return (variances - variances.mean(0)).square().sum(1).mean()
