"""What a camera or scanner does to an image: linear maps with their adjoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flatminima.arguments import above, function, tensor, whole
from flatminima.errors import InputError

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LinearMap:
    """A linear map A of batches, and its adjoint A'.

    Attributes:
        forward: x to A x, sample by sample; x of shape (n, ...).
        adjoint: b to A' b.
        name: What it is called in messages.

    Raises:
        InputError: one of the two cannot be called.
    """

    forward: Map
    adjoint: Map
    name: str = "A"

    def __post_init__(self) -> None:
        function("forward", self.forward)
        function("adjoint", self.adjoint)

    def __call__(self, x: Tensor) -> Tensor:
        """A x."""
        return self.forward(x)

    def normal(self, x: Tensor) -> Tensor:
        """A'A x."""
        return self.adjoint(self.forward(x))

    def square_norm(self, like: Tensor, steps: int = 50) -> float:
        """The largest eigenvalue of A'A, from below, by power iteration from a fixed start.

        Args:
            like: An image, for shape and dtype.
            steps: Products with A'A.
        """
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(like[:1].shape, generator=generator, dtype=like.dtype).to(like)
        size = 0.0
        for _ in range(steps):
            x = self.normal(x / x.norm())
            size = float(x.norm())
            if size == 0:
                break
        return size

    def check(self, b: Tensor) -> None:
        """Raise an InputError if A and A' are not adjoint, or `b` is nothing that A gives.

        Args:
            b: What was measured, shape (n, ...).
        """
        generator = torch.Generator().manual_seed(0)
        try:
            x = self.adjoint(b)
            drawn = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x)
            there = self.forward(drawn)
        except RuntimeError as error:
            raise InputError(f"{self.name} does not take what was measured: {error}") from error
        if there.shape != b.shape:
            raise InputError(
                f"{self.name} gives measurements of shape {tuple(there.shape)}, and these have "
                f"the shape {tuple(b.shape)}"
            )
        other = torch.randn(b.shape, generator=generator, dtype=b.dtype).to(b)
        one, two = float((there * other).sum()), float((drawn * self.adjoint(other)).sum())
        size = float(there.norm() * other.norm())
        if abs(one - two) > 1e-3 * size:
            raise InputError(
                f"the adjoint of {self.name} is not its adjoint: <A x, b> is {one:.4g} and "
                f"<x, A' b> is {two:.4g} for the same x and b"
            )


def identity() -> LinearMap:
    """A = I, of denoising."""
    return LinearMap(lambda x: x, lambda b: b, "the identity")


def masking(mask: Tensor) -> LinearMap:
    """A x = mask * x, of inpainting.

    Args:
        mask: 1 where a pixel was seen and 0 where not; broadcast over the batch.

    Raises:
        InputError: the mask is no tensor.
    """
    tensor("mask", mask)

    def seen(x: Tensor) -> Tensor:
        return x * mask.to(x)

    return LinearMap(seen, seen, "the mask")


def blurring(std: float) -> LinearMap:
    """A Gaussian blur that continues images periodically, of deblurring; shape (n, c, h, w).

    Args:
        std: Of the blur, in pixels, above 0.

    Raises:
        InputError: std is not above 0.
    """
    above("the blur's std", std)

    def blur(x: Tensor) -> Tensor:
        if x.dim() != 4:
            raise InputError(
                f"a blur takes images (n, c, h, w), and these have the shape {tuple(x.shape)}"
            )
        rows, columns = (_gaussian(x.shape[k], std, x) for k in (2, 3))
        return torch.einsum("ij,ncjk,lk->ncil", rows, x, columns)

    return LinearMap(blur, blur, "the blur")


def _gaussian(length: int, std: float, like: Tensor) -> Tensor:
    """The blur of a row as a symmetric circulant matrix, rows of sum 1."""
    places = torch.arange(length)
    away = (places[:, None] - places).abs()
    away = torch.minimum(away, length - away).to(like)
    weights = torch.exp(-away.square() / (2 * std**2))
    return weights / weights.sum(1, keepdim=True)


def sensing(matrix: Tensor, shape: Sequence[int]) -> LinearMap:
    """A = a matrix times the flattened sample, of compressed sensing.

    Args:
        matrix: (measurements, numbers of a sample).
        shape: Of a sample.

    Raises:
        InputError: the matrix does not fit the shape.
    """
    if not isinstance(shape, tuple | list):
        raise InputError(f"shape is {shape!r}: give the sides of a sample, as (1, 8, 8)")
    for side in shape:
        whole("a side of shape", side, 1)
    if tensor("matrix", matrix).dim() != 2 or matrix.shape[1] != math.prod(shape):
        raise InputError(
            f"a sample of shape {tuple(shape)} has {math.prod(shape)} numbers, and the matrix has "
            f"the shape {tuple(matrix.shape)}"
        )

    def forward(x: Tensor) -> Tensor:
        return x.flatten(1) @ matrix.to(x).T

    def adjoint(b: Tensor) -> Tensor:
        return (b @ matrix.to(b)).reshape(len(b), *shape)

    return LinearMap(forward, adjoint, "the sensing matrix")


def nearest(operator: LinearMap, b: Tensor, near: Tensor, weight: float, start: Tensor) -> Tensor:
    """The x that minimizes weight/2 |A x - b|^2 + |x - near|^2 / 2, by conjugate gradients.

    Args:
        operator: A.
        b: What was measured.
        near: Where x should stay.
        weight: Of the measurements.
        start: A first x.
    """
    x = start
    left = weight * operator.adjoint(b) + near - weight * operator.normal(x) - x
    direction, square = left, (left * left).sum()
    # About 3e-6 of its size in float32, 3e-13 in float64: what rounding leaves to be had.
    goal = torch.finfo(near.dtype).eps ** 1.6 * float(near.square().sum())
    for _ in range(200):
        if float(square) <= goal:
            break
        product = weight * operator.normal(direction) + direction
        length = square / (direction * product).sum()
        x, left = x + length * direction, left - length * product
        new = (left * left).sum()
        direction, square = left + new / square * direction, new
    return x
