"""Multinomial logistic regression on few digits: a ridge for each pixel against one for all."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits

from flatminima.tuning import MAID
from flatminima.tuning.maid import Settings
from flatminima.tuning.maid.lower import solve_lower
from flatminima.tuning.maid.problem import Bilevel
from flatminima.tuning.maid.softmax import SoftmaxRegression

TRAIN, VALID, STEPS, PRODUCTS = 200, 200, 60, 3000


def data(number: int):
    generator = torch.Generator().manual_seed(number)
    features, target = (torch.tensor(part) for part in load_digits(return_X_y=True))
    order = torch.randperm(len(features), generator=generator)
    a, y = features[order] / 16, target[order]
    middle, end = TRAIN, TRAIN + VALID
    return [(a[i:j], y[i:j]) for i, j in ((0, middle), (middle, end), (end, len(a)))]


def solved(problem, theta):
    level = Bilevel(problem.upper, problem.lower)
    x = torch.zeros(problem.shape, dtype=torch.float64)
    known = problem.regularity(x, theta)
    return solve_lower(level, x, theta, 1e-4, strong=known.strong, most=10_000).x


def scores(problem, x, theta, test) -> dict:
    a, y = test
    logits = torch.cat([a, a.new_ones(len(a), 1)], 1) @ x.T
    return {
        "upper": problem.upper(x, theta).item(),
        "test_loss": torch.nn.functional.cross_entropy(logits, y).item(),
        "test_accuracy": (logits.argmax(1) == y).double().mean().item(),
    }


def seed(number: int) -> dict:
    train, valid, test = data(number)
    columns = torch.arange(65).expand(10, 65)
    each = SoftmaxRegression(train, valid, groups=columns)
    one = SoftmaxRegression(train, valid, groups=torch.zeros_like(columns))
    grid = torch.linspace(-11, -2, 10, dtype=torch.float64)[:, None]
    tried = [(solved(one, theta), theta) for theta in grid]
    x, theta = min(tried, key=lambda pair: one.upper(*pair).item())
    start = theta.expand(65).clone()
    maid = MAID(
        each.upper,
        each.lower,
        x,
        start,
        regularity=each.regularity,
        settings=Settings(step_size=10.0),
    )
    while maid.stopped is None and len(maid.history) < STEPS and maid.products < PRODUCTS:
        maid.step()
    found = maid.result("products" if maid.products >= PRODUCTS else "steps")
    exact = solved(each, found.theta)
    return {
        "one": {"theta": theta.item(), **scores(one, x, theta, test)},
        "each": {
            **scores(each, exact, found.theta, test),
            "start": found.start,
            "low": found.low,
            "high": found.high,
            "steps": len(found.history),
            "products": found.products,
            "stopped": found.stopped,
            "least_decrease": min((step.decrease for step in found.history), default=None),
        },
    }
