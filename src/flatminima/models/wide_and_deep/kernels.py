"""Kernels of deep networks, in logarithms: depth makes them smaller than any float."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from flatminima.errors import InputError
from flatminima.models.wide_and_deep.activations import DualActivation

Kind: TypeAlias = Literal["nngp", "ntk"]

MOST_LAYERS = 100_000
"""After which a limit is given up."""


def log_kernel(gaps: Tensor, activation: DualActivation, depth: int, kind: Kind) -> Tensor:
    r"""log of $k_L(t) / k_L(1)$ for inputs on a sphere, t = 1 - gap.

    NNGP: $S_0 = t$, $S_{l+1} = \hat\phi(S_l)$. NTK: $K_0 = t$,
    $K_{l+1} = S_{l+1} + K_l \hat\phi'(S_l)$. Costs `depth` evaluations of the dual per entry.

    Args:
        gaps: 1 - t = |x - x'|^2 / 2, from 0 to 1, float64.
        activation: phi^.
        depth: L.
        kind: "nngp" or "ntk".
    """
    log_s = torch.log1p(-gaps)
    if kind == "nngp":
        for _ in range(depth):
            log_s = activation.log_dual(log_s)
        return log_s
    log_k, diagonal = log_s, torch.zeros((), dtype=gaps.dtype, device=gaps.device)
    slope = activation.derivative(torch.ones_like(diagonal)).log()
    for _ in range(depth):
        log_slope = activation.log_derivative(log_s)
        log_s = activation.log_dual(log_s)
        log_k = torch.logaddexp(log_s, log_k + log_slope)
        # On the diagonal S is 1 in every layer.
        diagonal = torch.logaddexp(torch.zeros_like(diagonal), diagonal + slope)
    return log_k - diagonal


def log_singular(gaps: Tensor, activation: DualActivation) -> Tensor:
    r"""log of $\psi(t) = \lim_L S_L(t) / A^L$, which grows like $|x - x'|^{-\alpha}$; inf at t = 1.

    Layers are added until the logarithm changes by less than 1e-12.

    Args:
        gaps: 1 - t, from 0 to 1, float64.
        activation: One whose limit is singular.

    Raises:
        InputError: the limit is not reached in 100000 layers: A or B is too near 1.
    """
    shrink = math.log(1 / activation.slope_at_zero)
    log_s = torch.log1p(-gaps)
    settled = (gaps == 0) | (gaps >= 1)
    log_psi = torch.where(gaps == 0, math.inf, log_s)
    for layer in range(1, MOST_LAYERS + 1):
        following = activation.log_dual(log_s)
        moved = torch.where(settled, 0.0, following - log_s + shrink)
        log_s = following
        if moved.numel() == 0 or moved.abs().max() < 1e-12:
            return torch.where(settled, log_psi, log_s + layer * shrink)
    raise InputError(
        f"the singular kernel is not reached in {MOST_LAYERS} layers: "
        f"A = {activation.slope_at_zero:.6g} or B = {activation.slope_at_one:.6g} is too near 1"
    )


def sufficient_depth(activation: DualActivation, gap: float, samples: int) -> int:
    r"""A depth at which a singular kernel's network is near its limit.

    $\log(1 / (1 - t)) / \log B$ layers bring the closest pair away from 1, and
    $\log n / \log(1 / A)$ more bring what is off the diagonal well below 1 / n.

    Args:
        activation: One whose limit is singular.
        gap: 1 - t of the closest pair of different inputs, above 0.
        samples: n, of training.

    Raises:
        InputError: the limit is not singular.
    """
    if activation.taxonomy().kind != "singular":
        raise InputError("only singular kernels have such a depth; see DualActivation.taxonomy")
    leave = math.log(1 / min(gap, 1.0)) / math.log(activation.slope_at_one)
    return math.ceil(leave + math.log(max(samples, 2)) / math.log(1 / activation.slope_at_zero))
