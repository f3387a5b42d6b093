"""Hessian alignment: the head's gradient and Hessian made the same in every domain."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from flatminima.cards import Card
from flatminima.errors import InputError, unknown
from flatminima.objectives.domains import AcrossDomains, Head, Part
from flatminima.objectives.linear_head import HeadLoss, LinearHeadLoss
from flatminima.objectives.registry import below, register
from flatminima.objectives.supervised import Batch

METHODS = ("hgp", "hutchinson", "diag-exact")
SOURCE = "Hemati et al., 2023, arXiv 2308.11778"


def hessian_alignment(
    domain_losses: Sequence[Tensor],
    head_params: Iterable[Tensor],
    method: str = "hgp",
    alpha: float = 1.0,
    beta: float = 1.0,
    *,
    probes: int = 30,
    generator: torch.Generator | None = None,
    detach_mean: bool = True,
) -> Tensor:
    r"""How far the head's gradients and Hessians in E domains are from their means.

    With $g_e$ and $H_e$ gradient and Hessian of domain e's loss by the head's parameters, all of
    them in one vector of length P, and a bar for the mean over domains:

    $$\frac1E \sum_e \alpha \lVert H_e g_e - \mathrm{sg}(\bar H \bar g) \rVert^2
    + \beta \lVert g_e - \mathrm{sg}(\bar g) \rVert^2$$

    for "hgp". For "hutchinson" the first norm is of $D_e - \mathrm{sg}(\bar D)$,
    $D = \frac1K \sum_k z_k \circ H z_k$ with signs $z_k$ that are the same for all domains, for
    "diag-exact" of the Hessians' diagonals. sg stops gradients. $\bar H \bar g$ is the mean Hessian
    times the mean gradient. The penalty is a part of the graph, of the featurizer's weights too:

        losses = [cross_entropy(model(x), y) for x, y in domains]
        penalty = hessian_alignment(losses, model.head.parameters())
        (torch.stack(losses).mean() + weight * penalty).backward()

    It is differentiated twice through the head, and thrice when minimized, so there must be no
    kernel in it that cannot be; for a linear head see `linear_head_alignment`, which does without.

    Cost: E gradients of the head and as many Hessian-vector products, twice that for "hgp"; E K for
    "hutchinson", whose K graphs are held; E P for "diag-exact".

    Source: Hemati, Zhang, Estiri, Chen, Understanding Hessian Alignment for Domain Generalization,
    2023, arXiv 2308.11778. The authors' code draws probes for the mean anew, which adds a penalty
    of identical domains.

    Args:
        domain_losses: A mean loss of each domain, scalars that are still part of the graph.
        head_params: The tensors of the head.
        method: "hgp", "hutchinson" or "diag-exact".
        alpha: The weight of the Hessians, 0 or above; at 0 none is computed.
        beta: The weight of the gradients, 0 or above.
        probes: K of "hutchinson".
        generator: What draws the signs, on the CPU; torch's global one if None.
        detach_mean: Whether sg does what it says. It matters to "hgp" only.

    Returns:
        A scalar, in the unit of the loss squared.

    Raises:
        InputError: fewer than two domains, no parameters, a loss that does not depend on them, no
            such method, or a number out of its range.
    """
    params = tuple(head_params)
    losses = list(domain_losses)
    if len(losses) < 2:
        raise InputError(
            f"there is a loss of {len(losses)} domain: alignment needs two or more, and one has "
            "nothing to be aligned with"
        )
    if not params:
        raise InputError("head_params is empty: give the tensors of the head")
    if not all(loss.requires_grad for loss in losses):
        raise InputError("a domain's loss has no graph: compute it with gradients enabled")
    heads = [_AutogradHead(loss, params) for loss in losses]
    return _aligned(heads, method, alpha, beta, probes, generator, detach_mean)


def linear_head_alignment(
    features: Sequence[Tensor],
    logits: Sequence[Tensor],
    labels: Sequence[Tensor],
    method: str = "hgp",
    alpha: float = 1.0,
    beta: float = 1.0,
    *,
    bias: bool = True,
    probes: int = 30,
    generator: torch.Generator | None = None,
    detach_mean: bool = True,
) -> Tensor:
    r"""`hessian_alignment` of the cross-entropy of a linear head, by closed forms.

    The same number as `hessian_alignment(losses, (W, b), ...)`, and the same gradient, where
    `logits = features @ W.T + b`; see `LinearHeadLoss` for the equations. "diag-exact" costs no
    more than a gradient here.

    Args:
        features: Of each domain, shape (n, d).
        logits: Of each domain, shape (n, C).
        labels: Of each domain, class indices, int64, shape (n,).
        method: "hgp", "hutchinson" or "diag-exact".
        alpha: See `hessian_alignment`.
        beta: See `hessian_alignment`.
        bias: Whether the head has a bias.
        probes: See `hessian_alignment`.
        generator: See `hessian_alignment`.
        detach_mean: See `hessian_alignment`.

    Raises:
        InputError: fewer than two domains, shapes that do not fit, no such method, or a number out
            of its range.
    """
    if len(features) < 2 or not len(features) == len(logits) == len(labels):
        raise InputError(
            f"there are features of {len(features)}, logits of {len(logits)} and labels of "
            f"{len(labels)} domains: give all three of two domains or more"
        )
    for f, z, y in zip(features, logits, labels, strict=True):
        if f.dim() != 2 or z.dim() != 2 or y.dim() != 1 or not len(f) == len(z) == len(y) > 0:
            shapes = ", ".join(str(tuple(part.shape)) for part in (f, z, y))
            raise InputError(
                f"features, logits and labels of a domain have the shapes {shapes}: give (n, d), "
                "(n, C) and (n,)"
            )
    triples = zip(features, logits, labels, strict=True)
    heads = [LinearHeadLoss(f, z, y, bias=bias) for f, z, y in triples]
    return _aligned(heads, method, alpha, beta, probes, generator, detach_mean)


class _AutogradHead:
    """Any loss, by differentiating its gradient."""

    def __init__(self, loss: Tensor, params: Sequence[Tensor]) -> None:
        self.params = params
        try:
            found = torch.autograd.grad(loss, params, create_graph=True, allow_unused=True)
        except RuntimeError as error:
            raise InputError(
                f"a domain's loss cannot be differentiated by the head's parameters ({error}): "
                "give those it was computed with"
            ) from error
        if all(part is None for part in found):
            raise InputError(
                "a domain's loss does not depend on the head's parameters: give those it was "
                "computed with"
            )
        self.flat = self._flat(found)

    def gradient(self) -> Tensor:
        return self.flat

    def product(self, vector: Tensor) -> Tensor:
        if not self.flat.requires_grad:
            return torch.zeros_like(self.flat)
        # By the graph of the vector too, which a gradient of g.v would count twice for v = g.
        found = torch.autograd.grad(
            self.flat, self.params, grad_outputs=vector, create_graph=True, allow_unused=True
        )
        return self._flat(found)

    def products(self, vectors: Tensor) -> Tensor:
        return torch.stack([self.product(vector) for vector in vectors])

    def diagonal(self) -> Tensor:
        rows = torch.eye(len(self.flat), dtype=self.flat.dtype, device=self.flat.device)
        return torch.stack([self.product(row)[i] for i, row in enumerate(rows)])

    def _flat(self, parts: Sequence[Tensor | None]) -> Tensor:
        filled = [
            torch.zeros_like(param) if part is None else part
            for param, part in zip(self.params, parts, strict=True)
        ]
        return torch.cat([part.flatten() for part in filled])


def _aligned(
    heads: Sequence[HeadLoss],
    method: str,
    alpha: float,
    beta: float,
    probes: int,
    generator: torch.Generator | None,
    detach_mean: bool,
) -> Tensor:
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    alpha, beta = below("alpha", alpha, 0), below("beta", beta, 0)
    gradients = torch.stack([head.gradient() for head in heads])
    mean = gradients.mean(0)
    # Of plain means: as deviations sum to 0, their detaching changes no gradient.
    penalty = beta * _spread(gradients, mean, detach_mean)
    if alpha == 0:
        return penalty
    if method == "hgp":
        with torch.set_grad_enabled(not detach_mean or not _all_linear(heads)):
            along = mean.detach() if detach_mean else mean
            target = torch.stack([head.product(along) for head in heads]).mean(0)
        second = torch.stack([h.product(g) for h, g in zip(heads, gradients, strict=True)])
    else:
        if method == "hutchinson":
            signs = _signs(probes, mean, generator)
            second = torch.stack([(signs * head.products(signs)).mean(0) for head in heads])
        else:
            second = torch.stack([head.diagonal() for head in heads])
        target = second.mean(0)
    return penalty + alpha * _spread(second, target, detach_mean)


def _all_linear(heads: Sequence[HeadLoss]) -> bool:
    return all(isinstance(head, LinearHeadLoss) for head in heads)


def _spread(rows: Tensor, target: Tensor, detach: bool) -> Tensor:
    """The mean squared distance of rows from a target."""
    return (rows - (target.detach() if detach else target)).square().sum(1).mean()


def _signs(probes: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Rows of -1 and +1, drawn on the CPU whatever the device."""
    if isinstance(probes, bool) or not isinstance(probes, int) or probes < 1:
        raise InputError(f"probes is {probes!r}: give a whole number of at least 1")
    drawn = torch.randint(2, (probes, len(like)), generator=generator)
    return (2 * drawn - 1).to(like)


class _Aligning(AcrossDomains):
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
        self.alpha, self.beta = below("alpha", alpha, 0), below("beta", beta, 0)
        self.detach_mean = bool(detach_mean)

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
            heads = [_AutogradHead(part.loss, params) for part in parts]
        return _aligned(
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
class HessianAlignment(_Aligning):
    r"""$\bar L$ and how far the head's $H_e g_e$ and $g_e$ are from $\bar H \bar g$ and $\bar g$.

    `hessian_alignment` with "hgp" in a run; see `AcrossDomains` for what a batch must say, for the
    warmup and for several processes. Where the logits are a linear function of what the layer is
    given, by it, closed forms are used, and nothing is differentiated twice. Else the layer's
    parameters are differentiated by autograd: not for DDP or fp16 then.

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
class HutchinsonAlignment(_Aligning):
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
        self.method = "diag-exact" if exact else "hutchinson"
        _signs(probes, torch.zeros(0), torch.Generator())
        self.probes = probes
