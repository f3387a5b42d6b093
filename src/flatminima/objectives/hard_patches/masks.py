"""Which patches of an image are masked: the hard ones first, the others by chance."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flatminima.arguments import between, kind_of, tensor, whole
from flatminima.errors import InputError

ROUNDING = 1e-9
"""16 * (1 - 0.9) is a little less than 1.6, and 10 * (1 - 0.9) than 1."""


class HardPatchMasker:
    r"""Masks a growing number of the patches that are said to be hard, and others by chance.

    Of L patches $M = L - \lfloor L (1 - \gamma) \rfloor$ are masked, and of these the
    $k = \lfloor M \alpha t \rfloor$ hardest for certain; the other M - k are drawn uniformly from
    the rest. k = 0 is a random mask.

    Source: Wang et al., Hard Patches Mining for Masked Image Modeling, 2023, arXiv 2304.05919.

    Args:
        ratio: gamma, the part of the patches that is masked, above 0 and below 1.
        alpha: The part of the masked ones that is chosen by hardness in the end, from 0 to 1. The
            paper has 0.5: where all are chosen, what is left to see says too little.

    Raises:
        InputError: an argument out of its range.
    """

    def __init__(self, ratio: float = 0.75, alpha: float = 0.5) -> None:
        self.ratio, self.alpha = between("ratio", ratio, 0, 1), between("alpha", alpha, 0, 1)
        if self.ratio in (0, 1):
            raise InputError(f"ratio is {ratio!r}: give a number between 0 and 1, as 0.75")

    def counts(self, patches: int, progress: float = 1.0) -> tuple[int, int]:
        """M, how many of so many patches are masked, and k, how many of those by hardness.

        Args:
            patches: L.
            progress: t, the part of the training that is done, from 0 to 1.

        Raises:
            InputError: none or all patches would be masked, or t is out of its range.
        """
        whole("patches", patches, 0)
        t = between("progress", progress, 0, 1)
        masked = patches - int(patches * (1 - self.ratio) + ROUNDING)
        if not 0 < masked < patches:
            raise InputError(
                f"of {patches} patches {masked} would be masked at ratio {self.ratio:g}: give "
                "larger images or smaller patches, or another ratio"
            )
        return masked, int(masked * self.alpha * t + ROUNDING)

    def __call__(
        self, hardness: Tensor, progress: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Masks, True where a patch is masked, bool, shape (n, L); M in each row.

        Args:
            hardness: Larger is harder, shape (n, L); where k is 0 only its shape counts.
            progress: See `counts`.
            generator: Draws the others; default torch's, of the device.

        Raises:
            InputError: hardness of another shape, or with numbers that are not; as `counts`.
        """
        _check(hardness)
        masked, hard = self.counts(hardness.shape[1], progress)
        scores = _uniform(hardness, generator)
        if hard:
            if not hardness.is_floating_point() or bool(hardness.isnan().any()):
                raise InputError(
                    f"the hardness is of {hardness.dtype}, or some of it is not a number: give "
                    "floats; a model whose predictions are none has diverged"
                )
            scores.scatter_(1, hardness.topk(hard, dim=1).indices, 2.0)
        return _at(scores.topk(masked, dim=1).indices, hardness.shape)


def complementary_masks(
    hardness: Tensor, ratio: float, generator: torch.Generator | None = None
) -> Tensor:
    """Masks of one image such that each patch is masked in one of them at least.

    Windows on a random order of the patches, one after the other: of what is seen where more is
    masked than seen, so that at 0.75 four masks show each patch once; else of what is masked.

    Args:
        hardness: Its shape (n, L) and device are taken.
        ratio: The part that each masks; see `HardPatchMasker`.
        generator: Draws the order; default torch's, of the device.

    Returns:
        Bool, shape (folds, n, L).

    Raises:
        InputError: hardness of another shape, or a ratio out of its range.
    """
    _check(hardness)
    patches = hardness.shape[1]
    masked, _ = HardPatchMasker(ratio).counts(patches)
    seen = patches - masked
    width = min(masked, seen)
    order = _uniform(hardness, generator).argsort(dim=1)
    folds = []
    for start in range(0, patches, width):
        places = torch.arange(start, start + width, device=order.device) % patches
        window = _at(order[:, places], hardness.shape)
        folds.append(window if masked < seen else ~window)
    return torch.stack(folds)


@torch.no_grad()
def fold_scores(
    model: nn.Module, images: Tensor, ratio: float, generator: torch.Generator | None = None
) -> Tensor:
    """Predicted losses of patches while they are masked, the mean over `complementary_masks`.

    Ours. A predictor is trained on masked patches alone, and a small one says little of those it
    sees. Costs four passes that see a quarter each, at a ratio of 0.75.

    Args:
        model: Says `predict(images, mask)`, as `MaskedViT` does, and `patch_count`.
        images: Of n samples.
        ratio: The part that each mask hides.
        generator: Draws the masks; default torch's, of the device.

    Returns:
        Shape (n, L).

    Raises:
        InputError: a model that does not say these two, or images that are no tensor.
    """
    if not (hasattr(model, "predict") and hasattr(model, "patch_count")):
        raise InputError(
            f"the model is {kind_of(model)}, without predict and patch_count: give a MaskedViT"
        )
    tensor("images", images)
    patches: Any = model.patch_count
    like = images.new_zeros(len(images), int(patches))
    masks = complementary_masks(like, ratio, generator)
    folds = len(masks)
    repeated = images.repeat(folds, *(1,) * (images.dim() - 1))
    predict: Any = model.predict
    predicted: Tensor = predict(repeated, masks.flatten(0, 1))
    hidden = masks.to(predicted.dtype)
    return (predicted.view_as(hidden) * hidden).sum(0) / hidden.sum(0)


def _check(hardness: Tensor) -> None:
    if tensor("hardness", hardness).dim() != 2:
        raise InputError(
            f"the hardness has the shape {tuple(hardness.shape)}: give (images, patches), of one "
            "image hardness[None]"
        )


def _uniform(like: Tensor, generator: torch.Generator | None) -> Tensor:
    place = like.device if generator is None else generator.device
    return torch.rand(like.shape, generator=generator, device=place).to(like.device)


def _at(places: Tensor, shape: torch.Size) -> Tensor:
    mask = torch.zeros(shape, dtype=torch.bool, device=places.device)
    return mask.scatter_(1, places, True)
