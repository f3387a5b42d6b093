"""The layer-wise companion of the PAC-Bayes bound: how far each layer went, and how steep it is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from flatminima.errors import InputError, unknown
from flatminima.measure.batches import Batches, MeanLoss, scalar_loss
from flatminima.measure.bounds import displacements, largest_loss, pieces
from flatminima.measure.cost import Meter
from flatminima.measure.hessian import Hessian
from flatminima.measure.operators import Operator
from flatminima.measure.results import Result
from flatminima.measure.untouched import free_parameters, untouched
from flatminima.objectives import Objective
from flatminima.progress import Progress


@dataclass(frozen=True)
class LayerBound(Result):
    r"""The bound of `layer_bound`, layer by layer.

    Attributes:
        curvatures: H_l = max $v_l^\top H_l^+ v_l$ of each parameter tensor, in units of the loss.
        distances: ||v_l||_2 of each.
        loss: The training loss.
        max_loss: C.
        samples: n.
        epsilon: As in the bound.
        from_initialization: Whether a reference was given; else it is 0.
        over: Whether H_l are maxima over "batches" or over "samples".
    """

    curvatures: Mapping[str, float]
    distances: Mapping[str, float]
    loss: float
    max_loss: float
    samples: int
    epsilon: float
    from_initialization: bool
    over: str

    @property
    def layers(self) -> Mapping[str, float]:
        """What each layer adds to the bound, (1 + epsilon) sqrt(C H_l / n)."""
        rate = (1 + self.epsilon) * math.sqrt(self.max_loss / self.samples)
        return {name: rate * math.sqrt(found) for name, found in self.curvatures.items()}

    @property
    def value(self) -> float:
        """(1 + epsilon) f(W) and what all layers add."""
        return (1 + self.epsilon) * self.loss + sum(self.layers.values())

    @property
    def vacuous(self) -> bool:
        """Whether it says no more than that a loss is at most C."""
        return self.value >= self.max_loss

    def __str__(self) -> str:
        width = max(len("(1 + epsilon) loss"), *map(len, self.layers))
        first = (1 + self.epsilon) * self.loss
        lines = [f"{'(1 + epsilon) loss':<{width}}  {first:<10.4g}  loss {self.loss:.4g}"]
        for name, part in self.layers.items():
            note = f"H {self.curvatures[name]:.4g}, distance {self.distances[name]:.4g}"
            lines.append(f"{name:<{width}}  {part:<10.4g}  {note}")
        verdict = "vacuous" if self.vacuous else "not vacuous"
        note = f"n {self.samples}, C {self.max_loss:.4g}: {verdict}"
        lines.append(f"{'bound':<{width}}  {self.value:<10.4g}  {note}")
        lines.append(
            f"not certified: H is the largest over the {self.over} seen, at W, and C too unless it "
            "was given; a term of order n^(-3/4), whose constant is not known, is left out"
        )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types, and the bound."""
        return {
            **super().to_dict(),
            "curvatures": dict(self.curvatures),
            "distances": dict(self.distances),
            "value": self.value,
            "vacuous": self.vacuous,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The bound that `to_dict` wrote."""
        return cls(**{key: data[key] for key in data if key not in ("value", "vacuous")})


def layer_bound(
    model: nn.Module,
    objective: Objective,
    batches: Batches,
    *,
    reference: nn.Module | Mapping[str, Tensor] | None = None,
    max_loss: float | None = None,
    epsilon: float = 0.1,
    over: Literal["batches", "samples"] = "batches",
    steps: int = 20,
    params: Iterable[Tensor] | Iterable[str] | str | None = None,
    progress: Progress | None = None,
) -> LayerBound:
    r"""The layer-wise bound of robust fine-tuning on the expected test loss L(W).

    With probability at least 0.99 over training sets of n samples, for losses in [0, C],

    $$L(W) \le (1 + \epsilon) f(W) + (1 + \epsilon) \sqrt{C / n} \sum_l \sqrt{H_l} + O(n^{-3/4}),
    \qquad H_l = \max_{x, y} v_l^\top H_l^+ v_l,$$

    with $v_l$ the way from the initialization to the weights of layer l, here of each parameter
    tensor, and $H_l^+$ the positive part of its diagonal block of the Hessian of a sample's loss.
    It weighs the distance by the curvature along it, where `pac_bayes_bound` multiplies the whole
    trace by the whole distance.

    The theorem leaves the constant of its last term open, and a network gives the maximum only over
    what was seen, at W: take it as a measure to compare models by rather than a certificate.

    $v^\top H^+ v$ comes from Gauss quadrature by the Lanczos method from v, exact once the Krylov
    space is exhausted, and for fewer steps where the eigenvalues along v keep one sign.

    Cost: for each batch (sample) and each parameter tensor at most `steps` gradients and HVPs; a
    forward pass of each sample by itself where `max_loss` is not given.
    Memory: `steps` vectors of the largest tensor's size.

    Source: Ju, Li, Zhang, Robust Fine-Tuning of Deep Neural Networks with Hessian-based
    Generalization Guarantees, 2022, arXiv 2206.02659.

    Args:
        model: The model, its parameters float32 or float64, on one device.
        objective: `(model, batch) -> scalar`, the mean over the batch's samples.
        batches: The whole training set: n is the number of samples here.
        reference: The initialization, a model or a state dict. Default: 0.
        max_loss: C where it is known; default: the largest of a sample seen.
        epsilon: In the theorem near 0, the larger the smaller its last term.
        over: What H_l are maxima over.
        steps: Lanczos steps.
        params: Which parameters were trained: tensors, or names with wildcards ("encoder.*");
            default: all that require a gradient.
        progress: Called with ("layer bound", layers done, layers done or to do).

    Raises:
        InputError: an argument out of its range; a reference that lacks a parameter or has another
            shape; as `Hessian`.
    """
    if over not in ("batches", "samples"):
        raise unknown("over", over, ("batches", "samples"))
    if steps < 1:
        raise InputError(f"steps is {steps}: give at least 1")
    if not epsilon > 0:
        raise InputError(f"epsilon is {epsilon}: give a number above 0, such as 0.1")
    named = free_parameters(model, params)
    first = next(iter(named.values()))
    moved = dict(zip(named, displacements(named, reference), strict=True))
    meter = Meter(first.device, first.dtype)
    curvatures = dict.fromkeys(named, 0.0)
    losses, most = MeanLoss(), 0.0
    gradients = hvps = done = 0
    for piece, count in pieces(batches, over, first.device):
        with untouched(model, objective, first.device), torch.no_grad():
            losses.add(scalar_loss(model, objective, piece), count)
        if max_loss is None:
            most = max(most, largest_loss(model, objective, piece, count))
        for name, weight in named.items():
            operator = Hessian(model, objective, [piece], params=[weight])
            found = positive_form(operator, moved[name].flatten(), steps)
            curvatures[name] = max(curvatures[name], found)
            gradients, hvps = gradients + operator.gradients, hvps + operator.hvps
            done += 1
            if progress is not None:
                progress("layer bound", done, done)
    cost = meter.read()
    cost["gradients"], cost["hvps"] = gradients, hvps
    return LayerBound(
        curvatures,
        {name: torch.linalg.vector_norm(v).item() for name, v in moved.items()},
        losses.value().item(),
        most if max_loss is None else max_loss,
        losses.samples,
        epsilon,
        reference is not None,
        over,
        method=f"Lanczos quadrature, at most {steps} steps, largest over {over}",
        **cost,
    )


def positive_form(operator: Operator, v: Tensor, steps: int) -> float:
    """v'H+v, H+ the positive part of the operator, by Gauss quadrature with the measure of v."""
    size = torch.linalg.vector_norm(v).item()
    if size == 0:
        return 0.0
    basis = [v / size]
    diagonal: list[float] = []
    coupling: list[float] = []
    while True:
        w = operator.matmat(basis[-1][:, None])[:, 0].clone()
        diagonal.append((basis[-1] @ w).item())
        # Twice is enough (Kahan and Parlett): once leaves a part where cancellation was large.
        for _ in range(2):
            for q in basis:
                w.addcmul_(q, q @ w, value=-1)
        norm = torch.linalg.vector_norm(w).item()
        floor = 10 * torch.finfo(w.dtype).eps * max(map(abs, [*diagonal, *coupling]))
        if len(basis) == min(steps, len(v)) or norm <= floor:
            break
        coupling.append(norm)
        basis.append(w / norm)
    matrix = torch.tensor(diagonal, dtype=torch.float64).diag()
    if coupling:
        matrix += torch.tensor(coupling, dtype=torch.float64).diag(-1)
    nodes, vectors = torch.linalg.eigh(matrix)
    form = size**2 * (vectors[0].square() @ nodes.clamp(min=0))
    return float(form)
