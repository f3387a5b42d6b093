"""Where to look: random, steepest, most curved, where the optimizer goes, where the run came by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flatminima.errors import InputError, unknown
from flatminima.landscape.normalization import Direction, normalized
from flatminima.measure.batches import Batches, scalar_loss, weighted
from flatminima.measure.eigen import top_eigenvalues
from flatminima.measure.hessian import Hessian
from flatminima.measure.untouched import check_recording, free_parameters, untouched
from flatminima.objectives import Objective
from flatminima.progress import Progress

WHICH = ("largest", "extremes")
STATES = {
    "exp_avg": "mean gradient of Adam",
    "exp_avg_sq": "mean squared gradient of Adam",
    "momentum_buffer": "momentum",
}
"""What optimizers remember of each weight, and what a picture calls it."""

Params = Iterable[Tensor] | Iterable[str] | str | None


def random_directions(
    model: nn.Module,
    count: int = 2,
    *,
    seed: int = 0,
    normalization: str = "filter",
    biases: str = "ignore",
    params: Params = None,
) -> list[Direction]:
    """Directions of independent standard normal numbers, fitted to the weights.

    The numbers depend on the seed and the tensors' shapes alone: with one seed, models of one
    architecture are cut along the same random numbers, each fitted to its own weights.

    Args:
        model: The weights that they start from.
        count: How many.
        seed: Direction i draws from a generator of its own, seeded with `seed + i`.
        normalization: See `normalized`.
        biases: See `normalized`.
        params: Which parameters move: tensors, or names with wildcards; default: all that require
            a gradient.

    Raises:
        InputError: an unknown normalization; no such parameters.
    """
    weights = free_parameters(model, params)
    found = []
    for own in range(seed, seed + count):
        generator = torch.Generator().manual_seed(own)
        parts = {
            name: torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p)
            for name, p in weights.items()
        }
        raw = Direction(f"random, seed {own}", parts)
        found.append(normalized(raw, weights, normalization, biases))
    return found


def eigen_directions(
    model: nn.Module,
    objective: Objective,
    batches: Batches,
    *,
    which: str = "largest",
    count: int = 2,
    seed: int = 0,
    normalization: str = "unit",
    biases: str = "scale",
    params: Params = None,
    tol: float = 1e-3,
    max_steps: int = 100,
    progress: Progress | None = None,
) -> list[Direction]:
    """Eigenvectors of the Hessian: the most curved directions, which random ones all but miss.

    Cost: see `top_eigenvalues`, which finds them, with "extremes" twice.

    Args:
        model: The model.
        objective: `(model, batch) -> scalar`, the mean over the batch's samples.
        batches: Batches that can be gone through again and again.
        which: "largest": those of the `count` largest eigenvalues; "extremes": of the largest and
            of the smallest, the most negative where there is a negative one.
        count: How many of the largest.
        seed: Of the start of the Lanczos method.
        normalization: See `normalized`; any but "unit", "whole" and "none" bends them.
        biases: See `normalized`; "ignore" bends them too.
        params: Which parameters move; default: all that require a gradient.
        tol: Relative residual to stop at.
        max_steps: Of the Lanczos method.
        progress: Told the steps.

    Raises:
        InputError: an unknown choice; bad parameters, batches or loss.
    """
    if which not in WHICH:
        raise unknown("choice of eigenvectors", which, WHICH)
    weights = free_parameters(model, params)
    asked = [("largest", count)] if which == "largest" else [("largest", 1), ("smallest", 1)]
    found = []
    for side, k in asked:
        hessian = Hessian(model, objective, batches, params=weights.values())
        top = top_eigenvalues(
            hessian,
            k,
            which=side,
            tol=tol,
            max_steps=max_steps,
            vectors=True,
            seed=seed,
            keep_interrupted=False,
            progress=progress,
        )
        assert top.vectors is not None
        for value, vector in zip(top.values, top.vectors.T, strict=True):
            # The sign is arbitrary; that of the largest entry makes pictures repeatable.
            vector = vector * vector[vector.abs().argmax()].sign()
            pieces = {name: vector[at] for name, at in hessian.blocks.items()}
            parts = {n: piece.view_as(weights[n]).to(weights[n]) for n, piece in pieces.items()}
            raw = Direction(f"eigenvector of {value:.4g}", parts)
            found.append(normalized(raw, weights, normalization, biases))
    return found


def gradient_direction(
    model: nn.Module,
    objective: Objective,
    batches: Batches,
    *,
    normalization: str = "unit",
    biases: str = "scale",
    params: Params = None,
) -> Direction:
    """The gradient of the mean loss over all samples.

    Cost: one gradient. The model is left as it was, `.grad` too.

    Args:
        model: The model.
        objective: `(model, batch) -> scalar`, the mean over the batch's samples.
        batches: Each counts as often as it has samples.
        normalization: See `normalized`.
        biases: See `normalized`.
        params: Which parameters move; default: all that require a gradient.

    Raises:
        InputError: bad parameters, batches or loss; the gradient is 0 or not finite.
    """
    check_recording()
    weights = free_parameters(model, params)
    tensors = list(weights.values())
    totals = [torch.zeros_like(tensor) for tensor in tensors]
    samples = 0
    device = tensors[0].device
    with untouched(model, objective, device), torch.enable_grad():
        for batch, count in weighted(batches, device):
            loss = scalar_loss(model, objective, batch)
            gradients = torch.autograd.grad(loss, tensors, allow_unused=True)
            for total, gradient in zip(totals, gradients, strict=True):
                if gradient is not None:
                    total.add_(gradient, alpha=count)
            samples += count
    parts = {name: total / samples for name, total in zip(weights, totals, strict=True)}
    raw = Direction("gradient", parts)
    _check_finite(raw)
    return normalized(raw, weights, normalization, biases)


def optimizer_directions(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | Mapping[str, Any],
    *,
    normalization: str = "unit",
    biases: str = "scale",
) -> list[Direction]:
    """What the optimizer remembers: Adam's two means, or the momentum of SGD.

    Where it remembers nothing of a parameter, the direction is 0.

    Args:
        model: Its parameters are those of the optimizer.
        optimizer: An optimizer, or what its `state_dict()` saved. There parameters are known by
            name (`param_names`) where the optimizer was given names, else by the model's order.
        normalization: See `normalized`.
        biases: See `normalized`.

    Raises:
        InputError: it remembers none of these; it is of another model.
    """
    weights = dict(model.named_parameters())
    if isinstance(optimizer, Mapping):
        entries = list(_saved_entries(optimizer, list(weights)))
    else:
        names = {id(p): n for n, p in weights.items()}
        entries = [(names.get(id(p)), s) for p, s in optimizer.state.items()]
    found = []
    for key, name in STATES.items():
        parts = {}
        for owner, state in entries:
            value = state.get(key)
            if not isinstance(value, Tensor):
                continue
            if owner not in weights or weights[owner].shape != value.shape:
                raise InputError(
                    f"the optimizer's {key} of {owner or 'an unknown parameter'} does not fit the "
                    "model: give the optimizer of this model"
                )
            parts[owner] = value.detach().to(weights[owner])
        if parts:
            found.append(normalized(Direction(name, parts), weights, normalization, biases))
    if not found:
        raise InputError(
            f"the optimizer remembers none of {', '.join(STATES)}: take one with momentum or Adam, "
            "after a step, or other directions"
        )
    return found


class Trajectory(NamedTuple):
    """The plane that a run stayed closest to.

    Attributes:
        directions: The first two principal directions, of length 1 and orthogonal.
        path: Where the checkpoints are in it, in the order given.
        explained: The part of the squared distances that each of the two explains.
    """

    directions: list[Direction]
    path: tuple[tuple[float, float], ...]
    explained: tuple[float, float]


@torch.no_grad()
def trajectory_directions(
    model: nn.Module, checkpoints: Sequence[Mapping[str, Tensor]], *, params: Params = None
) -> Trajectory:
    r"""The principal directions of a run's checkpoints, seen from the weights of the model.

    Of the differences $W_t - W$ (not centred: the picture's centre is W) the two singular vectors
    of the largest singular values, by the eigenvalues of their small matrix of inner products.
    They are not fitted to the weights, since the path could not be drawn then.

    Source: Li, Xu, Taylor, Studer, Goldstein, Visualizing the Loss Landscape of Neural Nets, 2018,
    arXiv 1712.09913, section 7.

    Args:
        model: The weights W, usually the last ones.
        checkpoints: State dicts along the run; at least two that differ from W in two directions.
        params: Which parameters move; default: all that require a gradient.

    Raises:
        InputError: too few checkpoints; one of another architecture; all on one line.
    """
    weights = free_parameters(model, params)
    for i, state in enumerate(checkpoints):
        check_same(weights, state, f"checkpoint {i}")
    rows = torch.stack(
        [
            torch.cat([(state[n].to(w) - w).double().flatten() for n, w in weights.items()])
            for state in checkpoints
        ]
        or [torch.zeros(1, dtype=torch.float64)]
    )
    values, vectors = torch.linalg.eigh(rows @ rows.T)
    values, vectors = values.flip(0), vectors.flip(1)
    if len(values) < 2 or values[1] <= 1e-12 * values[0]:
        raise InputError(
            f"{len(checkpoints)} checkpoints lie on one line with the weights or are the same: "
            "give at least two more that lie elsewhere"
        )
    units = (vectors[:, :2].T @ rows) / values[:2, None].sqrt()
    sizes = [w.numel() for w in weights.values()]
    explained = (values[:2] / values.clamp(min=0).sum()).tolist()
    directions = []
    for i, unit in enumerate(units):
        split = zip(weights.items(), unit.split(sizes), strict=True)
        parts = {n: piece.view_as(w).to(w) for (n, w), piece in split}
        name = f"principal direction {i + 1} ({explained[i]:.0%} of the path)"
        directions.append(Direction(name, parts, "unit", "scale"))
    path = tuple((float(x), float(y)) for x, y in rows @ units.T)
    return Trajectory(directions, path, (explained[0], explained[1]))


def check_same(weights: Mapping[str, Tensor], state: Mapping[str, Tensor], name: str) -> None:
    """Refuse a state dict that has not these tensors.

    Raises:
        InputError: one is missing or of another shape.
    """
    for key, weight in weights.items():
        if key not in state:
            raise InputError(f"{name} is of another architecture than the model: it has no {key!r}")
        if state[key].shape != weight.shape:
            raise InputError(
                f"{name} is of another architecture than the model: its {key!r} has shape "
                f"{tuple(state[key].shape)}, not {tuple(weight.shape)}"
            )


def _check_finite(direction: Direction) -> None:
    for name, part in direction.parts.items():
        if not bool(part.isfinite().all()):
            raise InputError(
                f"the {direction.name} of {name!r} is not finite: mend the data or the model"
            )


def _saved_entries(
    state: Mapping[str, Any], order: Sequence[str]
) -> Iterable[tuple[str | None, Mapping[str, Any]]]:
    """Each parameter's name and what is saved of it."""
    saved = state.get("state", {})
    groups = state.get("param_groups", [])
    numbers = [number for group in groups for number in group["params"]]
    given = [name for group in groups for name in group.get("param_names", [])]
    names = dict(zip(numbers, given or order, strict=False))
    for number, content in saved.items():
        if isinstance(content, Mapping):
            yield names.get(number), content
