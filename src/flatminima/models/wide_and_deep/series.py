"""Hermite series of activations, and power series with few terms."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flatminima.errors import InputError

REACH = 20.0
"""Where integrals over a standard normal variable are cut off."""

POINTS = 2**15
"""Of a sum; even, so that they lie about 0 and none is on it, where most kinks are."""


def hermite_coefficients(
    activation: Callable[[Tensor], Tensor], degree: int
) -> tuple[NDArray[np.float64], float, float]:
    """E[phi h_k] for k = 0 to `degree`, E[phi^2] and E[phi'^2], under a standard normal.

    Args:
        activation: A function of a float64 tensor, elementwise.
        degree: The last degree.

    Raises:
        InputError: it is no function of a tensor, or autograd cannot go through it.
    """
    z = torch.linspace(-REACH, REACH, POINTS, dtype=torch.float64, requires_grad=True)
    try:
        values = activation(z)
        (slopes,) = torch.autograd.grad(values.sum(), z)
        if values.shape != z.shape:
            raise InputError(f"of {len(z)} numbers it makes the shape {tuple(values.shape)}")
    except Exception as error:
        raise InputError(
            f"the activation must be a function of a tensor that autograd can follow, such as "
            f"torch.tanh; it failed with: {error}"
        ) from error
    x, phi, slope = z.detach().numpy(), values.detach().numpy(), slopes.numpy()
    step = x[1] - x[0]
    # h_k(x) sqrt(density), which unlike h_k(x) stays small.
    root = np.exp(-x * x / 4) / (2 * np.pi) ** 0.25
    before, now = np.zeros_like(x), root
    found = np.empty(degree + 1)
    for k in range(degree + 1):
        found[k] = step * (phi * root * now).sum()
        before, now = now, (x * now - np.sqrt(k) * before) / np.sqrt(k + 1)
    density = root * root
    with np.errstate(over="ignore"):
        power, bend = (float(step * (part**2 * density).sum()) for part in (phi, slope))
    return found, power, bend


def above_lowest(terms: list[tuple[int, float]], t: Tensor) -> tuple[int, Tensor]:
    """sum c t^k as (m, q) with q = sum c t^(k - m) and m the lowest exponent.

    By Horner's rule over the exponents there are, with powers by multiplication.

    Args:
        terms: (exponent, coefficient), exponents rising.
        t: Where; a new tensor is returned.
    """
    if not terms:
        return 0, torch.zeros_like(t)
    exponents = [k for k, _ in terms]
    gaps = {high - low for low, high in pairwise(exponents)}
    powers = {gap: _power(t, gap) for gap in gaps}
    found = torch.full_like(t, terms[-1][1])
    for (low, coefficient), (high, _) in zip(terms[-2::-1], terms[:0:-1], strict=True):
        found.mul_(powers[high - low]).add_(coefficient)
    return exponents[0], found


def _power(t: Tensor, exponent: int) -> Tensor:
    if exponent == 1:
        return t
    half = _power(t, exponent // 2)
    whole = half * half
    return whole * t if exponent % 2 else whole
