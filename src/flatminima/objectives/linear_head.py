"""Derivatives of the cross-entropy by a linear head, without differentiating twice."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class HeadLoss(Protocol):
    """A loss as a function of a head's P parameters, flattened and concatenated."""

    def gradient(self) -> Tensor:
        """Shape (P,); part of the graph."""

    def product(self, vector: Tensor) -> Tensor:
        """The Hessian times a vector, shape (P,); part of the graph, of the vector's too."""

    def products(self, vectors: Tensor) -> Tensor:
        """The Hessian times each row, shape (K, P)."""

    def diagonal(self) -> Tensor:
        """The Hessian's diagonal, shape (P,)."""


class LinearHeadLoss:
    r"""The mean cross-entropy of $z_i = W f_i + b$, by W and b.

    With $p_i = \mathrm{softmax}(z_i)$ and $y_i$ one-hot, of n samples:

    $$g_W = \tfrac1n \sum_i (p_i - y_i) f_i^\top, \quad
    (Hv)_W = \tfrac1n \sum_i r_i f_i^\top, \quad
    (\mathrm{diag} H)_{W,cj} = \tfrac1n \sum_i p_{ic} (1 - p_{ic}) f_{ij}^2$$

    with $s_i = v_W f_i + v_b$ and $r_i = p_i \circ s_i - p_i \langle p_i, s_i \rangle$; of b the
    same with f = 1. All of it is a first-order graph of f and z, so no derivative of a derivative
    is taken: any featurizer, any kernel and DDP will do.

    Cost: $O(n C d)$ for a product or the diagonal; $O(K n (C + d))$ memory for K products.

    Args:
        features: f, shape (n, d).
        logits: z, shape (n, C).
        labels: Class indices, int64, shape (n,).
        bias: Whether the head has b; it follows W in the flat vectors.
    """

    def __init__(
        self, features: Tensor, logits: Tensor, labels: Tensor, *, bias: bool = True
    ) -> None:
        self.features = features.to(logits.dtype)
        self.probabilities = logits.softmax(1)
        self.errors = self.probabilities - torch.nn.functional.one_hot(labels, logits.shape[1])
        self.bias = bias

    def gradient(self) -> Tensor:
        """g, shape (P,)."""
        return self._flat(self.errors, self.features)

    def product(self, vector: Tensor) -> Tensor:
        """H v, shape (P,)."""
        return self.products(vector[None])[0]

    def products(self, vectors: Tensor) -> Tensor:
        """H v of each row v, shape (K, P)."""
        classes, width = self.probabilities.shape[1], self.features.shape[1]
        weight = vectors[:, : classes * width].reshape(-1, classes, width)
        s = self.features @ weight.transpose(1, 2)
        if self.bias:
            s = s + vectors[:, None, classes * width :]
        p = self.probabilities
        return self._flat(p * (s - (p * s).sum(2, keepdim=True)), self.features)

    def diagonal(self) -> Tensor:
        """The diagonal of H, shape (P,)."""
        p = self.probabilities
        return self._flat(p * (1 - p), self.features.square())

    def gradient_variance(self) -> Tensor:
        """The variance of the samples' own gradients, divided by n, shape (P,)."""
        mean_square = self._flat(self.errors.square(), self.features.square())
        return mean_square - self.gradient().square()

    def _flat(self, by_class: Tensor, features: Tensor) -> Tensor:
        """The mean over samples of an outer product, the bias after it; shape (..., P)."""
        samples = len(features)
        parts = [(by_class.transpose(-1, -2) @ features / samples).flatten(-2)]
        if self.bias:
            parts.append(by_class.sum(-2) / samples)
        return torch.cat(parts, -1)
