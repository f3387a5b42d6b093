"""Denoising a photograph: how strongly to smooth, learned from one crop with noise added."""

from __future__ import annotations

import math

import torch
from sklearn.datasets import load_sample_image
from torch.nn.functional import conv2d, conv_transpose2d

from flatminima.tuning import MAID, Regularity
from flatminima.tuning.maid import Settings
from flatminima.tuning.maid.lower import solve_lower
from flatminima.tuning.maid.problem import Bilevel

NOISE, GAMMA, SIDE = 0.1, 0.02, 48
STEPS, PRODUCTS = 30, 2000
TRAIN, TEST, SHOWN = ("china", 130, 250), ("flower", 150, 250), ("china", 110, 230)


def crop(place: tuple[str, int, int], side: int) -> torch.Tensor:
    """A grey crop of a photograph that comes with scikit-learn, 0 to 1."""
    name, row, column = place
    image = torch.tensor(load_sample_image(f"{name}.jpg").copy(), dtype=torch.float64) / 255
    return image.mean(2)[row : row + side, column : column + side]


def total_variation() -> list[torch.Tensor]:
    """Differences along rows and columns."""
    step = torch.tensor([[-1.0, 1.0]], dtype=torch.float64)
    return [step, step.T]


def cosines() -> list[torch.Tensor]:
    """The eight 3 x 3 filters of the discrete cosine transform that ignore the mean."""
    places = torch.arange(3, dtype=torch.float64)
    waves = [torch.cos(math.pi * (places + 0.5) * k / 3) for k in range(3)]
    waves = [wave / torch.linalg.vector_norm(wave) for wave in waves]
    return [torch.outer(a, b) for a in waves for b in waves][1:]


class Denoising:
    """h = |x - y|^2 / 2 + sum_k exp(theta_k) sum phi(K_k x), phi(t) = sqrt(t^2 + gamma^2)."""

    def __init__(self, clean, noisy, filters, one: bool) -> None:
        self.clean, self.noisy, self.one = clean, noisy, one
        self.filters = [f[None, None] for f in filters]
        self.knobs = 1 if one else len(filters)
        # A convolution's norm is at most the sum of its filter's entries' sizes.
        self.square = torch.tensor([f.abs().sum().item() ** 2 for f in filters]).double()
        self.length = torch.tensor([torch.linalg.vector_norm(f).item() for f in filters]).double()

    def weights(self, theta):
        return theta.exp().expand(len(self.filters))

    def lower(self, x, theta):
        total = 0.5 * (x - self.noisy).square().sum()
        for weight, f in zip(self.weights(theta), self.filters, strict=True):
            total = total + weight * (conv2d(x[None, None], f).square() + GAMMA**2).sqrt().sum()
        return total

    def upper(self, x, theta):
        return 0.5 * (x - self.clean).square().sum()

    def regularity(self, x, theta):
        weights = self.weights(theta)
        # phi'' is at most 1 / gamma, and phi''' at most 0.859 / gamma^2, where t = gamma / 2.
        third = 1.5 / 1.25**2.5 / GAMMA**2
        cross = weights * self.square / GAMMA
        columns = torch.stack(
            [w * self._pull(x, f) for w, f in zip(weights, self.filters, strict=True)]
        )
        columns = columns.sum(0, keepdim=True) if self.one else columns
        return Regularity(
            strong=1.0,
            upper=1.0,
            cross=float(cross.sum() if self.one else torch.linalg.vector_norm(cross)),
            hessian=float((weights * self.square * self.length).sum()) * third,
            coupling=float(torch.linalg.vector_norm(columns)),
            convex=True,
        )

    @staticmethod
    def _pull(x, f):
        """K' phi'(K x)."""
        t = conv2d(x[None, None], f)
        return conv_transpose2d(t / (t.square() + GAMMA**2).sqrt(), f)[0, 0]


def noisy(clean, seed: int):
    generator = torch.Generator().manual_seed(seed)
    return clean + NOISE * torch.randn(clean.shape, generator=generator, dtype=torch.float64)


def decibels(image, clean) -> float:
    return -10 * math.log10((image - clean).square().mean().item())


def denoised(problem: Denoising, theta) -> torch.Tensor:
    found = Bilevel(problem.upper, problem.lower)
    return solve_lower(found, problem.noisy, theta, 1e-4, strong=1.0, most=20_000).x


def learn(number: int, filters, one: bool, start: float) -> tuple[torch.Tensor, dict]:
    clean = crop(TRAIN, SIDE)
    problem = Denoising(clean, noisy(clean, number), filters, one)
    theta = torch.full((problem.knobs,), start, dtype=torch.float64)
    maid = MAID(
        problem.upper,
        problem.lower,
        problem.noisy,
        theta,
        regularity=problem.regularity,
        settings=Settings(step_size=1.0, tolerance=1e-3),
    )
    while maid.stopped is None and len(maid.history) < STEPS and maid.products < PRODUCTS:
        maid.step()
    found = maid.result("products" if maid.products >= PRODUCTS else "steps")
    other = crop(TEST, SIDE)
    fresh = Denoising(other, noisy(other, number + 1000), filters, one)
    return found.theta, {
        "theta": found.theta.tolist(),
        "start": found.start,
        "upper": found.upper,
        "low": found.low,
        "high": found.high,
        "steps": len(found.history),
        "products": found.products,
        "stopped": found.stopped,
        "least_decrease": min(step.decrease for step in found.history),
        "train": decibels(found.x, clean),
        "test": decibels(denoised(fresh, found.theta), other),
    }


def best_single(number: int, filters) -> dict:
    """One weight for all filters, the best of a grid on the training crop."""
    clean, other = crop(TRAIN, SIDE), crop(TEST, SIDE)
    problem = Denoising(clean, noisy(clean, number), filters, True)
    grid = torch.linspace(-5, -2, 13, dtype=torch.float64)[:, None]
    best = min(grid, key=lambda theta: problem.upper(denoised(problem, theta), theta).item())
    fresh = Denoising(other, noisy(other, number + 1000), filters, True)
    train = denoised(problem, best)
    return {
        "theta": best.item(),
        "upper": problem.upper(train, best).item(),
        "train": decibels(train, clean),
        "test": decibels(denoised(fresh, best), other),
    }


def seed(number: int) -> dict:
    clean, other = crop(TRAIN, SIDE), crop(TEST, SIDE)
    return {
        "noisy": {
            "train": decibels(noisy(clean, number), clean),
            "test": decibels(noisy(other, number + 1000), other),
        },
        "tv": learn(number, total_variation(), True, -4.0)[1],
        "tv_grid": best_single(number, total_variation()),
        "experts": learn(number, cosines(), False, -4.0)[1],
        "experts_grid": best_single(number, cosines()),
    }
