"""Layers whose weights answer to the knobs: each output unit is affine in them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from flatminima.errors import InputError

FIRST_SLOPE = 0.01
"""Standard deviation of the entries of V to begin with."""


class Response:
    """What the gates of one model are given; all its layers hold the same object.

    Attributes:
        u: Shape (samples, H), or (1, H) for all samples; None where each layer is at home.
    """

    def __init__(self) -> None:
        self.u: Tensor | None = None

    @contextmanager
    def to(self, u: Tensor) -> Iterator[None]:
        """Let the gates answer to u meanwhile."""
        before, self.u = self.u, u
        try:
            yield
        finally:
            self.u = before


class Gated(nn.Module):
    r"""What the gated layers have in common.

    Weight and bias of output unit i, for gate input v (v = u, or $u - \lambda$ if `center`):

    $$w_i(v) = s_0 w_i + (V_w v)_i\, w'_i, \qquad b_i(v) = s_0 b_i + (V_b v)_i\, b'_i.$$

    Attributes:
        weight: w, of the shape that the ordinary layer's has, the first dimension the outputs.
        bias: b, or None.
        response_weight: w'.
        response_bias: b', or None.
        slopes: $V_w$ above $V_b$, shape (2 outputs, H); (outputs, H) without a bias.
        factor: $s_0$, or None for 1.
        home: $\lambda$, shape (H,), a buffer: u where none is given. So a saved model is whole.

    Args:
        layer: Its parameters are taken over, not copied.
        knobs: H.
        response: Where u comes from.
        center: Whether gates are given $u - \lambda$. Then the layer at home is the ordinary one.
        scaled: Whether there is an $s_0$.
    """

    def __init__(
        self,
        layer: nn.Linear | nn.Conv2d,
        knobs: int,
        response: Response,
        *,
        center: bool,
        scaled: bool,
    ) -> None:
        super().__init__()
        weight, bias = layer.weight, layer.bias
        self.weight, self.bias = weight, bias
        self.response, self.center = response, center
        most = 1 / math.sqrt(max(1, weight[0].numel()))
        self.response_weight = nn.Parameter(torch.empty_like(weight).uniform_(-most, most))
        self.response_bias = (
            None if bias is None else nn.Parameter(torch.empty_like(bias).uniform_(-most, most))
        )
        rows = len(weight) * (1 if bias is None else 2)
        self.slopes = nn.Parameter(weight.new_empty(rows, knobs).normal_(0, FIRST_SLOPE))
        self.factor = nn.Parameter(weight.new_ones(())) if scaled else None
        self.register_buffer("home", weight.new_zeros(knobs))
        self.home: Tensor

    def forward(self, inputs: Tensor) -> Tensor:
        """The ordinary layer's outputs, plus the response's times the gates."""
        own = self.apply_weight(inputs, self.weight, self.bias)
        if self.factor is not None:
            own = self.factor * own
        if self.response.u is None and self.center:
            return own
        gates = self.gates(self.response.u)
        if len(gates) not in (1, len(inputs)):
            raise InputError(
                f"there are draws of the knobs for {len(gates)} samples, and the layer was given "
                f"{len(inputs)}: draw one row for each sample, or one for all"
            )
        outputs = len(self.weight)
        spread = self.spread(gates[:, :outputs], inputs)
        answer = own + spread * self.apply_weight(inputs, self.response_weight, None)
        if self.response_bias is not None:
            answer = answer + self.spread(gates[:, outputs:] * self.response_bias, inputs)
        return answer

    def gates(self, u: Tensor | None) -> Tensor:
        """V v, shape (rows of u, outputs or twice that)."""
        v = self.home[None] if u is None else u
        return linear(v - self.home if self.center else v, self.slopes)

    def at(self, u: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Weight and bias for the first row of u, with their derivatives; None is home."""
        gates, outputs = self.gates(u)[0], len(self.weight)
        factor = 1.0 if self.factor is None else self.factor
        across = gates[:outputs].view(-1, *[1] * (self.weight.dim() - 1))
        weight = factor * self.weight + across * self.response_weight
        if self.bias is None or self.response_bias is None:
            return weight, None
        return weight, factor * self.bias + gates[outputs:] * self.response_bias

    def apply_weight(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What the ordinary layer does with a weight."""
        raise NotImplementedError

    def spread(self, units: Tensor, inputs: Tensor) -> Tensor:
        """A number for each output unit, (rows, outputs), such that it multiplies outputs."""
        raise NotImplementedError

    def baked(self) -> nn.Module:
        """The ordinary layer with the same outputs at home; parameters are new."""
        weight, bias = (None if t is None else t.detach().clone() for t in self.at())
        layer = self.make_ordinary()
        assert weight is not None
        layer.weight = nn.Parameter(weight, requires_grad=self.weight.requires_grad)
        layer.bias = None if bias is None else nn.Parameter(bias)
        return layer.train(self.training)

    def make_ordinary(self) -> nn.Linear | nn.Conv2d:
        """An ordinary layer of these sizes, its parameters without numbers."""
        raise NotImplementedError


class GatedLinear(Gated):
    r"""$y = s_0 (x W^\top + b) + (V_w v) \odot (x W'^\top) + (V_b v) \odot b'$.

    For inputs of shape (samples, ..., n); the gates of a sample serve all its positions. About
    twice the parameters and multiplications of `nn.Linear`.

    Source: MacKay, Vicol, Lorraine, Duvenaud, Grosse, Self-Tuning Networks, ICLR 2019, arXiv
    1903.03088; `center` after Bae and Grosse, Delta-STN, 2020, arXiv 2010.13514.

    Args:
        layer: Its parameters are taken over.
        knobs: H.
        response: Where u comes from.
        center: See `Gated`.
        scaled: See `Gated`.
    """

    def __init__(
        self,
        layer: nn.Linear,
        knobs: int,
        response: Response,
        *,
        center: bool = False,
        scaled: bool = False,
    ) -> None:
        super().__init__(layer, knobs, response, center=center, scaled=scaled)

    def apply_weight(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x W' + b."""
        return linear(inputs, weight, bias)

    def spread(self, units: Tensor, inputs: Tensor) -> Tensor:
        """Over the positions of each sample."""
        return units.view(len(units), *[1] * (inputs.dim() - 2), -1)

    def make_ordinary(self) -> nn.Linear:
        """See `Gated`."""
        outputs, inputs = self.weight.shape
        return nn.Linear(inputs, outputs, bias=self.bias is not None, device="meta")


class GatedConv2d(Gated):
    r"""As `GatedLinear`, with a convolution for the product and a gate for each output channel.

    For inputs of shape (samples, channels, height, width).

    Args:
        layer: Its parameters are taken over.
        knobs: H.
        response: Where u comes from.
        center: See `Gated`.
        scaled: See `Gated`.
    """

    def __init__(
        self,
        layer: nn.Conv2d,
        knobs: int,
        response: Response,
        *,
        center: bool = False,
        scaled: bool = False,
    ) -> None:
        super().__init__(layer, knobs, response, center=center, scaled=scaled)
        self._settings: dict[str, Any] = {
            name: getattr(layer, name)
            for name in ("stride", "padding", "dilation", "groups", "padding_mode")
        }
        # Of its own it has no numbers; it knows how to pad. In a list, so that it is no submodule.
        self._empty = [self.make_ordinary()]

    def apply_weight(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution."""
        convolved: Tensor = self._empty[0]._conv_forward(inputs, weight, bias)
        return convolved

    def spread(self, units: Tensor, inputs: Tensor) -> Tensor:
        """Over the places of each image."""
        return units[:, :, None, None]

    def make_ordinary(self) -> nn.Conv2d:
        """See `Gated`."""
        outputs, inputs, *kernel = self.weight.shape
        return nn.Conv2d(
            inputs * self._settings["groups"],
            outputs,
            tuple(kernel),  # type: ignore[arg-type]
            bias=self.bias is not None,
            device="meta",
            **self._settings,
        )
