"""Models with known curvature, and the slow, obvious way to their Hessian."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from flatminima.objectives import Supervised

DOUBLE = torch.float64


class Quadratic(nn.Module):
    """f(w) = w'Hw / 2 + g'w, whatever the batch."""

    def __init__(self, hessian: Tensor, slope: Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(len(hessian), dtype=hessian.dtype))
        self.hessian = hessian
        self.slope = torch.zeros(len(hessian)).to(hessian) if slope is None else slope


def quadratic_loss(model: Quadratic, batch: Tensor) -> Tensor:
    w = model.weight
    return w @ model.hessian @ w / 2 + model.slope @ w


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 4)
        self.query, self.key, self.value = (nn.Linear(4, 4) for _ in range(3))
        self.head = nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        q, k, v = (f(x).unflatten(-1, (2, 2)).transpose(1, 2) for f in self.parts())
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.head(mixed.transpose(1, 2).flatten(2).mean(1))

    def parts(self) -> tuple[nn.Module, ...]:
        return self.query, self.key, self.value


def mlp(samples: int = 24, hidden: int = 6) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, hidden), nn.GELU(), nn.Linear(hidden, 3)).to(DOUBLE)
    return model, (torch.randn(samples, 5, dtype=DOUBLE), torch.arange(samples) % 3)


def cnn() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.GELU(), nn.Flatten(), nn.Linear(12, 3)
    ).to(DOUBLE)
    x = torch.randn(16, 1, 4, 4, dtype=DOUBLE)
    model(x)
    return model, (x, torch.arange(16) % 3)


def attention() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(2)
    return Attention().to(DOUBLE), (torch.randint(11, (12, 5)), torch.arange(12) % 3)


MODELS = {"mlp": mlp, "cnn": cnn, "attention": attention}


def dense_hessian(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The Hessian over the whole set, by torch.func, in eval mode."""
    names, sizes = zip(*((n, p.shape) for n, p in model.named_parameters()), strict=True)
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([size.numel() for size in sizes])
        weights = {n: p.view(s) for n, p, s in zip(names, parts, sizes, strict=True)}
        return nn.functional.cross_entropy(functional_call(model, weights, batch[0]), batch[1])

    flags = [module.training for module in model.modules()]
    model.eval()
    with sdpa_kernel(SDPBackend.MATH):
        hessian = torch.func.jacrev(torch.func.jacrev(loss))(flat)
    for module, flag in zip(model.modules(), flags, strict=True):
        module.training = flag
    return hessian


def split(batch: tuple[Tensor, Tensor], *sizes: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(*(part.split(sizes) for part in batch), strict=True))


def symmetric(n: int, seed: int = 0, spread: float = 1.0) -> Tensor:
    g = torch.randn(n, n, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))
    return spread * (g + g.T) / 2


def decaying(n: int, base: float, seed: int = 0) -> Tensor:
    """A symmetric matrix with eigenvalues base^0, base^1, ..."""
    turn, _ = torch.linalg.qr(symmetric(n, seed))
    return (turn * base ** torch.arange(n, dtype=DOUBLE)) @ turn.T


cross_entropy = Supervised()
