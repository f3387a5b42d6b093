"""Hessian alignment as objectives of a run, on the head of any model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flatminima.arguments import between, truth, whole
from flatminima.cards import Card
from flatminima.errors import InputError
from flatminima.objectives.domains import AcrossDomains, Head, Part
from flatminima.objectives.hessian_alignment import AutogradHead, aligned
from flatminima.objectives.linear_head import HeadLoss
from flatminima.objectives.registry import register
from flatminima.objectives.supervised import Batch

SOURCE = "Hemati et al., 2023, arXiv 2308.11778"


class Aligning(AcrossDomains):
    """The penalty of `hessian_alignment` on the head of a model."""

    watches_features = True
    method: str
    probes = 1

    def __init__(
        self,
        alpha: float,
        beta: float,
        weight: float,
        warmup: int,
        early_weight: float | None,
        rescale: bool,
        detach_mean: bool,
        layer: str,
    ) -> None:
        super().__init__(weight, warmup, early_weight, rescale, layer)
        self.alpha, self.beta = between("alpha", alpha, 0), between("beta", beta, 0)
        self.detach_mean = truth("detach_mean", detach_mean)

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss of `model` on `batch`, a scalar tensor."""
        if torch.is_grad_enabled() or self._is_linear or not model.training:
            return super().forward(model, batch)
        with torch.enable_grad():
            return super().forward(model, batch).detach()

    def penalty(self, parts: Sequence[Part], head: Head | None) -> Tensor:
        """See `hessian_alignment`."""
        assert head is not None
        heads: list[HeadLoss]
        if head.linear:
            heads = [head.of(part) for part in parts]
        else:
            params = [p for p in head.module.parameters() if p.requires_grad]
            if not params:
                raise InputError(
                    "the layer whose derivatives are to be aligned has no free parameters: name "
                    "another by layer="
                )
            heads = [AutogradHead(part.loss, params) for part in parts]
        return aligned(
            heads, self.method, self.alpha, self.beta, self.probes, None, self.detach_mean
        )


@register(
    Card(
        name="hessian-alignment",
        title="Hessian alignment by Hessian-gradient products (HGP)",
        equation="mean_e L_e + weight mean_e(alpha |H_e g_e - Hg|^2 + beta |g_e - g|^2), of the "
        "head; g, H: means over domains",
        gradients="1 with a linear head, else about 3",
        buffers="none with a linear head, else the graphs of the head's derivatives",
        strength="weight",
        suggested="1000 after a warmup; DomainBed's is weight=1, alpha=1e-4, beta=5e-3",
        source=SOURCE,
        slot="objective",
        aliases=("hgp",),
    )
)
class HessianAlignment(Aligning):
    r"""$\bar L$ and how far the head's $H_e g_e$ and $g_e$ are from $\bar H \bar g$ and $\bar g$.

    `hessian_alignment` with "hgp" in a run; see `AcrossDomains` for what a batch must say, for the
    warmup and for several processes. Where the logits are a linear function of what the layer is
    given, by it, closed forms are used, and nothing is differentiated twice. Else the layer's
    free parameters are differentiated by autograd: not for DDP or fp16 then. So it is of a head
    with LoRA's adapters, whose A and B are aligned.

    Source: Hemati, Zhang, Estiri, Chen, Understanding Hessian Alignment for Domain Generalization,
    2023, arXiv 2308.11778.

    Args:
        alpha: The weight of the Hessian's part, 0 or above.
        beta: The weight of the gradient's part, 0 or above.
        weight: Of both, 0 or above.
        warmup: Steps before it has that weight.
        early_weight: Its weight in those steps. Default: 1, or `weight` if that is smaller.
        rescale: Divide loss and penalty by the weight while it is above 1.
        detach_mean: Whether no gradient flows through the means, as in the authors' DomainBed code.
        layer: The name of the head. Default: the linear layer that runs last.

    Raises:
        InputError: a number out of its range; at a call, batches without "domain", or no such
            layer.
    """

    method = "hgp"

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 1.0,
        weight: float = 1.0,
        warmup: int = 0,
        early_weight: float | None = None,
        rescale: bool = False,
        detach_mean: bool = True,
        layer: str = "",
    ) -> None:
        super().__init__(alpha, beta, weight, warmup, early_weight, rescale, detach_mean, layer)


@register(
    Card(
        name="hutchinson-alignment",
        title="Hessian alignment by the Hessian's diagonal (Hutchinson)",
        equation="mean_e L_e + weight mean_e(alpha |D_e - D|^2 + beta |g_e - g|^2), of the head; "
        "D_e: diagonal of H_e, estimated; g, D: means over domains",
        gradients="1 with a linear head, else about 2 + probes",
        buffers="none with a linear head, else the graphs of the head's derivatives",
        strength="weight",
        suggested="1000 after a warmup; DomainBed's is weight=1, alpha=1e-3, beta=5e-3, probes=300",
        source=SOURCE,
        slot="objective",
    )
)
class HutchinsonAlignment(Aligning):
    r"""$\bar L$ and how far the head's $\mathrm{diag} H_e$ and $g_e$ are from their means.

    `hessian_alignment` with "hutchinson" in a run, or with "diag-exact", which has no variance and
    with a linear head costs less. The signs are drawn from torch's global generator on the CPU,
    which the passes of a step share, and are the same for all domains. The rest is as of
    `HessianAlignment`.

    Source: Hemati, Zhang, Estiri, Chen, Understanding Hessian Alignment for Domain Generalization,
    2023, arXiv 2308.11778.

    Args:
        alpha: The weight of the Hessian's part, 0 or above.
        beta: The weight of the gradient's part, 0 or above.
        weight: Of both, 0 or above.
        probes: Random sign vectors, at least 1.
        exact: The diagonal itself instead.
        warmup: Steps before the penalty has its weight.
        early_weight: Its weight in those steps. Default: 1, or `weight` if that is smaller.
        rescale: Divide loss and penalty by the weight while it is above 1.
        detach_mean: Whether no gradient flows through the means; it makes no difference here.
        layer: The name of the head. Default: the linear layer that runs last.

    Raises:
        InputError: a number out of its range; at a call, batches without "domain", or no such
            layer.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 1.0,
        weight: float = 1.0,
        probes: int = 30,
        exact: bool = False,
        warmup: int = 0,
        early_weight: float | None = None,
        rescale: bool = False,
        detach_mean: bool = True,
        layer: str = "",
    ) -> None:
        super().__init__(alpha, beta, weight, warmup, early_weight, rescale, detach_mean, layer)
        self.method = "diag-exact" if truth("exact", exact) else "hutchinson"
        self.probes = whole("probes", probes)
