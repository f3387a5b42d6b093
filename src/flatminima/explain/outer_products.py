"""The matrices that each place of a layer adds to a weight gradient, and one number of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import conv2d, max_pool2d, pad

Pair = tuple[int, int]


@dataclass(frozen=True)
class Window:
    """The places of the input that a place of the output sees.

    Attributes:
        kernel: Its height and width.
        stride: Between neighbours.
        dilation: Between its own places.
        padding: Left, right, top, bottom, as `torch.nn.functional.pad` takes them.
        mode: Of the padding, likewise.
    """

    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    dilation: Pair = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    mode: str = "constant"

    @classmethod
    def centred(cls, side: int) -> Window:
        """A square of an odd side around each place, zeros beyond the border."""
        half = side // 2
        return cls(kernel=(side, side), padding=(half, half, half, half))

    def padded(self, x: Tensor) -> Tensor:
        """The input with its border, both (n, c, h, w)."""
        return pad(x, self.padding, mode=self.mode) if any(self.padding) else x

    def sum(self, x: Tensor) -> Tensor:
        """The sum over each window of a padded (n, c, h, w), channel by channel."""
        if self.kernel == (1, 1) and self.stride == (1, 1):
            return x
        ones = torch.ones(1, 1, *self.kernel, dtype=x.dtype, device=x.device)
        flat = x.flatten(0, 1).unsqueeze(1)
        found = conv2d(flat, ones, stride=self.stride, dilation=self.dilation)
        return found.view(*x.shape[:2], *found.shape[2:])

    def highest(self, x: Tensor) -> Tensor:
        """The largest value in each window of a padded (n, c, h, w), channel by channel."""
        if self.kernel == (1, 1) and self.stride == (1, 1):
            return x
        return max_pool2d(x, self.kernel, self.stride, dilation=self.dilation)


@dataclass(frozen=True, eq=False)
class OuterProducts:
    r"""At each place u the matrices $g_{u,k}\, p_{u,k}^\top$ of k = 1 ... groups, never built.

    $g_{u,k}$ are the a gradients of group k at u, and $p_{u,k}$ the b inputs of the group in the
    window of u. All aggregates of these matrices follow from sums and extremes over the factors.

    Attributes:
        gradient: (n, groups, a, h, w).
        inputs: (n, groups, b, h', w'), with their border.
        window: From h' x w' to h x w.
    """

    gradient: Tensor
    inputs: Tensor
    window: Window

    def norm(self) -> Tensor:
        """The Frobenius norm of all matrices of a place together, (n, h, w)."""
        parts = _total(self.gradient.square()) * self._window_total(self.inputs.square())
        return parts.sum(1).sqrt()

    def filter_norm(self) -> Tensor:
        """The Frobenius norm of their positive entries, (n, h, w)."""
        both = [
            _total(sign(self.gradient).square()) * self._window_total(sign(self.inputs).square())
            for sign in (_positive, _negative)
        ]
        return (both[0] + both[1]).sum(1).sqrt()

    def sum(self) -> Tensor:
        """The sum of their entries, (n, h, w)."""
        return (_total(self.gradient) * self._window_total(self.inputs)).sum(1)

    def max(self) -> Tensor:
        """Their largest entry, (n, h, w)."""
        high, low = self.gradient.amax(2), self.gradient.amin(2)
        above = self.window.highest(self.inputs.amax(2))
        below = -self.window.highest(-self.inputs.amin(2))
        # A product of two factors is largest at one of the four corners of their ranges.
        corners = torch.stack([high * above, high * below, low * above, low * below])
        return corners.amax(0).amax(1)

    def max_abs(self) -> Tensor:
        """Their largest absolute entry, (n, h, w)."""
        return (self.gradient.abs().amax(2) * self.window.highest(self.inputs.abs().amax(2))).amax(
            1
        )

    def _window_total(self, inputs: Tensor) -> Tensor:
        return self.window.sum(_total(inputs))


AGGREGATES: dict[str, Callable[[OuterProducts], Tensor]] = {
    "norm": OuterProducts.norm,
    "filter_norm": OuterProducts.filter_norm,
    "sum": OuterProducts.sum,
    "max": OuterProducts.max,
    "max_abs": OuterProducts.max_abs,
}
"""From the matrices of each place to one number."""


def _total(x: Tensor) -> Tensor:
    return x.sum(2)


def _positive(x: Tensor) -> Tensor:
    return x.clamp(min=0)


def _negative(x: Tensor) -> Tensor:
    return x.clamp(max=0)
