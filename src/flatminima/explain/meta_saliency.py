"""Saliency after one step of training towards the class asked about, and what that is good for."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from flatminima.arguments import between, function, network
from flatminima.errors import InputError
from flatminima.explain import samples
from flatminima.explain.predicting import predicted, scores
from flatminima.measure import Estimate
from flatminima.measure.untouched import check_recording, untouched
from flatminima.objectives.supervised import Supervised
from flatminima.progress import Progress, silent

Attribute = Callable[..., Tensor]
"""`attribute(inputs, target=...) -> maps`, as `NormGrad.attribute` and Captum's methods are."""


def meta_saliency(
    attribute: Attribute,
    model: nn.Module,
    inputs: Any,
    target: int | Tensor,
    *,
    lr: float = 2.5e-3,
    negate_loss: bool = False,
    progress: Progress = silent,
    **options: Any,
) -> Tensor:
    r"""Maps of the model after one step of SGD towards the class asked about.

    $\theta' = \theta - \eta \nabla_\theta \mathrm{CE}(f_\theta(x), y)$ over all parameters, image
    by image; the map is that of $f_{\theta'}$, and then $\theta$ is put back bit for bit. It
    depends more on the class than the map of $f_\theta$ does.

    Source: Rebuffi, Fong, Ji, Vedaldi, 2020, arXiv 2004.02866.

    Args:
        attribute: Any method that looks at `model` itself when it is called, such as
            `NormGrad(model).attribute`.
        model: Stepped, and put back; in evaluation mode meanwhile, so that no buffer is touched.
        inputs: As the model takes them, n samples.
        target: One class for all, or one a sample, int64 (n,).
        lr: $\eta$, 0 or above; 0 gives the plain maps.
        negate_loss: Step away from the class instead: what speaks against it.
        progress: Called with ("meta-saliency", images done, images).
        options: Passed to `attribute`.

    Returns:
        The maps, as `attribute` gives them. Cost: one forward and backward pass of each image by
        itself beyond `attribute`, and one copy of the weights.

    Raises:
        InputError: an lr below 0; no inputs, no target; what is no model or no method.
    """
    function("attribute", attribute)
    network(model)
    between("lr", lr, 0)
    first = samples.first(inputs)
    classes = samples.targets(target, len(first), first.device)
    if classes is None:
        raise InputError("meta-saliency steps towards a class: say which with target=")
    if not len(first):
        raise InputError("there are no inputs: give at least one")
    found = []
    for i in range(len(first)):
        one, own = samples.rows(inputs, i, i + 1, len(first)), classes[i : i + 1]
        with _stepped(model, one, own, -lr if negate_loss else lr):
            found.append(_maps(attribute(one, target=own, **options)))
        progress("meta-saliency", i + 1, len(first))
    return torch.cat(found)


@contextmanager
def _stepped(model: nn.Module, inputs: Any, target: Tensor, lr: float) -> Iterator[None]:
    """The model after one step; afterwards weights, gradients, flags and modes are as before."""
    check_recording()
    parameters = [p for p in model.parameters() if p.is_floating_point()]
    kept = [(p.detach().clone(), p.requires_grad) for p in parameters]
    device = samples.first(inputs).device
    with untouched(model, Supervised(), device), torch.enable_grad():
        try:
            for parameter in parameters:
                parameter.requires_grad_(True)
            outputs = predicted(model, inputs)
            scores(outputs, target)
            loss = nn.functional.cross_entropy(outputs, target)
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    if gradient is not None:
                        parameter.sub_(lr * gradient)
            yield
        finally:
            with torch.no_grad():
                for parameter, (before, needed) in zip(parameters, kept, strict=True):
                    parameter.copy_(before)
                    parameter.requires_grad_(needed)


def class_sensitivity(
    attribute: Attribute, model: nn.Module, inputs: Any, *, progress: Progress = silent
) -> Estimate:
    """How alike the maps for the most and the least probable class of an image are.

    Spearman's rank correlation between the two maps, mean over images: 1 where a method does not
    care which class it is asked about; lower is more sensitive.

    Source: Rebuffi, Fong, Ji, Vedaldi, 2020, arXiv 2004.02866.

    Args:
        attribute: `attribute(inputs, target=...) -> maps`; for meta-saliency
            `functools.partial(meta_saliency, NormGrad(model).attribute, model)`.
        model: Says which classes are the most and the least probable.
        inputs: As the model takes them.
        progress: Called with ("class sensitivity", maps done, 2), those of all images for a class
            being one; give `attribute` a progress of its own to see images.

    Returns:
        The mean with its standard error over images; images with a constant map are left out.

    Raises:
        InputError: all maps are constant; a model of one class; what is no model or no method.
    """
    function("attribute", attribute)
    network(model)
    began = time.perf_counter()
    with untouched(model, Supervised(), samples.first(inputs).device), torch.no_grad():
        outputs = predicted(model, inputs)
    if outputs.dim() != 2 or outputs.shape[1] < 2:
        raise InputError("class sensitivity compares two classes, and the model has one")
    both = []
    for classes in (outputs.argmax(1), outputs.argmin(1)):
        both.append(_maps(attribute(inputs, target=classes)))
        progress("class sensitivity", len(both), 2)
    found = spearman(*both)
    found = found[found.isfinite()]
    if not len(found):
        raise InputError("all maps are constant: there is nothing to correlate, name other layers")
    stderr = (found.std() / math.sqrt(len(found))).item() if len(found) > 1 else math.nan
    return Estimate(
        value=found.mean().item(),
        stderr=stderr,
        samples=len(found),
        method="Spearman correlation of the maps for the most and the least probable class",
        seconds=time.perf_counter() - began,
        dtype=str(outputs.dtype).removeprefix("torch."),
    )


def _maps(found: Any) -> Tensor:
    if not isinstance(found, Tensor):
        raise InputError(f"attribute gave a {type(found).__name__}: have it give a tensor of maps")
    return found


def spearman(one: Tensor, other: Tensor) -> Tensor:
    """Spearman's rank correlation of each pair of maps (n, ...), float64 (n,); NaN if constant."""
    first, second = _ranks(one.flatten(1)), _ranks(other.flatten(1))
    first = first - first.mean(1, keepdim=True)
    second = second - second.mean(1, keepdim=True)
    lengths = torch.linalg.vector_norm(first, dim=1) * torch.linalg.vector_norm(second, dim=1)
    found: Tensor = (first * second).sum(1) / lengths
    return found


def _ranks(rows: Tensor) -> Tensor:
    """The rank of each value in its row; equal values share the mean of theirs."""
    found = torch.empty_like(rows, dtype=torch.float64)
    for i, row in enumerate(rows):
        _, place, count = row.unique(return_inverse=True, return_counts=True)
        last = count.cumsum(0).double()
        found[i] = (last - (count.double() - 1) / 2)[place]
    return found
