"""Photographs: a network of 8 x 8 patches of one, used on the other."""

from __future__ import annotations

import copy
import math
from functools import lru_cache
from itertools import pairwise

import torch
from sklearn.datasets import load_sample_image
from torch import Tensor, nn
from torch.nn import functional

from flatminima.models.learned_proximal import (
    LPN,
    LinearMap,
    PatchLPN,
    Stage,
    blurring,
    fit_lpn,
    identity,
    masking,
    pnp_admm,
    pnp_hqs,
    pnp_pgd,
    proximal_schedule,
    sensing,
)
from flatminima.objectives import Supervised

SIDE, SIGMA, NOISE, STEPS = 8, 0.1, 0.02, 300
WHOLE, PART = 128, 48
AREAS = {"flower": (80, 350, 170, 445), "china": (60, 360, 0, 640)}
"""Rows and columns that crops are from: the flower, its background left out; china, its sky."""

TASKS = ("deblurring", "inpainting", "compressed sensing")
WEIGHTS = (1.5, 4.0, 12.0, 36.0, 108.0)
STRENGTHS = (0.002, 0.004, 0.008, 0.016, 0.03, 0.06)
ITERATIONS, TUNING_SEED = 40, 999
METHODS = {"admm": pnp_admm, "hqs": pnp_hqs, "pgd": pnp_pgd}


def photograph(name: str) -> Tensor:
    """Grey, 0 to 1."""
    return torch.tensor(load_sample_image(f"{name}.jpg").copy()).float().div(255).mean(2)


def crop(name: str, side: int, number: int) -> Tensor:
    """A crop at a place drawn for the seed, shape (1, 1, side, side)."""
    image = photograph(name)
    generator = torch.Generator().manual_seed(number)
    top, bottom, left, right = AREAS[name]
    row = int(torch.randint(top, bottom - side, (), generator=generator))
    column = int(torch.randint(left, right - side, (), generator=generator))
    return image[None, None, row : row + side, column : column + side]


def patches() -> Tensor:
    every = photograph("china").unfold(0, SIDE, 1).unfold(1, SIDE, 1).reshape(-1, SIDE * SIDE)
    return every[torch.randperm(len(every), generator=torch.Generator().manual_seed(0))[:60_000]]


class Plain(nn.Module):
    """A denoiser of patches without constraints, about as large: what is taken off the patch."""

    def __init__(self) -> None:
        super().__init__()
        n = SIDE * SIDE
        self.layers = nn.Sequential(
            nn.Linear(n, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, n)
        )

    def forward(self, y: Tensor) -> Tensor:
        centred = y - y.mean(1, keepdim=True)
        return y - self.layers(centred)


class Averaged(nn.Module):
    """A denoiser of patches put to images, as `PatchLPN` does."""

    def __init__(self, net: nn.Module, stride: int) -> None:
        super().__init__()
        self.net, self.stride = net, stride

    def forward(self, y: Tensor) -> Tensor:
        rim = SIDE - self.stride
        wide = functional.pad(y, [0, rim, 0, rim], mode="circular")
        rows = functional.unfold(wide, SIDE, stride=self.stride)[0].T
        sums = functional.fold(self.net(rows).T[None], wide.shape[2:], SIDE, stride=self.stride)
        height, width = y.shape[2:]
        sums[:, :, :rim] += sums[:, :, height:]
        sums[:, :, :, :rim] += sums[:, :, :, width:]
        return sums[:, :, :height, :width] * (self.stride / SIDE) ** 2


def trained(number: int) -> tuple[LPN, Plain]:
    """The network, and the plain denoiser with as many steps."""
    samples = patches()
    torch.manual_seed(number)
    net = LPN(SIDE * SIDE, 128, 2, beta=30, alpha=1e-3, free_mean=True)
    schedule = proximal_schedule(SIDE * SIDE, STEPS, lr=1e-2)
    fit_lpn(net, samples, SIGMA, schedule=schedule, batch=128, seed=number)
    plain = Plain()
    square = Supervised(nn.functional.mse_loss)
    stages = [Stage(STEPS, 2e-3, square), Stage(STEPS, 4e-4, square)]
    fit_lpn(plain, samples, SIGMA, schedule=stages, batch=128, seed=number)
    return net, plain


def measured(task: str, clean: Tensor, number: int) -> tuple[LinearMap, Tensor]:
    """The operator of a task, and a measurement with noise."""
    generator = torch.Generator().manual_seed(5000 + number)
    if task == "deblurring":
        operator = blurring(1.5)
    elif task == "inpainting":
        operator = masking((torch.rand(clean.shape, generator=generator) < 0.4).float())
    else:
        operator = sensing(_rows(clean.numel(), number), tuple(clean.shape[1:]))
    b = operator(clean)
    noise = NOISE * torch.randn(b.shape, generator=generator)
    if task == "inpainting":
        noise = operator(noise)
    return operator, b + noise


@lru_cache(1)
def _rows(n: int, number: int) -> Tensor:
    """Orthonormal rows in random directions, as many as 30 % of the pixels."""
    generator = torch.Generator().manual_seed(9000 + number)
    return torch.linalg.qr(torch.randn(n, int(0.3 * n), generator=generator))[0].T.contiguous()


def by_tv(operator: LinearMap, b: Tensor, strength: float, steps: int = 200) -> Tensor:
    """The minimizer of |Ax - b|^2 / 2 + strength TV(x), by a primal-dual method (Condat, Vu)."""
    x = operator.adjoint(b) * 0
    lipschitz = operator.square_norm(x + 1)
    tau = 1 / (lipschitz / 2 + 8 * 0.5)
    ahead, p = x, x.new_zeros(2, *x.shape)
    for _ in range(steps):
        p = p + 0.5 * torch.stack([ahead.roll(-1, k) - ahead for k in (2, 3)])
        p = p / (p.norm(dim=0) / strength).clamp(min=1)
        pull = sum(p[i].roll(1, k) - p[i] for i, k in enumerate((2, 3)))
        new = x - tau * (operator.adjoint(operator(x) - b) + pull)
        ahead, x = 2 * new - x, new
    return x


def decibels(image: Tensor, clean: Tensor) -> float:
    return -10 * math.log10(float((image - clean).square().mean()))


def restored(denoiser: nn.Module, task: str, clean: Tensor, number: int, weight: float) -> Tensor:
    operator, b = measured(task, clean, number)
    return pnp_admm(denoiser, operator, b, weight=weight, steps=ITERATIONS).image


def tuned() -> dict:
    """Of each method and task the weight that is best on crops of the photograph learned from."""
    net, plain = trained(TUNING_SEED)
    found: dict = {}
    cut = crop("china", WHOLE, TUNING_SEED)
    given = cut + SIGMA * torch.randn(cut.shape, generator=torch.Generator().manual_seed(1))
    best = max(STRENGTHS, key=lambda s: decibels(by_tv(identity(), given, s), cut))
    found["denoising"] = {"TV": best}
    cut = crop("china", PART, TUNING_SEED)
    for task in TASKS:
        operator, b = measured(task, cut, TUNING_SEED)

        def score(denoiser, weight, task=task):
            return decibels(restored(denoiser, task, cut, TUNING_SEED, weight), cut)

        def tv(strength, operator=operator, b=b):
            return decibels(by_tv(operator, b, strength), cut)

        found[task] = {
            "TV": max(STRENGTHS, key=tv),
            "LPN": max(WEIGHTS, key=lambda w: score(PatchLPN(net, SIDE, 2), w)),
            "plain": max(WEIGHTS, key=lambda w: score(Averaged(plain, 2), w)),
        }
    return found


def seed(number: int, weights: dict) -> dict:
    """Decibels of all methods and tasks on crops of the other photograph; and what must hold."""
    net, plain = trained(number)
    clean = crop("flower", WHOLE, number)
    given = clean + SIGMA * torch.randn(
        clean.shape, generator=torch.Generator().manual_seed(number)
    )
    with torch.no_grad():
        found = {
            "denoising": {
                "given": decibels(given, clean),
                "TV": decibels(by_tv(identity(), given, weights["denoising"]["TV"]), clean),
                "plain": decibels(Averaged(plain, 1)(given), clean),
                "LPN": decibels(PatchLPN(net, SIDE)(given), clean),
            }
        }
        clean = crop("flower", PART, number)
        for task in TASKS:
            operator, b = measured(task, clean, number)
            weight = weights[task]
            given = b if b.shape == clean.shape else operator.adjoint(b)
            found[task] = {
                "given": decibels(given, clean),
                "TV": decibels(by_tv(operator, b, weight["TV"]), clean),
                "plain": decibels(
                    restored(Averaged(plain, 2), task, clean, number, weight["plain"]), clean
                ),
                "LPN": decibels(
                    restored(PatchLPN(net, SIDE, 2), task, clean, number, weight["LPN"]), clean
                ),
            }
    return found | {"checks": _checks(net, number), "curves": _curves(net, plain, number)}


def _checks(net: LPN, number: int) -> dict:
    """Symmetry and eigenvalues of Jacobians; the prior of clean, noisy and blurred patches."""
    exact = _double(net)
    cut = crop("flower", WHOLE, number)
    rows = functional.unfold(cut, SIDE, stride=SIDE)[0].T.double()
    asymmetry, least, most = 0.0, math.inf, 0.0
    for row in rows[::64]:
        jacobian = torch.autograd.functional.jacobian(lambda y: exact(y[None])[0], row)
        asymmetry = max(asymmetry, float((jacobian - jacobian.T).abs().max()))
        values = torch.linalg.eigvalsh((jacobian + jacobian.T) / 2)
        least, most = min(least, float(values[0])), max(most, float(values[-1]))
    generator = torch.Generator().manual_seed(number)
    rows = rows[::8]
    noise = torch.randn(rows.shape, generator=generator, dtype=rows.dtype)
    blurred = functional.unfold(blurring(1.5)(cut), SIDE, stride=SIDE)[0].T.double()[::8]
    shown = {"clean": rows, "noise 0.05": rows + 0.05 * noise, "noise 0.1": rows + 0.1 * noise}
    priors = {k: net.prior(v) for k, v in (shown | {"blurred": blurred}).items()}
    return {
        "asymmetry": asymmetry,
        "least": least,
        "most": most,
        "error": max(float(p.error.max()) for p in priors.values()),
        "R": {k: float(p.value.mean() / SIGMA**2) for k, p in priors.items()},
    }


def _curves(net: LPN, plain: Plain, number: int) -> dict:
    """The three methods on deblurring, weight 1, in float64: objective and change of each step."""
    clean = crop("flower", 32, number).double()
    operator, b = measured("deblurring", clean, number)
    ours, other = PatchLPN(_double(net), SIDE, 2), Averaged(_double(plain), 2)
    found = {}
    for name, method in METHODS.items():
        options = {"weight": 1.0, "steps": 60, "tolerance": 0.0}
        one = method(ours, operator, b, **options)
        two = method(other, operator, b, **options)
        rises = [after - before for before, after in pairwise(one.objective)]
        found[name] = {
            "objective": list(one.objective),
            "change": list(one.change),
            "plain change": list(two.change),
            "rise": max(rises),
        }
    return found


def _double(net: nn.Module) -> nn.Module:
    return copy.deepcopy(net).double()
