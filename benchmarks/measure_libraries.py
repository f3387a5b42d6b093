"""The libraries that measure, each called as its documentation calls it, behind one interface."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np
import torch
from measure_subjects import Subject
from torch import Tensor, nn

from flatminima.measure import Hessian, hessian_trace, top_eigenvalues
from flatminima.objectives import Supervised


class Library(Protocol):
    """A library about to measure one subject.

    Attributes:
        products: Hessian-vector products over all batches since it was made.
        gradients: Gradients with a graph over all batches since then.
        multiple: What the number of products of a trace must be divisible by.
        settings: What `eigenvalues` may be asked for, the cheapest first.
        default: The one that its users get if they ask for nothing.
    """

    products: int
    gradients: int
    trace_method: str
    eigen_method: str
    multiple: int
    settings: tuple[float, ...]
    default: float

    def product(self, vector: Tensor) -> Tensor:
        """The Hessian times a vector, shapes (n,) -> (n,)."""
        ...

    def trace(self, products: int, seed: int) -> float:
        """The trace from so many products."""
        ...

    def eigenvalues(self, k: int, setting: float, seed: int) -> Tensor:
        """The k largest eigenvalues, descending, to a tolerance or by so many steps."""
        ...


class Flatminima:
    trace_method, eigen_method = "auto", "block Lanczos, tolerance"
    multiple, settings, default = 2, (1e-1, 3e-2, 1e-2, 1e-3), 1e-3

    def __init__(self, subject: Subject) -> None:
        self.operator = Hessian(subject.model, Supervised(), subject.batches)

    @property
    def products(self) -> int:
        return self.operator.hvps

    @property
    def gradients(self) -> int:
        return self.operator.gradients

    def product(self, vector: Tensor) -> Tensor:
        return self.operator.matmat(vector[:, None])[:, 0]

    def trace(self, products: int, seed: int) -> float:
        return hessian_trace(self.operator, probes=products, seed=seed).value

    def eigenvalues(self, k: int, setting: float, seed: int) -> Tensor:
        found = top_eigenvalues(self.operator, k, tol=setting, max_steps=1000, seed=seed)
        return torch.tensor(found.values)


class Curvlinops:
    trace_method, eigen_method = "xtrace", "scipy's eigsh, tolerance"
    multiple, settings, default = 2, (1e-1, 3e-2, 1e-2, 1e-3), 0.0

    def __init__(self, subject: Subject) -> None:
        from curvlinops import HessianLinearOperator

        self.products = self.gradients = 0
        self.operator = HessianLinearOperator(
            subject.model,
            nn.CrossEntropyLoss(),
            list(subject.model.parameters()),
            subject.batches,
            check_deterministic=False,
        )
        inner = self.operator._matmat

        def counted(columns: list[Tensor]) -> list[Tensor]:
            self.products += columns[0].shape[-1]
            self.gradients += 1
            return inner(columns)

        self.operator._matmat = counted

    def product(self, vector: Tensor) -> Tensor:
        return self.operator @ vector

    def trace(self, products: int, seed: int) -> float:
        from curvlinops import xtrace

        torch.manual_seed(seed)
        return xtrace(self.operator, products).item()

    def eigenvalues(self, k: int, setting: float, seed: int) -> Tensor:
        from scipy.sparse.linalg import eigsh

        start = np.random.default_rng(seed).standard_normal(self.operator.shape[0])
        values = eigsh(
            self.operator.to_scipy(),
            k,
            which="LA",
            tol=setting,
            v0=start.astype(np.float32),
            return_eigenvectors=False,
        )
        return torch.tensor(np.sort(values)[::-1].copy())


class HessianEigenthings:
    trace_method, eigen_method = "hutch++", "Lanczos, steps"
    multiple, settings, default = 3, (1, 1.5, 2, 3, 4, 6, 8), 2

    def __init__(self, subject: Subject) -> None:
        from hessian_eigenthings import HessianOperator, supervised_loss

        self.products = 0
        self.operator = HessianOperator(
            subject.model, subject.batches, supervised_loss(nn.CrossEntropyLoss())
        )
        inner = self.operator.matvec

        def counted(vector: Tensor) -> Tensor:
            self.products += 1
            return inner(vector)

        self.operator.matvec = counted

    @property
    def gradients(self) -> int:
        return self.products

    def product(self, vector: Tensor) -> Tensor:
        return self.operator.matvec(vector)

    def trace(self, products: int, seed: int) -> float:
        from hessian_eigenthings import trace

        return trace(self.operator, num_matvecs=products, seed=seed).estimate

    def eigenvalues(self, k: int, setting: float, seed: int) -> Tensor:
        """By setting x 10 steps for one eigenvalue, setting x k for more; it has no stop rule."""
        from hessian_eigenthings import lanczos

        steps = int(setting * max(k, 10))
        found = lanczos(
            self.operator, k=k, max_iter=steps, which="LA", reorthogonalize=True, seed=seed
        )
        return found.eigenvalues


class PyHessian:
    trace_method, eigen_method = "Hutchinson", "power iteration, tolerance"
    multiple, settings, default = 1, (1e-3, 1e-4, 1e-5), 1e-3

    def __init__(self, subject: Subject) -> None:
        from pyhessian import hessian

        self.products = 0
        self.operator = hessian(
            subject.model, nn.CrossEntropyLoss(), dataloader=subject.batches, cuda=False
        )
        inner = self.operator.dataloader_hv_product

        def counted(vector: list[Tensor]) -> tuple[float, list[Tensor]]:
            self.products += 1
            return inner(vector)

        self.operator.dataloader_hv_product = counted

    @property
    def gradients(self) -> int:
        return self.products

    def product(self, vector: Tensor) -> Tensor:
        pieces = vector.split([p.numel() for p in self.operator.params])
        shaped = [piece.view_as(p) for piece, p in zip(pieces, self.operator.params, strict=True)]
        return torch.cat(
            [part.flatten() for part in self.operator.dataloader_hv_product(shaped)[1]]
        )

    def trace(self, products: int, seed: int) -> float:
        return float(np.mean(self.forms(products, seed, tol=-math.inf)))

    def forms(self, most: int, seed: int, tol: float) -> list[float]:
        """z'Hz of each probe that its stop rule allows; tolerance -inf allows all."""
        torch.manual_seed(seed)
        return self.operator.trace(maxIter=most, tol=tol)

    def eigenvalues(self, k: int, setting: float, seed: int) -> Tensor:
        torch.manual_seed(seed)
        values, _ = self.operator.eigenvalues(maxIter=1000, tol=setting, top_n=k)
        return torch.tensor(sorted(values, key=abs, reverse=True))


LIBRARIES: dict[str, tuple[Callable[[Subject], Any], str]] = {
    "flatminima": (Flatminima, "flatminima"),
    "curvlinops": (Curvlinops, "curvlinops"),
    "hessian-eigenthings": (HessianEigenthings, "hessian_eigenthings"),
    "PyHessian": (PyHessian, "pyhessian"),
}


def installed(names: Iterable[str] = LIBRARIES) -> list[str]:
    """Those that can be imported here."""
    return [name for name in names if importlib.util.find_spec(LIBRARIES[name][1])]
