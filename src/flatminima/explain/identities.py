"""The layers whose weight gradient tells what a place contributes: virtual ones, and the real."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from flatminima.errors import InputError, unknown
from flatminima.explain.outer_products import OuterProducts, Window

IDENTITIES = ("bias", "scaling", "conv1x1", "conv3x3", "depthwise3x3", "own")
"""Names of identities; 3x3 may be another odd square. "own" is the layer's own weight."""

_SIZED = re.compile(r"(conv|depthwise)(\d+)x(\d+)")


def check_identity(name: str) -> None:
    """Refuse a name that is of no identity.

    Raises:
        InputError: it is none, with the nearest that is.
    """
    if name in ("bias", "scaling", "own"):
        return
    sized = _SIZED.fullmatch(name) if isinstance(name, str) else None
    if sized is None:
        raise unknown("identity", name, IDENTITIES)
    if sized[2] != sized[3] or int(sized[2]) % 2 == 0:
        raise InputError(f"the identity {name!r} has no middle: take an odd square, such as 3x3")


def virtual(identity: str, x: Tensor, gradient: Tensor) -> OuterProducts:
    r"""The weight gradients of a virtual identity, place by place.

    The identity stands behind a layer and changes nothing: `bias` adds 0 ($g_u$), `scaling`
    multiplies each channel by 1 ($g_u \odot x_u$), `convKxK` is a convolution with zero padding
    whose kernel passes its middle on ($g_u p_u^\top$, $p_u$ the K x K patch of all channels), and
    `depthwiseKxK` one of each channel by itself.

    Args:
        identity: Its name.
        x: The layer's output, (n, c, h, w).
        gradient: Of the score with respect to it, likewise.
    """
    if identity == "bias":
        return OuterProducts(gradient.unsqueeze(1), torch.ones_like(x[:, None, :1]), Window())
    if identity == "scaling":
        return OuterProducts(gradient.unsqueeze(2), x.unsqueeze(2), Window())
    sized = _SIZED.fullmatch(identity)
    assert sized is not None
    window = Window.centred(int(sized[2]))
    if sized[1] == "depthwise":
        return OuterProducts(gradient.unsqueeze(2), window.padded(x).unsqueeze(2), window)
    return OuterProducts(gradient.unsqueeze(1), window.padded(x).unsqueeze(1), window)


def own(layer: nn.Module, name: str, inputs: Tensor, gradient: Tensor) -> OuterProducts:
    r"""The gradient of a layer's own weight, place by place of its output.

    $g_u p_u^\top$, with $p_u$ the patch that the layer itself sees at u: its own kernel, stride,
    dilation, padding and groups.

    Args:
        layer: A `Conv2d` or a `Linear`.
        name: Of the layer.
        inputs: Its input, (n, c, h', w').
        gradient: Of the score with respect to its output, (n, c, h, w).

    Raises:
        InputError: another kind of layer.
    """
    if isinstance(layer, nn.Linear):
        return OuterProducts(gradient.unsqueeze(1), inputs.unsqueeze(1), Window())
    if not isinstance(layer, nn.Conv2d):
        raise InputError(
            f"the layer {name!r} is a {type(layer).__name__}, and only the own weights of Conv2d "
            "and Linear are known: take an identity, such as 'conv1x1'"
        )
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    window = Window(_pair(layer.kernel_size), _pair(layer.stride), _pair(layer.dilation))
    window = Window(window.kernel, window.stride, window.dilation, _padding(layer, window), mode)
    return OuterProducts(
        _grouped(gradient, layer.groups), _grouped(window.padded(inputs), layer.groups), window
    )


def _grouped(x: Tensor, groups: int) -> Tensor:
    return x.reshape(x.shape[0], groups, -1, *x.shape[2:])


def _padding(layer: nn.Conv2d, window: Window) -> tuple[int, int, int, int]:
    if layer.padding == "valid":
        return (0, 0, 0, 0)
    if layer.padding == "same":
        spans = [d * (k - 1) for d, k in zip(window.dilation, window.kernel, strict=True)]
        (top, left) = (span // 2 for span in spans)
        return (left, spans[1] - left, top, spans[0] - top)
    assert not isinstance(layer.padding, str)
    (top, left) = _pair(layer.padding)
    return (left, left, top, top)


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    return int(values[0]), int(values[1])
