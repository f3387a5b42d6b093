"""The tilting of a network: of its head on its own features, and of the whole near a sample."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flatminima.arguments import network
from flatminima.errors import InputError, unknown
from flatminima.explain.predicting import predicted, scores
from flatminima.explain.recording import at_rest
from flatminima.explain.samples import first as first_of
from flatminima.explain.samples import shape_of
from flatminima.explain.samples import targets as targets_of
from flatminima.explain.tilting import Floats
from flatminima.explain.tilting_pairs import PairTilts, tilt_pairs
from flatminima.objectives.supervised import inputs_and_targets
from flatminima.progress import Progress, silent


class NoHead(InputError):
    """The network does not end in a linear layer."""


@dataclass(frozen=True, eq=False)
class Head:
    """A network's last linear layer, and what comes into it.

    Attributes:
        name: Of the layer.
        weight: (classes, d), float64.
        bias: (classes,), float64.
        features: What it takes of each sample, (n, d), float64.
        targets: Their classes (n,).
    """

    name: str
    weight: Floats
    bias: Floats
    features: Floats
    targets: np.ndarray[Any, np.dtype[np.int64]]


def read_head(
    model: nn.Module,
    batches: Iterable[Any],
    head: str | None = None,
    *,
    progress: Progress = silent,
) -> Head:
    """The last linear layer of a network and its features, in evaluation mode.

    Args:
        model: Gives logits (n, classes) or an output with `.logits`.
        batches: As `Supervised` takes them, with class indices.
        head: The name of a `Linear` layer; None for the one whose output the logits are.
        progress: Called with ("features", batches done, batches, or those done where the batches
            do not say how many they are).

    Raises:
        InputError: no batch; no such layer, with the nearest name that is; a layer that is not
            linear, or takes no one vector a sample; targets that are no classes of the head.
        NoHead: no linear layer gives the logits (an `InputError`).
    """
    network(model)
    if isinstance(batches, Mapping) or not isinstance(batches, Iterable):
        raise InputError(f"batches is a {type(batches).__name__}: give a loader, or a list of them")
    linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    if head is not None and head not in linear:
        if head in dict(model.named_modules()):
            kind = type(model.get_submodule(head)).__name__
            raise InputError(f"the layer {head!r} is a {kind}, and tilting is of a Linear")
        raise unknown("linear layer", head, linear)
    features, targets = [], []
    total = len(batches) if isinstance(batches, Sized) else 0
    for batch in batches:
        inputs, labels = inputs_and_targets(batch)
        count = first_of(inputs).shape[0]
        if not isinstance(labels, Tensor) or labels.shape != (count,):
            raise InputError(
                f"the targets are {shape_of(labels)} for {count} samples: give the class of each, "
                "an int64 tensor (n,)"
            )
        targets_of(labels, count, labels.device)
        with at_rest(model, labels.device), torch.no_grad():
            name, found = _into(model, linear, inputs, head)
        head = name
        features.append(found.double().cpu().numpy())
        targets.append(labels.cpu().numpy())
        progress("features", len(features), max(len(features), total))
    if head is None or not features:
        raise InputError("there is no batch to read features of: give at least one")
    layer = linear[head]
    known = np.concatenate(targets)
    if not 0 <= known.min(initial=0) <= known.max(initial=0) < layer.out_features:
        raise InputError(
            f"the targets go from {known.min()} to {known.max()}, and the layer {head!r} has the "
            f"classes 0 to {layer.out_features - 1}"
        )
    bias = torch.zeros(layer.out_features) if layer.bias is None else layer.bias
    return Head(
        head,
        layer.weight.detach().double().cpu().numpy(),
        bias.detach().double().cpu().numpy(),
        np.concatenate(features),
        known,
    )


def tilt_head(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    head: str | None = None,
    classes: Sequence[Any] | None = None,
    progress: Progress = silent,
) -> PairTilts:
    """How the head of a network is tilted in the space of its own features, two classes by two.

    A head is a linear classifier of what the rest of the network makes of a sample: the boundary
    between two classes has the normal `W_J - W_I`, and its angle is to the line between the means
    of the two classes' features.

    Source: after Tanay, Griffin, 2016, arXiv 1608.07690; that it is of a network's head is ours.

    Args:
        model: Gives logits; run in evaluation mode, and put back.
        batches: As `Supervised` takes them; of the training set, whose means the angle is about.
        head: The name of a `Linear` layer; None for the one whose output the logits are.
        classes: Names of the classes; None for their indices.
        progress: Called as `read_head` and `tilt_pairs` do.

    Raises:
        InputError: as `read_head`; samples of a single class.
    """
    if classes is not None and not isinstance(classes, Sequence):
        raise InputError(f"classes is {classes!r}: give the names of the classes in a list")
    found = read_head(model, batches, head, progress=progress)
    known = len(found.weight) if classes is None else len(classes)
    if known != len(found.weight):
        raise InputError(f"{known} names for the {len(found.weight)} classes of {found.name!r}")
    indices = range(len(found.weight))
    names = dict(zip(indices, classes or indices, strict=True))
    return tilt_pairs(
        found.weight,
        found.bias,
        found.features,
        np.array([names[int(index)] for index in found.targets], dtype=object),
        [names[index] for index in indices],
        of=found.name,
        progress=progress,
    )


def local_distance(model: nn.Module, inputs: Any, targets: Tensor) -> Tensor:
    r"""$d(x) = s(x) / \lVert \nabla_x s(x) \rVert$, how far the boundary is to first order.

    s is the logit of the sample's class less the largest of the others; d is below 0 where a sample
    is misclassified. For a linear model it is the distance from the boundary.

    Source: Tanay, Griffin, 2018, arXiv 1806.11186.

    Args:
        model: Gives logits (n, classes); run in evaluation mode, and put back.
        inputs: Floating-point samples (n, ...).
        targets: Their classes, whole numbers (n,), or one for all.

    Returns:
        (n,), in units of the inputs; of samples whose gradient is 0 infinite.

    Raises:
        InputError: inputs that have no gradient, or a model of a single class.
    """
    network(model)
    x = first_of(inputs)
    classes = targets_of(targets, len(x), x.device)
    if classes is None:
        raise InputError("distances are those from a class: give targets")
    if not x.is_floating_point() or not isinstance(inputs, Tensor):
        raise InputError("distances are measured in inputs of floating-point numbers")
    with at_rest(model, x.device):
        leaf = x.detach().clone().requires_grad_()
        outputs = predicted(model, leaf)
        if outputs.dim() != 2 or outputs.shape[1] < 2:
            raise InputError("a boundary lies between two classes, and the model has one")
        own = scores(outputs, classes)
        others = outputs.scatter(1, classes[:, None], -torch.inf).amax(1)
        score = own - others
        (gradient,) = torch.autograd.grad(score.sum(), leaf)
    slope: Tensor = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
    return score.detach() / slope


def _into(
    model: nn.Module, linear: dict[str, nn.Linear], inputs: Any, head: str | None
) -> tuple[str, Tensor]:
    """The head's name, and what it takes in one pass."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    handles = [
        layer.register_forward_hook(
            lambda _m, given, output, name=name: seen.update(
                {name: (given[0].detach(), output.detach().clone())}
            )
        )
        for name, layer in linear.items()
        if head in (None, name)
    ]
    try:
        outputs = predicted(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    if head is None:
        last = [
            name
            for name, (_, output) in seen.items()
            if output.shape == outputs.shape and torch.equal(output, outputs)
        ]
        if not last:
            raise NoHead(
                "no linear layer gives the logits, so the model has no linear head: name a layer "
                "with head="
            )
        head = last[-1]
    if head not in seen:
        raise InputError(f"the layer {head!r} is not called when the model runs: name another")
    features = seen[head][0]
    if features.dim() != 2:
        raise InputError(
            f"the layer {head!r} takes the shape {tuple(features.shape)}, not one vector a sample: "
            "name the layer that gives the logits"
        )
    return head, features
