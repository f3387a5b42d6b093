"""Hessian alignment: the head's gradient and Hessian made the same in every domain."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from flatminima.arguments import between, whole
from flatminima.errors import InputError, unknown
from flatminima.objectives.linear_head import HeadLoss, LinearHeadLoss
from flatminima.objectives.supervised import check_classes

METHODS = ("hgp", "hutchinson", "diag-exact")


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
    heads = [AutogradHead(loss, params) for loss in losses]
    return aligned(heads, method, alpha, beta, probes, generator, detach_mean)


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
        check_classes(y)
    triples = zip(features, logits, labels, strict=True)
    heads = [LinearHeadLoss(f, z, y, bias=bias) for f, z, y in triples]
    return aligned(heads, method, alpha, beta, probes, generator, detach_mean)


class AutogradHead:
    """Any loss as a function of a head, by differentiating its gradient; see `HeadLoss`.

    Args:
        loss: A scalar that is still part of the graph.
        params: The head's tensors.

    Raises:
        InputError: the loss does not depend on them.
    """

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
        """The gradient, shape (P,)."""
        return self.flat

    def product(self, vector: Tensor) -> Tensor:
        """H v, shape (P,)."""
        if not self.flat.requires_grad:
            return torch.zeros_like(self.flat)
        # By the graph of the vector too, which a gradient of g.v would count twice for v = g.
        found = torch.autograd.grad(
            self.flat, self.params, grad_outputs=vector, create_graph=True, allow_unused=True
        )
        return self._flat(found)

    def products(self, vectors: Tensor) -> Tensor:
        """H v of each row v, shape (K, P)."""
        return torch.stack([self.product(vector) for vector in vectors])

    def diagonal(self) -> Tensor:
        """The diagonal of H, shape (P,), by P products."""
        rows = torch.eye(len(self.flat), dtype=self.flat.dtype, device=self.flat.device)
        return torch.stack([self.product(row)[i] for i, row in enumerate(rows)])

    def _flat(self, parts: Sequence[Tensor | None]) -> Tensor:
        filled = [
            torch.zeros_like(param) if part is None else part
            for param, part in zip(self.params, parts, strict=True)
        ]
        return torch.cat([part.flatten() for part in filled])


def aligned(
    heads: Sequence[HeadLoss],
    method: str,
    alpha: float,
    beta: float,
    probes: int,
    generator: torch.Generator | None,
    detach_mean: bool,
) -> Tensor:
    """The penalty of `hessian_alignment`, of each domain's loss as a function of the head."""
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    alpha, beta = between("alpha", alpha, 0), between("beta", beta, 0)
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
            signs = draw_signs(probes, mean, generator)
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


def draw_signs(probes: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Rows of -1 and +1, drawn on the CPU whatever the device."""
    drawn = torch.randint(2, (whole("probes", probes), len(like)), generator=generator)
    return (2 * drawn - 1).to(like)
