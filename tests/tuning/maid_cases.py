"""Bilevel problems whose answers are known."""

import torch

from flatminima.tuning.maid import (
    Regularity,
)
from flatminima.tuning.maid.softmax import SoftmaxRegression

DOUBLE = torch.float64


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


class Ridge:
    """One ridge exponent for each feature; the lower problem has a closed form."""

    n = 6

    def __init__(self, seed=0):
        truth = random(self.n, seed=seed + 9) * torch.tensor([1, 1, 1, 0, 0, 0], dtype=DOUBLE)
        self.a, self.v = random(12, self.n, seed=seed), random(20, self.n, seed=seed + 1)
        self.b = self.a @ truth + 0.7 * random(12, seed=seed + 2)
        self.w = self.v @ truth + 0.7 * random(20, seed=seed + 3)
        self.data = float(torch.linalg.eigvalsh(self.a.T @ self.a / 12)[0])
        self.stiff = float(torch.linalg.eigvalsh(self.v.T @ self.v / 20)[-1])
        self.x, self.theta = torch.zeros(self.n, dtype=DOUBLE), torch.full((self.n,), -3.0).double()

    def lower(self, x, theta):
        return (self.a @ x - self.b).square().sum() / 24 + 0.5 * (theta.exp() * x * x).sum()

    def upper(self, x, theta):
        return (self.v @ x - self.w).square().sum() / 40

    def regularity(self, x, theta):
        weights = theta.exp()
        return Regularity(
            strong=float(weights.min()) + self.data,
            upper=self.stiff,
            cross=float(weights.max()),
            coupling=float((weights * x).abs().max()),
            convex=True,
        )

    def solution(self, theta):
        return torch.linalg.solve(
            self.a.T @ self.a / 12 + torch.diag(theta.exp()), self.a.T @ self.b / 12
        )

    def exact(self, theta):
        """f and its gradient, by autograd through the solve."""
        theta = theta.detach().requires_grad_()
        f = self.upper(self.solution(theta), theta)
        return f.item(), torch.autograd.grad(f, theta)[0]


def softmax():
    """A small softmax regression with a knob for each feature, the biases and the distance."""
    a, v = random(15, 3, seed=3), random(10, 3, seed=4)
    y, w = torch.arange(15) % 3, torch.arange(10) % 3
    groups = torch.arange(4).expand(3, 4)
    start = 0.3 * random(3, 3, seed=5)
    found = SoftmaxRegression((a, y), (v, w), groups=groups, start=start)
    return found, torch.zeros(3, 4, dtype=DOUBLE)


def dense(problem, x, theta):
    """x, f and grad f by Newton steps and dense derivatives."""
    shape, n = x.shape, x.numel()

    def slope(x, theta):
        x = x if x.requires_grad else x.detach().requires_grad_()
        return torch.autograd.grad(problem.lower(x, theta), x, create_graph=True)[0].flatten()

    for _ in range(60):
        hessian = torch.autograd.functional.hessian(lambda x: problem.lower(x, theta), x)
        x = x - torch.linalg.solve(hessian.reshape(n, n), slope(x, theta).detach()).view(shape)
    x = x.detach().requires_grad_()
    hessian = torch.autograd.functional.hessian(lambda x: problem.lower(x, theta), x).reshape(n, n)
    j = torch.autograd.functional.jacobian(lambda t: slope(x, t), theta).reshape(n, -1)
    f = problem.upper(x, theta)
    g = torch.autograd.grad(f, x)[0].flatten()
    return x.detach(), f.item(), (-j.T @ torch.linalg.solve(hessian, g)).view(theta.shape)
