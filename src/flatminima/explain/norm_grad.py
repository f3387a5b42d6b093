"""Saliency maps from what each place of a layer contributes to weight gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flatminima.arguments import chosen, floats, network, whole
from flatminima.errors import InputError
from flatminima.explain import identities, maps, samples
from flatminima.explain.layers import Layers, default_layers, named_layers
from flatminima.explain.outer_products import AGGREGATES
from flatminima.explain.recording import Record, at_rest, record
from flatminima.progress import Progress, silent

METHODS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "norm-grad": {},
        "selective": {"identity": "scaling", "aggregate": "filter_norm"},
        "gradient": {"identity": "bias", "aggregate": "max_abs"},
        "linear-approximation": {"identity": "scaling", "aggregate": "sum", "clamp": True},
        "grad-cam": {
            "identity": "scaling",
            "aggregate": "sum",
            "mean_gradient": True,
            "clamp": True,
        },
    }
)
"""Known methods as cells of one table: options of `NormGrad`."""

PIXELS = (-30.0, 30.0)
"""Pixels that a model can have been trained on: more are bytes that nobody scaled."""


class NormGrad:
    r"""Saliency at any layer: the size of what each place adds to the gradient of an identity.

    The gradient of a convolution's weight is a sum over places, $\sum_u g_u p_u^\top$. Put behind a
    layer a virtual layer that changes nothing; how large its summand at u is, tells how much the
    place u would contribute to a change of it. With the layer's output $x_u \in \mathbb{R}^C$ and
    $g_u = \partial s / \partial x_u$ of the score s, the logit of the class asked about, the
    default, a 1 x 1 convolution and the Frobenius norm, is $\lVert g_u \rVert \lVert x_u \rVert$.

    Each map is resized to the input (bilinear) and brought to [0, 1] image by image; those of
    several layers are multiplied or averaged. Gradient saliency, gradient times input and Grad-CAM
    are other cells of the same table; see `METHODS` and `of`.

    Called as Captum's methods of layers are, the layer given as a module or by name:
    `NormGrad(model, model.conv).attribute(images, target=classes)`.

    Cost: one forward and backward pass; no outer product is built. Parameters are left alone; the
    model runs in evaluation mode, and its modes and buffers are put back.

    NormGrad alone depends little on the class asked about, since $\lVert x_u \rVert$ does not: see
    `meta_saliency`, and the method `selective`.

    Source: Rebuffi, Fong, Ji, Vedaldi, There and Back Again: Revisiting Backpropagation Saliency
    Methods, 2020, arXiv 2004.02866.

    Args:
        model: Gives logits (n, classes), or an output with `.logits`, or one score a sample.
        layers: Modules of the model, or names or globs of `model.named_modules()`, one or several;
            "input" for the place before the first; None chooses as `default_layers` does.
        identity: "bias", "scaling", "conv1x1", "conv3x3" or another odd square, "depthwise3x3", or
            "own", the real weight of a Conv2d or Linear.
        aggregate: From the matrix at a place to a number: "norm", "filter_norm" (of its positive
            entries), "sum", "max" or "max_abs".
        combine: Of several layers: "product", "sum" or "geometric"; see `maps.combine`.
        weights: Of the layers in the latter two: "uniform", "linear" or numbers.
        mean_gradient: Replace $g_u$ with its mean over places, as Grad-CAM does.
        clamp: Set negative values of a map to 0.
        channels_last: Whether layers that give four dimensions give (n, h, w, channels).
        pixel_range: The least and the largest value that an image may have; None allows all.

    Raises:
        InputError: an unknown layer, identity, aggregate or combination (the nearest is suggested);
            a module that is not part of the model.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Layers | None = None,
        *,
        identity: str = "conv1x1",
        aggregate: str = "norm",
        combine: Literal["product", "sum", "geometric"] = "product",
        weights: Literal["uniform", "linear"] | Sequence[float] = "uniform",
        mean_gradient: bool = False,
        clamp: bool = False,
        channels_last: bool = False,
        pixel_range: tuple[float, float] | None = PIXELS,
    ) -> None:
        identities.check_identity(identity)
        chosen("aggregate", aggregate, AGGREGATES)
        self.model = network(model)
        self.layers = None if layers is None else named_layers(model, layers)
        self.identity, self.aggregate = identity, aggregate
        self.combine: Literal["product", "sum", "geometric"] = combine
        self.weights: Literal["uniform", "linear"] | Sequence[float] = weights
        self.mean_gradient, self.clamp = mean_gradient, clamp
        self.channels_last, self.pixel_range = channels_last, _range(pixel_range)
        if self.layers is not None:
            maps.combine([torch.ones(1)] * len(self.layers), combine, weights)

    @classmethod
    def of(
        cls,
        method: str,
        model: nn.Module,
        layers: Layers | None = None,
        **options: Any,
    ) -> NormGrad:
        """A known method: a name in `METHODS`, with options over its own.

        Raises:
            InputError: no such method, and as for `NormGrad`.
        """
        chosen("saliency method", method, METHODS)
        return cls(model, layers, **{**METHODS[method], **options})

    def attribute(
        self,
        inputs: Any,
        target: int | Sequence[int] | Tensor | None = None,
        additional_forward_args: Any = None,
        *,
        internal_batch_size: int | None = None,
        progress: Progress = silent,
    ) -> Tensor:
        """A map for each sample, all layers in one.

        Args:
            inputs: Images (n, c, h, w); or several inputs in a tuple, or a mapping of names to
                tensors as transformers take them, `pixel_values` being images.
            target: The class asked about: one for all, or one a sample; None for models that give
                one score a sample.
            additional_forward_args: Passed to the model behind the inputs; tensors in it of one
                entry a sample are cut up with them.
            internal_batch_size: Samples of a forward pass; None takes all at once.
            progress: Called with ("maps", samples done, samples) after each pass.

        Returns:
            Maps in [0, 1], (n, 1, h, w) of the images' size; where inputs are no images, one value
            a token, (n, tokens), those that an `attention_mask` leaves out being 0.

        Raises:
            InputError: images of a wrong shape, range or type; a layer that keeps no places or is
                not called once; classes that the model does not have.
        """
        parts = []
        for part, classes in self._chunks(
            inputs, target, additional_forward_args, internal_batch_size, progress
        ):
            image, mask = samples.image_size(part), samples.mask(part)
            raw = self._raw(part, classes, image)
            scaled = []
            for one in raw.values():
                one = maps.resize(one, image) if image else samples.kept(one, mask)
                scaled.append(samples.kept(maps.min_max(one), mask))
            parts.append(maps.combine(scaled, self.combine, self.weights))
        found = torch.cat(parts)
        return found if samples.image_size(inputs) else found[:, 0, 0]

    def layer_maps(
        self,
        inputs: Any,
        target: int | Sequence[int] | Tensor | None = None,
        additional_forward_args: Any = None,
        *,
        internal_batch_size: int | None = None,
        progress: Progress = silent,
    ) -> dict[str, Tensor]:
        """The map of each layer by its name, as it is: at the layer's size, on no common scale.

        Arguments and errors are those of `attribute`; maps are (n, 1, h, w), of tokens h = 1.
        """
        parts = [
            self._raw(part, classes, samples.image_size(part))
            for part, classes in self._chunks(
                inputs, target, additional_forward_args, internal_batch_size, progress
            )
        ]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _raw(self, inputs: Any, target: Tensor | None, image: Any) -> dict[str, Tensor]:
        device = samples.first(inputs).device
        with at_rest(self.model, device):
            if self.layers is None:
                self.layers = default_layers(self.model, inputs)
            found = record(self.model, self.layers, inputs, target)
        return {name: self._map(name, one, image) for name, one in found.items()}

    def _map(self, name: str, found: Record, image: tuple[int, int] | None) -> Tensor:
        layer = dict(self.model.named_modules()).get(name, nn.Identity())
        last = self.channels_last and not isinstance(layer, nn.Conv2d)

        def grid(values: Tensor) -> Tensor:
            return maps.to_grid(values, image, name, channels_last=last)

        gradient = grid(found.gradient)
        if self.mean_gradient:
            gradient = gradient.mean((2, 3), keepdim=True).expand_as(gradient)
        if self.identity == "own":
            products = identities.own(layer, name, grid(found.inputs), gradient)
        else:
            products = identities.virtual(self.identity, grid(found.output), gradient)
        values = AGGREGATES[self.aggregate](products).unsqueeze(1)
        return values.clamp(min=0) if self.clamp else values

    def _chunks(
        self, inputs: Any, target: Any, others: Any, size: int | None, progress: Progress
    ) -> Iterator[tuple[Any, Tensor | None]]:
        """The parts of the inputs; told of each when the next is asked for."""
        samples.check(inputs, self.pixel_range)
        first = samples.first(inputs)
        count, classes = len(first), samples.targets(target, len(first), first.device)
        if others is not None:
            if isinstance(inputs, Mapping):
                raise InputError("inputs by name carry all arguments: leave the additional out")
            before = inputs if isinstance(inputs, (tuple, list)) else (inputs,)
            inputs = (*before, *(others if isinstance(others, tuple) else (others,)))
        step = count if size is None else whole("internal_batch_size", size, 1)
        for start in range(0, count, step):
            stop = min(start + step, count)
            own = None if classes is None else classes[start:stop]
            yield samples.rows(inputs, start, stop, count), own
            progress("maps", stop, count)


def norm_grad(
    model: nn.Module,
    x: Any,
    target: int | Sequence[int] | Tensor | None = None,
    layers: Layers | None = None,
    **options: Any,
) -> Tensor:
    """The maps of `NormGrad(model, layers, **options).attribute(x, target)`, in one call."""
    return NormGrad(model, layers, **options).attribute(x, target)


def _range(given: Any) -> tuple[float, float] | None:
    if given is None:
        return None
    ends = floats("pixel_range", given)
    if ends.shape != (2,) or not ends[0] < ends[1]:
        raise InputError(f"pixel_range is {given!r}: give the least and the largest, or None")
    return float(ends[0]), float(ends[1])
