"""Laplace samples with Gaussian noise: the prox of |x| is soft-thresholding, and all is known."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from flatminima.models.learned_proximal import LPN, ProximalMatching, Stage, fit_lpn
from flatminima.objectives import Supervised

LOSSES = {"L2": nn.functional.mse_loss, "L1": nn.functional.l1_loss}
START, LRS = 400, (3e-3, 3e-4)
MATCHING = [
    Stage(300, lr, ProximalMatching(gamma))
    for gamma, lr in ((0.5, 1e-3), (0.4, 1e-3), (0.3, 3e-4), (0.2, 3e-4))
]
Y = torch.linspace(-3, 3, 601)[:, None]
X = torch.linspace(-2, 2, 81)[:, None]


def laplace(count: int, generator: torch.Generator) -> Tensor:
    u = torch.rand((count, 1), generator=generator) - 0.5
    return -u.sign() * torch.log1p((-2 * u.abs()).clamp(min=-1 + 1e-7))


def soft(y: Tensor) -> Tensor:
    return y.sign() * (y.abs() - 1).clamp(min=0)


def mean(y: Tensor) -> Tensor:
    """The mean of x given y, by the closed form."""
    y = y.double()
    left = torch.exp(-y + 0.5) * torch.special.ndtr(y - 1)
    right = torch.exp(y + 0.5) * torch.special.ndtr(-y - 1)
    return (left * (y - 1) + right * (y + 1)) / (left + right)


def seed(number: int) -> dict:
    torch.manual_seed(number)
    first = LPN(1, 32, 2, beta=10, alpha=0)
    found = {}
    for name, loss in LOSSES.items():
        net = copy.deepcopy(first)
        stages = [Stage(START, lr, Supervised(loss)) for lr in LRS]
        fit_lpn(net, laplace, 1.0, schedule=stages, batch=256, seed=number)
        found[name] = _seen(net)
    fit_lpn(net, laplace, 1.0, schedule=MATCHING, batch=256, seed=1000 + number)
    return found | {"PM": _seen(net)}


def _seen(net: LPN) -> dict:
    with torch.no_grad():
        f, one = net(Y), float(net(torch.ones(1, 1)))
    prior = net.prior(X)
    r = prior.value - prior.value[40]
    shown = {"f": f[::10, 0].tolist(), "R": r.tolist()}
    return shown | {
        "from soft": float((f - soft(Y)).abs().mean()),
        "from mean": float((f - mean(Y)).abs().mean()),
        "f(1)": one,
        "R from |x|": float((r - X[:, 0].abs()).abs().mean()),
        "R(1)": float((r[20] + r[60]) / 2),
        "R(2)": float((r[0] + r[80]) / 2),
        "residual": float(prior.residual.max()),
    }
