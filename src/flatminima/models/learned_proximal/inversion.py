"""Where a learned proximal network came from: f(y) = x solved for y, and the prior at x."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flatminima.errors import InputError
from flatminima.progress import Progress

if TYPE_CHECKING:
    from flatminima.models.learned_proximal.proximal import LearnedProximal

ARMIJO, HALVINGS, PRODUCTS = 1e-4, 40, 200


@dataclass(frozen=True)
class Prior:
    r"""The learned prior at some samples.

    Attributes:
        value: R(x) in squared units of x, up to one constant, shape (n,). Never above the truth.
        error: The most that R(x) is above `value`, $\|f(y) - x\|^2 / (2 m)$ with m the least
            eigenvalue of the Jacobian of f; infinite where m = 0 and f(y) is not x.
        residual: $\|f(y) - x\|$, shape (n,).
        y: What f takes there, float64.
        steps: Newton steps taken.
        sigma: Of the noise that the network was trained on.
    """

    value: Tensor
    error: Tensor
    residual: Tensor
    y: Tensor
    steps: int
    sigma: float

    @property
    def log_density(self) -> Tensor:
        r"""$-R / \sigma^2$: the log-density that the network has learned, up to a constant.

        Raises:
            InputError: the network does not know its sigma, as it was not trained by `fit_lpn`.
        """
        if not self.sigma > 0:
            raise InputError("the network has no sigma: train it by fit_lpn, or set net.sigma")
        return -self.value / self.sigma**2

    def __str__(self) -> str:
        return (
            f"R at {len(self.value)} samples from {self.value.min():.4g} to "
            f"{self.value.max():.4g}, each at most {self.error.max():.1g} more; largest "
            f"|f(y) - x| {self.residual.max():.1g} after {self.steps} Newton steps"
        )


def invert(
    net: LearnedProximal, x: Tensor, steps: int, tolerance: float, progress: Progress
) -> Prior:
    """The prior at `x`; see `LearnedProximal.prior`.

    Newton's method on psi(y) - <x, y>, whose gradient is f(y) - x and whose Hessian is the
    Jacobian of f, with a line search for each sample.
    """
    net = copy.deepcopy(net).double().requires_grad_(False)
    x = x.detach().double()
    y, taken = x.clone(), 0
    while True:
        y.requires_grad_()
        with torch.enable_grad():
            psi = net.potential(y)
            (f,) = torch.autograd.grad(psi.sum(), y, create_graph=True)
        gradient, below = (f - x).detach(), psi.detach() - _dot(x, y.detach())
        residual = _dot(gradient, gradient).sqrt()
        open_ = residual > tolerance
        if not open_.any() or taken == steps:
            break
        step = _newton(f, y, gradient, residual, open_)
        y = y.detach()
        moved = _searched(net, x, y, below, step, _dot(gradient, step), open_)
        if torch.equal(moved, y):
            break
        y, taken = moved, taken + 1
        progress("prior", taken, steps)
    y = y.detach()
    with torch.no_grad():
        value = _dot(y, x) - _dot(x, x) / 2 - net.potential(y)
    least = torch.tensor(2 * net.least, dtype=torch.float64, device=x.device)
    error = torch.where(residual == 0, torch.zeros_like(residual), residual.square() / least)
    return Prior(value, error, residual, y, taken, float(net.sigma))


def _newton(f: Tensor, y: Tensor, gradient: Tensor, residual: Tensor, open_: Tensor) -> Tensor:
    """-J^-1 gradient, about, by conjugate gradients for all samples at once."""
    step = torch.zeros_like(gradient)
    left, going = -gradient, open_.clone()
    direction, square = left.clone(), residual.square()
    goal = residual * residual.clamp(max=0.1)
    for _ in range(min(PRODUCTS, 2 * gradient[0].numel() + 5)):
        (product,) = torch.autograd.grad(f, y, direction, retain_graph=True)
        curvature = _dot(direction, product)
        # A direction without curvature, where f does not move at all, is not worth following.
        going &= curvature > 1e-14 * _dot(direction, direction)
        if not going.any():
            break
        length = torch.where(going, square / curvature, 0.0)
        step += _by(length, direction)
        left -= _by(length, product)
        new = _dot(left, left)
        direction = left + _by(torch.where(going, new / square, 0.0), direction)
        square = torch.where(going, new, square)
        going &= new.sqrt() > goal
        if not going.any():
            break
    still = (step == 0).flatten(1).all(1) & open_
    return torch.where(_wide(still, step), -gradient, step)


def _searched(
    net: LearnedProximal,
    x: Tensor,
    y: Tensor,
    below: Tensor,
    step: Tensor,
    slope: Tensor,
    open_: Tensor,
) -> Tensor:
    """Each sample of y moved along its step as far as it falls enough; unmoved where it never does.

    Near the minimum the fall drowns in rounding, so there a shorter gradient counts as well.
    """
    length = torch.ones_like(below)
    waiting, moved = open_.clone(), y.clone()
    before = _dot(*(2 * [_residual(net, x, y)])).sqrt()
    for _ in range(HALVINGS):
        there = y + _by(length, step)
        with torch.no_grad():
            fell = net.potential(there) - _dot(x, there) <= below + ARMIJO * length * slope
        close = slope.abs() < 1e-10 * (1 + below.abs())
        if close.any():
            gradient = _residual(net, x, there)
            fell |= close & (_dot(gradient, gradient).sqrt() < 0.9 * before)
        taken = waiting & fell
        moved = torch.where(_wide(taken, y), there, moved)
        waiting &= ~taken
        if not waiting.any():
            break
        length = torch.where(waiting, length / 2, length)
    return moved


def _residual(net: LearnedProximal, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        f: Tensor = net(y)
    return f - x


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


def _wide(a: Tensor, like: Tensor) -> Tensor:
    return a.reshape(-1, *[1] * (like.dim() - 1))


def _by(a: Tensor, b: Tensor) -> Tensor:
    return b * _wide(a, b)
