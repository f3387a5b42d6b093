"""A bilevel problem and its derivatives, each product counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, autograd

from flatminima.errors import InputError

Level: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""`(x, theta) -> scalar`, of torch operations that can be differentiated twice."""

NO_CURVATURE = """the lower problem is not strongly convex: it does not depend on x; make it a \
function of x, as in lower(x, theta), and add a ridge such as 0.5 * c * x.square().sum()"""


def norm(tensor: Tensor) -> float:
    """The Euclidean norm of all entries."""
    return float(torch.linalg.vector_norm(tensor))


class Bilevel:
    r"""$\min_\theta g(\hat x(\theta), \theta)$ with $\hat x(\theta) = \arg\min_x h(x, \theta)$.

    Args:
        upper: g, differentiable in x.
        lower: h, twice differentiable and strongly convex in x.
    """

    def __init__(self, upper: Level, lower: Level) -> None:
        self.upper, self.lower = upper, lower
        self.products = 0
        """Gradients of h, and products with its second derivatives, so far."""

    def at(self, x: Tensor, theta: Tensor) -> LowerPoint:
        """The lower problem's derivatives at a point, one gradient."""
        return LowerPoint(self, x, theta)

    def upper_at(self, x: Tensor, theta: Tensor) -> UpperPoint:
        """The upper level's value and gradients at a point.

        Raises:
            InputError: the upper level is no scalar, or does not depend on x.
        """
        x, theta = _leaf(x), _leaf(theta)
        value = _scalar("upper", self.upper(x, theta))
        along_x, along_theta = autograd.grad(value, [x, theta], allow_unused=True)
        if along_x is None:
            raise InputError("upper does not depend on x: write it as a function of (x, theta)")
        return UpperPoint(value.item(), along_x, along_theta)


@dataclass(frozen=True)
class UpperPoint:
    """The upper level at a point.

    Attributes:
        value: g.
        gradient: Its gradient in x.
        direct: Its gradient in theta at this x; None where theta does not occur in g.
    """

    value: float
    gradient: Tensor
    direct: Tensor | None


class LowerPoint:
    r"""The lower problem at (x, theta), its graph kept for products.

    With $H = \nabla_{xx} h$ and $J = \partial_\theta \nabla_x h$, neither of which is formed.

    Attributes:
        x: The point, detached.
        theta: The knobs, detached.
        gradient: $\nabla_x h$, detached.
        size: Its norm; NaN or infinite where h is not defined.
    """

    def __init__(self, problem: Bilevel, x: Tensor, theta: Tensor) -> None:
        self._problem = problem
        self._x, self._theta = _leaf(x), _leaf(theta)
        value = _scalar("lower", problem.lower(self._x, self._theta))
        found = autograd.grad(value, [self._x], create_graph=True, allow_unused=True)[0]
        if found is None:
            raise InputError(NO_CURVATURE)
        self._gradient = found
        self.x, self.theta, self.gradient = self._x.detach(), self._theta.detach(), found.detach()
        self.size = norm(self.gradient) if value.isfinite() else float("nan")
        problem.products += 1

    def product(self, v: Tensor) -> Tensor:
        """H v, of the shape of x; zero where h is linear in x."""
        self._problem.products += 1
        found = self._pull(self._gradient, self._x, v)
        return torch.zeros_like(self.x) if found is None else found

    def cross(self, q: Tensor) -> Tensor:
        """J' q, of the shape of theta; zero where theta does not reach the gradient."""
        self._problem.products += 1
        found = self._pull(self._gradient, self._theta, q)
        return torch.zeros_like(self.theta) if found is None else found

    def along(self, u: Tensor) -> Tensor:
        """J u, of the shape of x."""
        self._problem.products += 1
        weights = torch.zeros_like(self.x, requires_grad=True)
        pulled = None
        if self._gradient.requires_grad:
            pulled = autograd.grad(
                self._gradient,
                self._theta,
                weights,
                create_graph=True,
                retain_graph=True,
                allow_unused=True,
            )[0]
        if pulled is None or not pulled.requires_grad:
            return torch.zeros_like(self.x)
        found = autograd.grad(pulled, weights, u, allow_unused=True, retain_graph=True)[0]
        return torch.zeros_like(self.x) if found is None else found

    @staticmethod
    def _pull(output: Tensor, at: Tensor, vector: Tensor) -> Tensor | None:
        if not output.requires_grad:
            return None
        found: Tensor | None = autograd.grad(
            output, at, vector.detach(), retain_graph=True, allow_unused=True
        )[0]
        return None if found is None else found.detach()


def check_points(x: Tensor, theta: Tensor) -> None:
    """Refuse variables and knobs that cannot be moved along a gradient.

    Raises:
        InputError: not a tensor of float32 or float64, not finite, empty, or of two types.
    """
    for name, value in (("x", x), ("theta", theta)):
        if not isinstance(value, Tensor) or value.dtype not in (torch.float32, torch.float64):
            what = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise InputError(
                f"{name} is of type {what}, along which nothing can be differentiated: give a "
                "tensor of float64 (or float32); whole numbers and choices are no knobs for MAID"
            )
        if not value.numel() or not value.isfinite().all():
            raise InputError(f"{name} is empty or not finite: give finite numbers to start from")
    if (x.dtype, x.device) != (theta.dtype, theta.device):
        raise InputError(
            f"x is {x.dtype} on {x.device} and theta {theta.dtype} on {theta.device}: "
            "give both of one type on one device"
        )


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_()


def _scalar(name: str, value: Tensor) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1:
        what = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"{name} returned {what}: it must return a scalar tensor")
    if not value.requires_grad:
        raise InputError(
            f"{name} returned a number that depends on neither x nor theta: compute it with torch "
            "operations on both, without .item(), .detach() or numpy"
        )
    return value.reshape(())
