"""A regularizer whose best strength is known: Gaussian noise on the inputs of a linear model."""

from __future__ import annotations

import math
import statistics

import torch
from torch import nn

import flatminima

DOUBLE = torch.float64
N, D, VALIDATION, TEST, COPIES = 40, 30, 400, 2000, 4
STARTS = (-2.5, 1.5)
STEPS = {"low": -3.0, "size": 0.25, "count": 16}
"""The whole knob k stands for the noise exp(low + size k)."""


class Problem:
    """Training, validation and test samples, and what the best response is."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        truth = self.normal(D) * 1.5 / math.sqrt(D)
        (self.x, self.y), (self.v, self.w), self.test = (
            (x, x @ truth + self.normal(n))
            for n in (N, VALIDATION, TEST)
            for x in [self.normal(n, D)]
        )

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=DOUBLE, generator=self.generator)

    def best_response(self, log_noise: float) -> torch.Tensor:
        ridge = math.exp(2 * log_noise) * torch.eye(D, dtype=DOUBLE)
        return torch.linalg.solve(self.x.T @ self.x / N + ridge, self.x.T @ self.y / N)

    def validated(self, log_noise: float) -> float:
        return (self.v @ self.best_response(log_noise) - self.w).square().mean().item()

    def slope(self, log_noise: float) -> torch.Tensor:
        high, low = (self.best_response(log_noise + h) for h in (1e-4, -1e-4))
        return (high - low) / 2e-4


def tuned(problem: Problem, seed: int, knob: flatminima.Knob, noise) -> dict:
    """One run; `noise` makes a log noise of the knob's value."""
    torch.manual_seed(seed)
    knobs = flatminima.Knobs({"noise": knob}, dtype=DOUBLE, seed=seed)
    model = flatminima.gate(nn.Linear(D, 1, bias=False, dtype=DOUBLE), 1)
    model.slopes.requires_grad_(False).fill_(1.0)

    def noisy(model, batch, values):
        strength = noise(values["noise"]).exp()[:, None]
        inputs = batch[0] + strength * problem.normal(*batch[0].shape)
        return (model(inputs)[:, 0] - batch[1]).square().mean()

    def squared(model, batch):
        return (model(batch[0])[:, 0] - batch[1]).square().mean()

    tuner = flatminima.SelfTuning(
        model,
        knobs,
        torch.optim.Adam([model.weight, model.response_weight], lr=1e-2),
        noisy,
        [(problem.v, problem.w)],
        validation_objective=squared,
        lr=2e-2,
        warmup=300,
    )
    batch = (problem.x.repeat(COPIES, 1), problem.y.repeat(COPIES))
    for _ in range(300 + 2 * 2000):
        tuner.step(batch)
    late = [entry["values"]["noise"] for entry in tuner.history[-300:]]
    at = noise(torch.tensor(late[-1])).item()
    response = model.response_weight.detach()[0]
    return {
        "found": statistics.mode(late) if knob.whole else statistics.fmean(late),
        "scale": knobs.scale.item(),
        "cosine": torch.cosine_similarity(problem.slope(at), response, dim=0).item(),
        "validation": squared(flatminima.bake(model), (problem.v, problem.w)).item(),
        "test": squared(flatminima.bake(model), problem.test).item(),
    }


def seed(number: int) -> dict:
    grid = [i / 200 for i in range(-800, 401)]
    problem = Problem(number)
    losses = [problem.validated(at) for at in grid]
    best = min(range(len(grid)), key=losses.__getitem__)
    whole = [problem.validated(_of_step(k)) for k in range(STEPS["count"])]
    best_step = min(range(STEPS["count"]), key=whole.__getitem__)
    return {
        "best": grid[best],
        "best_validation": losses[best],
        "best_step": best_step,
        "best_step_validation": whole[best_step],
        "continuous": [
            {
                "start": start,
                "start_validation": problem.validated(start),
                **tuned(
                    Problem(number),
                    number,
                    flatminima.Knob(start, low=-math.inf),
                    lambda value: value,
                ),
            }
            for start in STARTS
        ],
        "whole": tuned(
            Problem(number),
            number,
            flatminima.Knob(3, high=STEPS["count"], whole=True),
            _of_step,
        ),
    }


def _of_step(k):
    return STEPS["low"] + STEPS["size"] * k
