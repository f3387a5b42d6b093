"""Symmetric linear operators: the one interface between a model and the estimators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from flatminima.errors import InputError


class Operator(Protocol):
    """A symmetric n x n matrix known by its products.

    Attributes:
        shape: (n, n).
        dtype: Of the products.
        device: Of the products.
        blocks: Named slices of the n coordinates, which together make up the whole.
        description: Which matrix it is and how its products are made, in words.
        gradients: Gradients computed so far, each over all batches.
        hvps: Products with a vector computed so far, each over all batches.
    """

    @property
    def shape(self) -> tuple[int, int]: ...  # noqa: D102
    @property
    def dtype(self) -> torch.dtype: ...  # noqa: D102
    @property
    def device(self) -> torch.device: ...  # noqa: D102
    @property
    def blocks(self) -> Mapping[str, slice]: ...  # noqa: D102
    @property
    def description(self) -> str: ...  # noqa: D102
    @property
    def gradients(self) -> int: ...  # noqa: D102
    @property
    def hvps(self) -> int: ...  # noqa: D102

    def matmat(self, vectors: Tensor) -> Tensor:
        """The products with the columns of `vectors`, shapes (n, m) -> (n, m)."""
        ...


class Dense:
    """A symmetric matrix as an operator.

    Args:
        matrix: Shape (n, n), symmetric.
        blocks: Named slices of the coordinates. Default: one block, "all".

    Raises:
        InputError: the matrix is not square.
    """

    description = "matrix"

    def __init__(self, matrix: Tensor, blocks: Mapping[str, slice] | None = None) -> None:
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise InputError(f"the matrix has shape {tuple(matrix.shape)}: give a square one")
        self.matrix = matrix
        self.shape = (len(matrix), len(matrix))
        self.dtype, self.device = matrix.dtype, matrix.device
        self.blocks: Mapping[str, slice] = blocks or {"all": slice(0, len(matrix))}
        self.gradients = self.hvps = 0

    def matmat(self, vectors: Tensor) -> Tensor:
        """The products with the columns of `vectors`, shapes (n, m) -> (n, m)."""
        self.hvps += vectors.shape[1]
        return self.matrix @ vectors


class LowRank:
    r"""$c I + V\,\mathrm{diag}(d)\,V^\top$ without the matrix: a test case of any size.

    With orthonormal columns of V its eigenvalues are c + d and c.

    Args:
        vectors: V, shape (n, r).
        weights: d, shape (r,).
        shift: c.
        blocks: Named slices of the coordinates. Default: one block, "all".

    Raises:
        InputError: the shapes do not fit.
    """

    description = "low rank"

    def __init__(
        self,
        vectors: Tensor,
        weights: Tensor,
        *,
        shift: float = 0.0,
        blocks: Mapping[str, slice] | None = None,
    ) -> None:
        if vectors.ndim != 2 or weights.shape != vectors.shape[1:]:
            raise InputError(
                f"the vectors have shape {tuple(vectors.shape)} and the weights "
                f"{tuple(weights.shape)}: give (n, r) and (r,)"
            )
        self._vectors, self._weights, self._shift = vectors, weights, shift
        self.shape = (len(vectors), len(vectors))
        self.dtype, self.device = vectors.dtype, vectors.device
        self.blocks: Mapping[str, slice] = blocks or {"all": slice(0, len(vectors))}
        self.gradients = self.hvps = 0

    def matmat(self, vectors: Tensor) -> Tensor:
        """The products with the columns of `vectors`, shapes (n, m) -> (n, m)."""
        self.hvps += vectors.shape[1]
        inner = self._weights[:, None] * (self._vectors.T @ vectors)
        return self._vectors @ inner + self._shift * vectors


class Sum:
    r"""$\sum_i c_i A_i$ of operators on the same coordinates.

    Sums and scalings of operators, the Hessian minus the Gauss-Newton matrix for instance:
    `Sum([hessian, ggn], [1, -1])`.

    Args:
        operators: At least one; all with the same blocks, dtype and device.
        weights: The c_i, one for each. Default: all 1.

    Raises:
        InputError: the operators do not fit each other, or the weights their number.
    """

    def __init__(
        self, operators: Sequence[Operator], weights: Sequence[float] | None = None
    ) -> None:
        weights = [1.0] * len(operators) if weights is None else list(weights)
        if not operators or len(weights) != len(operators):
            raise InputError(
                f"there are {len(operators)} operators and {len(weights)} weights: "
                "give as many, at least one"
            )
        first = operators[0]
        for other in operators[1:]:
            same = dict(other.blocks) == dict(first.blocks)
            if not same or (other.dtype, other.device) != (first.dtype, first.device):
                raise InputError(
                    f"the operators {first.description!r} and {other.description!r} differ in "
                    "blocks, dtype or device: make them of the same parameters"
                )
        self._terms = list(zip(weights, operators, strict=True))
        self.shape, self.blocks = first.shape, first.blocks
        self.dtype, self.device = first.dtype, first.device

    @property
    def description(self) -> str:
        """The terms."""
        return " + ".join(f"{weight:g} ({term.description})" for weight, term in self._terms)

    @property
    def gradients(self) -> int:
        """Gradients of all terms."""
        return sum(term.gradients for _, term in self._terms)

    @property
    def hvps(self) -> int:
        """Products of all terms."""
        return sum(term.hvps for _, term in self._terms)

    def matmat(self, vectors: Tensor) -> Tensor:
        """The products with the columns of `vectors`, shapes (n, m) -> (n, m)."""
        (weight, first), *rest = self._terms
        total = weight * first.matmat(vectors)
        for weight, term in rest:
            total = total.add(term.matmat(vectors), alpha=weight)
        return total


class Shift:
    r"""$A + c I$: an operator and the curvature of a penalty $\frac{c}{2} \|W\|^2$.

    Args:
        operator: A.
        shift: c; or one for each coordinate, shape (n,), for $A + \mathrm{diag}(c)$.

    Raises:
        InputError: c is of another shape.
    """

    def __init__(self, operator: Operator, shift: float | Tensor) -> None:
        if isinstance(shift, Tensor) and tuple(shift.shape) not in ((), operator.shape[:1]):
            raise InputError(
                f"shift has shape {tuple(shift.shape)}: give a number, or one for each of the "
                f"{operator.shape[0]} coordinates"
            )
        self._operator, self._shift = operator, shift
        self.shape, self.blocks = operator.shape, operator.blocks
        self.dtype, self.device = operator.dtype, operator.device

    @property
    def description(self) -> str:
        """The operator and the shift."""
        each = isinstance(self._shift, Tensor) and self._shift.ndim
        shift = "a diagonal" if each else f"{float(self._shift):g} I"
        return f"{self._operator.description} + {shift}"

    @property
    def gradients(self) -> int:
        """Gradients of the operator."""
        return self._operator.gradients

    @property
    def hvps(self) -> int:
        """Products of the operator."""
        return self._operator.hvps

    def matmat(self, vectors: Tensor) -> Tensor:
        """The products with the columns of `vectors`, shapes (n, m) -> (n, m)."""
        products = self._operator.matmat(vectors)
        if isinstance(self._shift, Tensor) and self._shift.ndim:
            return products.addcmul(self._shift.to(vectors)[:, None], vectors)
        return products.add(vectors, alpha=float(self._shift))
