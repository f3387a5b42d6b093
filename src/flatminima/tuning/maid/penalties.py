"""Weight decay and the distance penalty of a network's head, tuned on its own features."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flatminima.errors import InputError, unknown
from flatminima.objectives import Batch
from flatminima.objectives.supervised import inputs_and_targets, logits
from flatminima.progress import Progress
from flatminima.tuning.maid.minimize import minimize_bilevel
from flatminima.tuning.maid.result import BilevelResult
from flatminima.tuning.maid.settings import Settings
from flatminima.tuning.maid.softmax import Samples, SoftmaxRegression

KNOBS = ("weight_decay", "distance_penalty")
START = 1e-2
"""Where each penalty starts, if the user does not say."""


@dataclass(frozen=True)
class TunedPenalties:
    """The penalties of a head that give the lowest validation loss that was found.

    Attributes:
        penalties: By name: "weight_decay", or "weight_decay:weight" and "weight_decay:bias" where
            each has its own, and "distance_penalty". In the units of torch's optimizers and of
            `DistancePenalty`.
        weight: The head trained with them, shape (classes, features).
        bias: Its biases, shape (classes,).
        start: The validation loss of the head trained with the first penalties.
        validation: That of the head trained with the last ones.
        head: The name of the layer.
        descent: The history.
    """

    penalties: dict[str, float]
    weight: Tensor
    bias: Tensor
    start: float
    validation: float
    head: str
    descent: BilevelResult

    def __str__(self) -> str:
        named = ", ".join(f"{name} {value:.3g}" for name, value in self.penalties.items())
        return f"{named}: validation loss {self.start:.4g} -> {self.validation:.4g}"

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types."""
        plain = {k: v for k, v in vars(self).items() if k not in ("weight", "bias", "descent")}
        head = {"weight": self.weight.tolist(), "bias": self.bias.tolist()}
        return {**plain, **head, "descent": self.descent.to_dict()}

    def plot(self, ax: Any = None) -> Any:
        """Draw the validation loss over the products; see `BilevelResult.plot`."""
        return self.descent.plot(ax)


def tune_penalties(
    model: nn.Module,
    train: Iterable[Batch],
    validation: Iterable[Batch],
    *,
    knobs: Sequence[str] = ("weight_decay",),
    each: bool = False,
    start: float | Mapping[str, float] = START,
    head: str | None = None,
    steps: int = 30,
    products: int = 5000,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> TunedPenalties:
    r"""Tune a head's penalties on the features that the network gives it, by MAID.

    The lower problem is the multinomial logistic regression of `SoftmaxRegression` on the features,
    strongly convex and with all constants from theory, so that the decreases of the validation loss
    are certified. The layers below are not trained: their loss is not convex, and nothing could be
    certified. What is found is right for the head; to use it for all layers is a guess.

    The penalties are tuned through their logarithms. Where weight decay is not among the knobs it
    stays at `start`, since without a penalty the biases have no strongly convex problem.

    Cost: one forward pass of each sample, then products of matrices (n, features) in float64, at
    most about `products` of them. The model is left as it was.

    Source: Salehi, Mukherjee, Roberts, Ehrhardt, 2023, arXiv 2308.10098, for the method; the
    problem with its constants is this library's.

    Args:
        model: A classifier whose logits are a linear layer's output.
        train: Batches as of `Supervised`, inputs and classes, gone through once.
        validation: Batches of other samples, gone through once.
        knobs: "weight_decay", "distance_penalty" (from the head's weights as they are), or both.
        each: Whether the head's weights and its biases have a weight decay each.
        start: Where each penalty starts, above 0: one number for all, or by knob; a knob that is
            missing there starts at 0.01.
        head: The name of the layer; None takes the last `nn.Linear`.
        steps: The most steps.
        products: The products after which no further step begins.
        settings: How MAID goes about it; None takes the defaults with a first step of 1.
        progress: As of `minimize_bilevel`.

    Raises:
        InputError: a knob that no gradient reaches, no such head, no samples, a start not above 0.
    """
    starts = _starts(knobs, start)
    name, layer = _head(model, head)
    features = [_features(model, layer, batches) for batches in (train, validation)]
    weight = layer.weight.detach().double()
    bias = torch.zeros(len(weight)).to(weight) if layer.bias is None else layer.bias.detach()
    first = torch.cat([weight, bias.double()[:, None]], 1)
    decays = "weight_decay" in knobs
    groups = torch.zeros_like(first, dtype=torch.int64)
    groups[:, -1] = int(each)
    problem = SoftmaxRegression(
        features[0],
        features[1],
        groups=groups if decays else None,
        start=weight if "distance_penalty" in knobs else None,
        ridge=0.0 if decays else starts["weight_decay"],
    )
    names = ["weight_decay:weight", "weight_decay:bias"] if each else ["weight_decay"]
    names = (names if decays else []) + [k for k in KNOBS[1:] if k in knobs]
    theta = first.new_tensor([starts[name.partition(":")[0]] for name in names]).log()
    found = minimize_bilevel(
        problem.upper,
        problem.lower,
        first,
        theta,
        regularity=problem.regularity,
        steps=steps,
        products=products,
        settings=settings or Settings(step_size=1.0),
        progress=progress,
    )
    return TunedPenalties(
        dict(zip(names, found.theta.exp().tolist(), strict=True)),
        found.x[:, :-1],
        found.x[:, -1],
        found.start,
        found.upper,
        name,
        found,
    )


def _starts(knobs: Sequence[str], start: float | Mapping[str, float]) -> dict[str, float]:
    """Where each penalty starts, tuned or not.

    Raises:
        InputError: a knob that is none of the head's, a start that is not above 0.
    """
    if not knobs or isinstance(knobs, str):
        raise InputError(f"knobs are {knobs!r}: give a list of names, such as ['weight_decay']")
    for knob in knobs:
        if knob not in KNOBS:
            raise InputError(
                f"{unknown('knob of MAID', knob, KNOBS)}; it moves knobs along the gradient of the "
                "validation loss: what is counted, chosen or switched (batch_size, epochs, method) "
                "has none; compare values of such a knob, or tune it while training "
                "(flatminima.SelfTuning)"
            )
    given = start if isinstance(start, Mapping) else dict.fromkeys(KNOBS, start)
    for knob, value in given.items():
        if knob not in KNOBS:
            raise unknown("penalty in start", knob, KNOBS)
        if not 0 < value < float("inf"):
            raise InputError(f"start is {value}: give a finite penalty above 0, such as {START}")
    return {knob: given.get(knob, START) for knob in KNOBS}


def _head(model: nn.Module, name: str | None) -> tuple[str, nn.Linear]:
    linear = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    if not linear:
        raise InputError("the model has no nn.Linear to take for its head: penalties need one")
    if name is None:
        name = list(linear)[-1]
    if name not in linear:
        raise unknown("linear layer", name, linear)
    return name, linear[name]


@torch.no_grad()
def _features(model: nn.Module, layer: nn.Linear, batches: Iterable[Batch]) -> Samples:
    """What the head is given for each sample, in evaluation mode, float64."""
    seen: list[Tensor] = []
    features: list[Tensor] = []
    classes: list[Tensor] = []
    modes = {module: module.training for module in model.modules()}
    handle = layer.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    try:
        model.eval()
        for batch in batches:
            inputs, targets = inputs_and_targets(batch)
            seen.clear()
            logits(model, _on(inputs, layer.weight.device))
            if len(seen) != 1 or seen[0].shape[:-1] != targets.shape:
                shapes = [tuple(s.shape) for s in seen]
                raise InputError(
                    f"the head was given {shapes} for {len(targets)} samples: it must be called "
                    "once with one row of features for each; name another layer with `head`"
                )
            features.append(seen[0].double())
            classes.append(targets.to(layer.weight.device))
    finally:
        handle.remove()
        for module, mode in modes.items():
            module.training = mode
    if not features:
        raise InputError("there is no batch to tune on: give train and validation samples")
    return torch.cat(features), torch.cat(classes)


def _on(inputs: Any, device: torch.device) -> Any:
    if isinstance(inputs, Mapping):
        return {name: _on(value, device) for name, value in inputs.items()}
    if isinstance(inputs, tuple | list):
        return [_on(value, device) for value in inputs]
    return inputs.to(device)
