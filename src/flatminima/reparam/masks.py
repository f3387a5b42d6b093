"""Masks over frozen weights: which weights, the scores behind the masks, and their removal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from flatminima.arguments import finite
from flatminima.errors import InputError
from flatminima.reparam.mask_file import write_mask
from flatminima.reparam.parametrizing import parametrized, remove, shared

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
CONVOLUTIONS = LAYERS[1:]
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
OF_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


class Mask(nn.Module):
    r"""$W \odot 1[M > \theta]$ for a frozen W, by scores M of its shape in float32.

    Backward the step counts as the identity, $dL/dM = W \odot dL/dW_{masked}$, also where the mask
    is 0, so that weights come back.

    Args:
        weight: W; its shape and device are taken.
        init: All scores at the start.
        threshold: $\theta$.

    Attributes:
        on: While False, W goes through as it is.
    """

    def __init__(self, weight: Tensor, init: float, threshold: float) -> None:
        super().__init__()
        # In 16 bits numbers near 0.01 lie as far apart as an update moves them.
        scores = torch.full(weight.shape, init, dtype=torch.float32, device=weight.device)
        self.scores = nn.Parameter(scores)
        self.threshold, self.on = threshold, True

    @property
    def kept(self) -> Tensor:
        """The mask, boolean."""
        return self.scores.detach() > self.threshold

    def forward(self, weight: Tensor) -> Tensor:
        """The masked weight."""
        if not self.on:
            return weight
        through = self.scores - self.scores.detach()  # 0, with the gradient of M
        return weight * (self.kept.to(through.dtype) + through).to(weight.dtype)


class MaskTuning:
    r"""Learns which weights of a frozen model to switch off, by a `Mask` on each.

        tuning = MaskTuning(model)
        optimizer = torch.optim.Adam(tuning.scores.values(), lr=8e-5)
        ...
        tuning.save("mask.safetensors")
        tuning.bake()

    All parameters are frozen, and only the scores are free; BatchNorm stays with the statistics
    that it has, so that the masks are all that sets the model apart from its base. The model begins
    as it was. A score must fall by init - threshold before a weight goes: learning rate times steps
    must be larger than that with Adam, or nothing happens.

    Source: Zheng et al., Regularized Mask Tuning: Uncovering Hidden Knowledge in Pre-trained
    Vision-Language Models, ICCV 2023, arXiv 2307.15049.

    Args:
        model: Changed in place. Convert it to half precision before, not after.
        targets: Patterns of parameters' or modules' names, or of the ends of such names, such as
            "query" or "*.out_proj"; one string may hold several with commas. Default: where there
            is attention, its projections and all convolutions (patch embeddings); else all linear
            and convolutional layers.
        init: All scores at the start, above the threshold.
        threshold: Weights whose score is not above it are 0.

    Raises:
        InputError: init is not above the threshold, targets that match nothing, or weights that
            cannot have a mask.
    """

    def __init__(
        self,
        model: nn.Module,
        targets: str | Sequence[str] | None = None,
        init: float = 0.01,
        threshold: float = 0.005,
    ) -> None:
        init, threshold = finite("init", init), finite("threshold", threshold)
        if not init > threshold:
            raise InputError(
                f"init is {init:g}, not above the threshold {threshold:g}: all weights would be "
                "off from the start"
            )
        chosen = _chosen(model, targets)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for _, module, name in chosen:
            mask = Mask(getattr(module, name), init, threshold)
            parametrize.register_parametrization(module, name, mask)
        for module in model.modules():
            if isinstance(module, BATCH_NORMS):
                module.register_forward_pre_hook(_keep_statistics)
        self.model = model

    @property
    def scores(self) -> dict[str, nn.Parameter]:
        """The scores, by the names of the weights."""
        return {name: mask.scores for name, mask in _masks(self.model).items()}

    def norm(self) -> Tensor:
        r"""$\sum_l \lVert M_l \rVert_2$, not squared, a scalar tensor."""
        return torch.stack([torch.linalg.vector_norm(m) for m in self.scores.values()]).sum()

    def share_masked(self) -> float:
        """The part of the weights with a mask that it switches off, from 0 to 1."""
        return share_masked(self.model)

    @contextmanager
    def without(self) -> Iterator[None]:
        """The model as it was: masks off, in evaluation mode, no gradient."""
        masks = list(_masks(self.model).values())
        modes = [(module, module.training) for module in self.model.modules()]
        try:
            for mask in masks:
                mask.on = False
            self.model.eval()
            with torch.no_grad():
                yield
        finally:
            for mask in masks:
                mask.on = True
            for module, training in modes:
                module.training = training

    def save(self, path: str | Path) -> None:
        """Write the masks, one bit for each weight; see `apply_mask`."""
        save_masks(self.model, path)

    def bake(self) -> nn.Module:
        """The model as an ordinary one with the same outputs, its weights masked; all are free."""
        return bake_masks(self.model)


def share_masked(model: nn.Module) -> float:
    """The part of the weights with a mask that it switches off, from 0 to 1."""
    kept = [mask.kept for mask in _masks(model).values()]
    return sum(int((~k).sum()) for k in kept) / sum(k.numel() for k in kept)


def save_masks(model: nn.Module, path: str | Path) -> None:
    """Write the masks of a model; see `mask_file`."""
    weights = {
        _join(place, name): cast(Any, module.parametrizations)[name].original
        for place, module, name in parametrized(model, Mask)
    }
    write_mask(path, {name: mask.kept for name, mask in _masks(model).items()}, weights)


def bake_masks(model: nn.Module) -> nn.Module:
    """Multiply each weight by its mask and take the mask off, in place."""
    remove(model, Mask)
    for module in model.modules():
        for key, hook in list(module._forward_pre_hooks.items()):
            if hook is _keep_statistics:
                del module._forward_pre_hooks[key]
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model


def _masks(model: nn.Module) -> dict[str, Mask]:
    found = {}
    for place, module, name in parametrized(model, Mask):
        chain = cast(Any, module.parametrizations)[name]
        found[_join(place, name)] = next(part for part in chain if isinstance(part, Mask))
    return found


def _keep_statistics(module: nn.Module, inputs: Any) -> None:
    module.training = False


Place = tuple[str, nn.Module, str]


def _chosen(model: nn.Module, targets: str | Sequence[str] | None) -> list[Place]:
    """Module name, module and tensor name of the weights that get a mask."""
    if targets is None:
        elsewhere = shared(model)
        found = [p for p in _ordinary(model) if id(getattr(p[1], p[2])) not in elsewhere]
        inside = [place for place in found if _of_attention(model, place)]
        chosen = [p for p in found if isinstance(p[1], CONVOLUTIONS) or p in inside]
        chosen = chosen if inside else found
        if not chosen:
            raise InputError("the model has no linear or convolutional layer: name targets")
    else:
        chosen = _named(model, targets.split(",") if isinstance(targets, str) else targets)
    for place, module, name in chosen:
        weight = getattr(module, name)
        if parametrize.is_parametrized(module, name):
            raise InputError(f"{_join(place, name)} is parametrized already")
        if not weight.is_floating_point():
            raise InputError(f"{_join(place, name)} is of {weight.dtype}, which has no gradient")
        if id(weight) in shared(model):
            raise InputError(
                f"{_join(place, name)} is the weight of another module too, which would not see "
                "the mask: leave it out of targets"
            )
    return chosen


def _ordinary(model: nn.Module) -> list[Place]:
    found: list[Place] = []
    for place, module in model.named_modules():
        if isinstance(module, LAYERS) or type(module).__name__ == "Conv1D":
            found.append((place, module, "weight"))
        elif isinstance(module, nn.MultiheadAttention):
            own = [name for name in OF_ATTENTION if getattr(module, name, None) is not None]
            found += [(place, module, name) for name in own]
    return found


def _of_attention(model: nn.Module, found: Place) -> bool:
    place, module, _ = found
    parent = model.get_submodule(place.rpartition(".")[0])
    if isinstance(module, nn.MultiheadAttention) or isinstance(parent, nn.MultiheadAttention):
        return True
    words = place.lower()
    return "attention" in words or "attn" in words


def _named(model: nn.Module, targets: Sequence[str]) -> list[Place]:
    everything = [
        (place, module, name)
        for place, module in model.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.dim() > 1
    ]
    chosen: list[Place] = []
    for target in (word.strip() for word in targets):
        matching = [
            found
            for found in everything
            for name in (found[0], _join(found[0], found[2]))
            if fnmatchcase(name, target) or fnmatchcase(name, f"*.{target}")
        ]
        if not matching:
            names = sorted({p[0].rpartition(".")[2] for p in everything} - {""})
            raise InputError(f"no weight is called {target!r}: there are {', '.join(names)}")
        chosen += [found for found in dict.fromkeys(matching) if found not in chosen]
    return chosen


def _join(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name
