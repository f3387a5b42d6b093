"""Ridge regression with a penalty for each feature: every certificate against the truth."""

from __future__ import annotations

import torch
from sklearn.datasets import load_diabetes

from flatminima.tuning import MAID, Hypergradient, Regularity
from flatminima.tuning.maid import Settings
from flatminima.tuning.maid.hypergradient import hypergradient_at
from flatminima.tuning.maid.lower import solve_lower
from flatminima.tuning.maid.problem import Bilevel

FEATURES, PRODUCTS = 50, 20_000
FULL, BESIDE = 4, 1
STARTS = [(accuracy, length) for accuracy in (1e-1, 1e-3, 1e-5) for length in (0.1, 10.0)]
FIXED = [(accuracy, length) for accuracy in (1e-1, 1e-3, 1e-5) for length in (0.1, 10.0, 1000.0)]
ROUNDING = 1e-12


class Ridge:
    """The diabetes data, 10 features and 40 of noise: 150 train, 150 validation, 142 test."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        features, target = (torch.tensor(part) for part in load_diabetes(return_X_y=True))
        noise = torch.randn(len(features), 40, generator=generator, dtype=torch.float64)
        order = torch.randperm(len(features), generator=generator)
        a, b = torch.cat([features, noise], 1)[order], target[order]
        a, b = (a - a[:150].mean(0)) / a[:150].std(0), (b - b[:150].mean()) / b[:150].std()
        self.train, self.valid, self.test = (
            (a[part], b[part]) for part in (slice(0, 150), slice(150, 300), slice(300, None))
        )
        (a, b), (v, _) = self.train, self.valid
        self.hessian, self.right = a.T @ a / len(a), a.T @ b / len(a)
        # A little less and more, since the eigenvalues are rounded themselves.
        self.least = max(0.0, float(torch.linalg.eigvalsh(self.hessian)[0]) - ROUNDING)
        self.stiff = float(torch.linalg.eigvalsh(v.T @ v / len(v))[-1]) + ROUNDING

    def lower(self, x, theta):
        a, b = self.train
        return (a @ x - b).square().sum() / (2 * len(a)) + 0.5 * (theta.exp() * x * x).sum()

    def upper(self, x, theta):
        v, w = self.valid
        return (v @ x - w).square().sum() / (2 * len(v))

    def regularity(self, x, theta):
        weights = theta.exp()
        return Regularity(
            strong=float(weights.min()) + self.least,
            upper=self.stiff,
            cross=float(weights.max()),
            coupling=float((weights * x).abs().max()),
            convex=True,
        )

    def solution(self, theta):
        return torch.linalg.solve(self.hessian + torch.diag(theta.exp()), self.right)

    def exact(self, theta):
        """f and its gradient from dense solves."""
        x, (v, w) = self.solution(theta), self.valid
        slope = v.T @ (v @ x - w) / len(v)
        adjoint = torch.linalg.solve(self.hessian + torch.diag(theta.exp()), slope)
        return self.upper(x, theta).item(), -theta.exp() * x * adjoint

    def test_error(self, theta):
        features, target = self.test
        return (features @ self.solution(theta) - target).square().mean().item()


class Watched(MAID):
    """Checks each hypergradient and each step against dense solves."""

    def __init__(self, ridge: Ridge, settings: Settings) -> None:
        theta = torch.full((FEATURES,), -3.0, dtype=torch.float64)
        super().__init__(
            ridge.upper,
            ridge.lower,
            torch.zeros_like(theta),
            theta,
            regularity=ridge.regularity,
            settings=settings,
        )
        self.ridge = ridge
        self.hypergradients = self.violations = self.rises = self.outside = 0
        self.tightness: list[float] = []
        self.tighter: list[float] = []

    def hypergradient(self) -> Hypergradient:
        found = super().hypergradient()
        f, exact = self.ridge.exact(self.theta)
        error = float(torch.linalg.vector_norm(found.value - exact))
        self.hypergradients += 1
        self.violations += error > found.bound + ROUNDING
        self.outside += not found.low - ROUNDING <= f <= found.high + ROUNDING
        self.tightness.append(found.bound / max(error, 1e-300))
        self.tighter.append(found.paper_bound / max(found.bound, 1e-300))
        return found

    def run(self) -> None:
        before, _ = self.ridge.exact(self.theta)
        while self.stopped is None and self.products < PRODUCTS:
            step = self.step()
            if step is not None:
                after, _ = self.ridge.exact(self.theta)
                self.rises += not before - after >= step.decrease - ROUNDING
                before = after


def seed(number: int) -> dict:
    """The first seeds from all starts, and beside fixed settings; the others from one start."""
    ridge = Ridge(number)
    starts = STARTS if number < FULL else STARTS[:1]
    fixed = FIXED if number < BESIDE else []
    runs = [_adaptive(ridge, *start) for start in starts]
    grid = [torch.full((FEATURES,), t, dtype=torch.float64) for t in torch.linspace(-9, 6, 61)]
    single = min(grid, key=lambda theta: ridge.exact(theta)[0])
    return {
        "runs": runs,
        "fixed": [_fixed(ridge, *start) for start in fixed],
        "single": {"upper": ridge.exact(single)[0], "test": ridge.test_error(single)},
    }


def _adaptive(ridge: Ridge, accuracy: float, length: float) -> dict:
    how = Settings(accuracy=accuracy, residual=accuracy, step_size=length)
    maid = Watched(ridge, how)
    maid.run()
    ratios = torch.tensor(maid.tightness).log10().median(), torch.tensor(maid.tighter).median()
    return {
        "accuracy": accuracy,
        "length": length,
        "upper": ridge.exact(maid.theta)[0],
        "test": ridge.test_error(maid.theta),
        "steps": len(maid.history),
        "hypergradients": maid.hypergradients,
        "violations": maid.violations,
        "outside": maid.outside,
        "rises": maid.rises,
        "bound_over_error": 10 ** ratios[0].item(),
        "paper_over_bound": ratios[1].item(),
        "stopped": maid.stopped,
        "last_accuracy": maid.accuracy,
    }


def _fixed(ridge: Ridge, accuracy: float, length: float) -> dict:
    """Descent with one accuracy and one step length, for as many products."""
    theta = torch.full((FEATURES,), -3.0, dtype=torch.float64)
    x = torch.zeros_like(theta)
    problem, adjoint = Bilevel(ridge.upper, ridge.lower), None
    while problem.products < PRODUCTS and theta.exp().isfinite().all():
        known = ridge.regularity(x, theta)
        point = solve_lower(problem, x, theta, accuracy, strong=known.strong)
        known = ridge.regularity(point.x, theta)
        found = hypergradient_at(problem, point, adjoint, known, accuracy, 2000)
        x, adjoint = point.x, found.adjoint
        theta = theta - length * found.value
    return {"accuracy": accuracy, "length": length, "upper": ridge.exact(theta)[0]}
