"""Weights as a bounded, odd, increasing function of what is trained."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from flatminima.arguments import above, truth
from flatminima.cards import Card
from flatminima.errors import InputError, unknown
from flatminima.reparam.parametrizing import remove, shared
from flatminima.reparam.registry import register
from flatminima.reparam.slot import Reparam

LAYERS: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

FURTHEST = {"arctan": 1.4, "tanh": 0.9}
"""The largest |w| / a that has a latent: beyond it the slope is so small that it would stay."""

CLIPPED = """{count} of {all} weights of shape {shape} are larger than {factor:g} a = {bound:.3g}, \
which the latents reach, and were clipped to it: the model is no longer the one it was. Give a \
larger a, or none, which takes one that is large enough"""


class WeightCompander(nn.Module):
    r"""$w = a \arctan(v / b)$, elementwise, for `torch.nn.utils.parametrize`.

    $|w| < a \pi / 2$, and $dw/dv = \frac{a}{b} \cos^2(w / a)$: a step of the latent v moves w by
    $(a/b)^2 \cos^4(w/a)$ times what it would move a plain weight, the most at 0 and hardly near the
    bound. With `fn="tanh"`, a variant, $w = a \tanh(v / b)$, $|w| < a$ and
    $dw/dv = \frac{a}{b} (1 - (w/a)^2)$.

        parametrize.register_parametrization(layer, "weight", WeightCompander(a=0.1))

    Registering puts the latents where the weights stay as they were, by the inverse
    $v = b \tan(w / a)$; weights beyond 1.4 a (arctan) or 0.9 a (tanh) are clipped with a warning.
    log a and log b are numbers in float32 at least (0 dimensions, so weight decay spares them),
    buffers or, if `learnable`, parameters. Computed in float32 at least, given in the latent's
    dtype. Costs one elementwise function at each use of the weight; `parametrize.cached()` shares
    it among the uses of a forward pass.

    In the spirit of Cakaj, Mehnert, Yang, Weight Compander: A Simple Weight Reparameterization for
    Regularization, 2023, arXiv 2306.16993, of which the abstract was at hand: the function is
    recalled, and defaults and the way to learn a and b are ours.

    Args:
        a: The scale of the weights, above 0. Default: twice the standard deviation of the weights
            when it is registered, or what their largest needs not to be clipped if that is more.
        b: The scale of the latents, above 0. Default: a / 2, which doubles the slope at 0.
        learnable: Whether log a and log b are trained. Then the bound moves.
        fn: "arctan" or "tanh".
        relative: Whether a and b are in units of that standard deviation.

    Raises:
        InputError: a or b is not a finite number above 0, an unknown function, or, when it is
            registered, weights that have no standard deviation while it is needed.
    """

    log_a: Tensor
    log_b: Tensor

    def __init__(
        self,
        a: float | None = None,
        b: float | None = None,
        learnable: bool = False,
        fn: Literal["arctan", "tanh"] = "arctan",
        relative: bool = False,
    ) -> None:
        super().__init__()
        if fn not in FURTHEST:
            raise unknown("function", fn, FURTHEST)
        self._given = tuple(None if s is None else above(n, s) for n, s in (("a", a), ("b", b)))
        self.fn, self.relative = fn, truth("relative", relative)
        for name in ("log_a", "log_b"):
            # Not a number until the weights are there that it may depend on.
            number = torch.full((), math.nan, dtype=torch.float64)
            if truth("learnable", learnable):
                self.register_parameter(name, nn.Parameter(number))
            else:
                self.register_buffer(name, number)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # In 16 bits a scale is off by half a percent, and so would be all weights.
        before = [scale.detach().clone() for scale in (self.log_a, self.log_b)]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for now, exact in zip((self.log_a, self.log_b), before, strict=True):
            if now.dtype in (torch.float16, torch.bfloat16):
                now.data = exact.to(device=now.device, dtype=torch.float32)
        return self

    def forward(self, latent: Tensor) -> Tensor:
        """The weights of latents."""
        a, b = self.log_a.exp(), self.log_b.exp()
        inner = latent.to(a.dtype) / b
        return (a * (inner.arctan() if self.fn == "arctan" else inner.tanh())).to(latent.dtype)

    @torch.no_grad()
    def right_inverse(self, weight: Tensor) -> Tensor:
        """The latents of weights; at the first call a and b are set for them."""
        if self.log_a.isnan():
            self.begin(weight)
        a, b = self.log_a.exp(), self.log_b.exp()
        most = FURTHEST[self.fn]
        ratio = weight.to(a.dtype) / a
        # The default a meets the largest weight up to rounding, which is no loss.
        count = int((ratio.abs() > most * (1 + 1e-5)).sum())
        if count:
            shape, bound = tuple(weight.shape), most * a.item()
            values = {"count": count, "all": weight.numel(), "shape": shape, "bound": bound}
            warnings.warn(CLIPPED.format(factor=most, **values), stacklevel=2)
        ratio = ratio.clamp(-most, most)
        return (b * (ratio.tan() if self.fn == "arctan" else ratio.atanh())).to(weight.dtype)

    @torch.no_grad()
    def begin(self, weight: Tensor) -> None:
        """Set a and b for weights.

        Raises:
            InputError: they have no standard deviation while it is needed.
        """
        dtype = torch.promote_types(weight.dtype, torch.float32)
        self.to(device=weight.device, dtype=dtype)
        a, b = self._given
        unit = 1.0
        if a is None or self.relative:
            deviation = weight.to(dtype).std(correction=0).item()
            if not 0 < deviation < math.inf:
                raise InputError(
                    f"weights of shape {tuple(weight.shape)} have the standard deviation "
                    f"{deviation:g}, of which no scale can be made: give a and b as numbers"
                )
            unit = deviation if self.relative else 1.0
            largest = weight.abs().max().item() / FURTHEST[self.fn]
            a = max(2 * deviation, largest) / unit if a is None else a
        b = a / 2 if b is None else b
        self.log_a.fill_(math.log(a * unit))
        self.log_b.fill_(math.log(b * unit))

    def extra_repr(self) -> str:
        """The function and its scales."""
        a, b = self.log_a.exp().item(), self.log_b.exp().item()
        return f"{a:.3g} {self.fn}(v / {b:.3g})"


def compand_(
    model: nn.Module,
    a: float | None = None,
    b: float | None = None,
    learnable: bool = False,
    fn: Literal["arctan", "tanh"] = "arctan",
    relative: bool = False,
    layer_types: tuple[type[nn.Module], ...] = LAYERS,
) -> nn.Module:
    """Give the weights of layers a `WeightCompander` each, in place.

    Biases, norms and embeddings are left alone, and so are frozen weights, weights that another
    module holds too, and those that are parametrized already.

    Args:
        model: It computes what it did, unless weights were clipped (a warning says so).
        a: As those below, of `WeightCompander`.
        b: See there.
        learnable: One pair of numbers for each layer.
        fn: See there.
        relative: See there.
        layer_types: Layers whose `weight` it is about. Transformers' Conv1D always is.

    Returns:
        The model.

    Raises:
        InputError: as `WeightCompander`, or no layer is left to change. The model is then as it
            was.
    """
    elsewhere, chosen = shared(model), []
    for module in model.modules():
        fitting = isinstance(module, layer_types) or type(module).__name__ == "Conv1D"
        if fitting and not parametrize.is_parametrized(module, "weight"):
            weight = cast(Tensor, module.weight)
            if weight.requires_grad and id(weight) not in elsewhere:
                chosen.append(module)
    if not chosen:
        names = ", ".join(kind.__name__ for kind in layer_types)
        raise InputError(f"the model has no layer of {names} with a free weight of its own")
    made = [WeightCompander(a, b, learnable, fn, relative) for _ in chosen]
    # All scales before the first change: weights that give none leave the model as it was.
    for module, compander in zip(chosen, made, strict=True):
        compander.begin(cast(Tensor, module.weight))
    for module, compander in zip(chosen, made, strict=True):
        parametrize.register_parametrization(module, "weight", compander)
    return model


def bake_(model: nn.Module) -> nn.Module:
    """Evaluate each `WeightCompander` once and remove it, in place; outputs stay, to the bit.

    Returns:
        The model, of ordinary layers.
    """
    remove(model, WeightCompander)
    return model


@register(
    Card(
        name="weight-compander",
        title="Bounded companding weights",
        equation="w = a arctan(v / b); v, of any size, is trained",
        gradients="0",
        buffers="0",
        strength="a",
        suggested="2 standard deviations of a layer's weights (the default), 1 for a strong effect",
        source="in the spirit of Cakaj, Mehnert, Yang, 2023, arXiv 2306.16993",
        slot="reparam",
    )
)
class Companded(Reparam):
    """A `WeightCompander` on the weight of each linear and convolutional layer; see there.

    What is trained, decayed, perturbed and measured along the way are the latents. `bake` leaves
    the ordinary model with the same outputs. SWA and EMA average the weights, not the latents.

    Args:
        model: It is changed in place.
        a: See `WeightCompander`, as for those below.
        b: See there.
        learnable: One pair of numbers for each layer, without weight decay.
        fn: See there.
        relative: See there.

    Raises:
        InputError: as `compand_`.
    """

    changes_modules: ClassVar[bool] = True
    averages_baked: ClassVar[bool] = True

    def __init__(
        self,
        model: nn.Module,
        a: float | None = None,
        b: float | None = None,
        learnable: bool = False,
        fn: Literal["arctan", "tanh"] = "arctan",
        relative: bool = False,
    ) -> None:
        super().__init__(compand_(model, a, b, learnable, fn, relative))

    def bake(self, model: nn.Module) -> None:
        """Evaluate each function once, and leave ordinary layers."""
        bake_(model)
