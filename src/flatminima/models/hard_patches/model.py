"""A ViT that sees the patches left over by a mask, and two decoders that say what was there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from flatminima.arguments import kind_of, tensor, whole
from flatminima.errors import InputError
from flatminima.models.hard_patches.patches import patchify, sin_cos_positions
from flatminima.objectives import PatchOutput

LARGEST = 30.0
"""No pixel of an image that was scaled or normalized is larger."""


DECODER_KEYS = (r"^enter\.", r"^mask_token$", r"^reconstructor\.", r"^predictor\.")
"""What a state dict of a `MaskedViT` has beside the ViT's own keys, as regular expressions."""


class MaskedViT(nn.Module):
    r"""A ViT of transformers as the encoder of a masked autoencoder that predicts its own losses.

    The encoder gets the patches that are not masked, and its class token. Its outputs and, where a
    patch is masked, one learned token, each with fixed sine-cosine positions added, go through two
    decoders of the same shape: one gives the pixels of each patch, the other a number, how badly
    they will come out. Both see all of it, so the gradient of either reaches the encoder.

        vit = transformers.ViTModel(config, add_pooling_layer=False)
        model = MaskedViT(vit)
        found = model(images, mask)

    The ViT's own `forward` runs: a hook on its embeddings takes out what is masked. It is at
    `.vit`, so that a state dict of this model is one of `ViTForImageClassification`, the head
    missing and the decoders over.

    Source: Wang et al., Hard Patches Mining for Masked Image Modeling, 2023, arXiv 2304.05919; He
    et al., Masked Autoencoders Are Scalable Vision Learners, 2021, arXiv 2111.06377.

    Args:
        vit: A `ViTModel`, whose config says image size, patch size and channels.
        width: Of the decoders, a multiple of 4 and of `heads`. Default: the config's
            `decoder_hidden_size`, as `ViTMAEConfig` calls it, else that of the ViT.
        depth: Layers of each decoder. Default: `decoder_num_hidden_layers`, else 1; the paper's
            ViT-B has 8, of width 512.
        heads: Default: `decoder_num_attention_heads`, else those of the ViT.

    Raises:
        InputError: `vit` is no such model, or a size does not fit; at a call, images of another
            size or without floats, or masks that do not hide as much in each image.
    """

    def __init__(
        self,
        vit: nn.Module,
        width: int | None = None,
        depth: int | None = None,
        heads: int | None = None,
    ) -> None:
        super().__init__()
        config: Any = getattr(vit, "config", None)
        if getattr(config, "model_type", None) != "vit" or not hasattr(vit, "embeddings"):
            raise InputError(
                f"a {type(vit).__name__} has no patches to mask: give a transformers.ViTModel"
            )
        self.size, self.patch = _square(config.image_size), _square(config.patch_size)
        if self.size % self.patch:
            raise InputError(
                f"images of {self.size} pixels cannot be cut into patches of {self.patch}"
            )
        self.channels = int(config.num_channels)
        if width is None:
            width = getattr(config, "decoder_hidden_size", None) or config.hidden_size
        if depth is None:
            depth = getattr(config, "decoder_num_hidden_layers", None) or 1
        if heads is None:
            heads = getattr(config, "decoder_num_attention_heads", None)
            heads = heads or config.num_attention_heads
        width, depth = whole("width", width, 4), whole("depth", depth, 1)
        heads = whole("heads", heads, 1)
        if width % 4 or width % heads:
            raise InputError(
                f"decoders of width {width} and {heads} heads: give a width that is a multiple of "
                "both 4 and the heads"
            )
        self.vit = vit
        side = self.size // self.patch
        self.enter = nn.Linear(config.hidden_size, width)
        self.mask_token = nn.Parameter(torch.empty(width).normal_(std=0.02))
        self.positions: Tensor
        self.register_buffer("positions", sin_cos_positions(side, side, width), persistent=False)
        self.reconstructor = _decoder(width, depth, heads, self.patch**2 * self.channels)
        self.predictor = _decoder(width, depth, heads, 1)

    @property
    def patch_count(self) -> int:
        """Patches of an image, L."""
        return len(self.positions)

    def forward(self, images: Tensor, mask: Tensor | None = None) -> PatchOutput:
        """Reconstruct patches and predict how badly.

        Args:
            images: Shape (n, c, h, w), as the ViT takes them.
            mask: True where a patch is masked, bool, shape (n, L), as many in each row. None: the
                encoder sees all.
        """
        decoded = self._entered(images, mask)
        return PatchOutput(
            reconstruction=self.reconstructor(decoded)[:, 1:],
            predicted=self.predictor(decoded)[:, 1:, 0],
            patches=patchify(images, self.patch),
        )

    def predict(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """The predicted losses alone, shape (n, L), which spares one of the decoders."""
        found: Tensor = self.predictor(self._entered(images, mask))[:, 1:, 0]
        return found

    def _entered(self, images: Tensor, mask: Tensor | None) -> Tensor:
        """What both decoders get: the class token and all patches, shape (n, 1 + L, width)."""
        self._check(images, mask)
        seen = None if mask is None else _seen(mask)
        with self._seeing(seen):
            states = self.vit(images).last_hidden_state
        entered = self.enter(states)
        cls, tokens = entered[:, :1], entered[:, 1:]
        if seen is not None:
            places = seen[..., None].expand(-1, -1, tokens.shape[-1])
            hidden = self.mask_token.to(tokens.dtype).expand(len(images), self.patch_count, -1)
            tokens = hidden.scatter(1, places, tokens)
        return torch.cat([cls, tokens + self.positions.to(tokens.dtype)], dim=1)

    @contextmanager
    def _seeing(self, seen: Tensor | None) -> Iterator[None]:
        """Let the ViT's layers see these patches alone, positions (n, seen)."""
        if seen is None:
            yield
            return

        def leave(module: nn.Module, inputs: Any, embedded: Tensor) -> Tensor:
            places = seen[..., None].expand(-1, -1, embedded.shape[-1])
            return torch.cat([embedded[:, :1], embedded[:, 1:].gather(1, places)], dim=1)

        hook = self.vit.embeddings.register_forward_hook(leave)  # type: ignore[union-attr]
        try:
            yield
        finally:
            hook.remove()

    def _check(self, images: Tensor, mask: Tensor | None) -> None:
        wanted = (self.channels, self.size, self.size)
        tensor("images", images)
        if images.dim() != 4 or tuple(images.shape[1:]) != wanted:
            raise InputError(
                f"images of shape {tuple(images.shape)} for a ViT that takes (n, "
                f"{self.channels}, {self.size}, {self.size}): resize them, or give --image-size"
            )
        if not images.is_floating_point():
            raise InputError(f"the images are {images.dtype}: give floats in [0, 1]")
        if images.numel() and not images.abs().max() <= LARGEST:
            raise InputError(
                f"the images go up to {float(images.abs().max()):g}: give numbers in [0, 1], or "
                "normalized ones, such as images / 255"
            )
        if mask is not None and (
            tensor("mask", mask).dtype != torch.bool
            or tuple(mask.shape) != (len(images), self.patch_count)
        ):
            raise InputError(
                f"a mask of shape {tuple(mask.shape)} and {mask.dtype} for {len(images)} images of "
                f"{self.patch_count} patches: give bool, (images, patches)"
            )


@torch.no_grad()
def begin_with_positions(vit: nn.Module) -> None:
    """Let a new ViT's learned positions start as sines and cosines; see `sin_cos_positions`.

    Those of a masked autoencoder are fixed ones; here they go on learning, since they are weights
    of the ViT.

    Raises:
        InputError: its width is no multiple of 4; it is no ViT.
    """
    config: Any = getattr(vit, "config", None)
    if not hasattr(vit, "embeddings") or not hasattr(config, "hidden_size"):
        raise InputError(f"the ViT is {kind_of(vit)}: give a transformers.ViTModel")
    if config.hidden_size % 4:
        raise InputError(f"the ViT is {config.hidden_size} wide: give a multiple of 4")
    side = _square(config.image_size) // _square(config.patch_size)
    embeddings: Any = vit.embeddings
    positions = embeddings.position_embeddings
    positions[0, 1:] = sin_cos_positions(side, side, config.hidden_size).to(positions)


def _seen(mask: Tensor) -> Tensor:
    """The places that are not masked, ascending, shape (n, seen)."""
    counts = mask.sum(dim=1)
    most, least = int(counts.max()), int(counts.min())
    if most != least:
        raise InputError(
            f"the masks hide {least} to {most} patches: hide as many in each image of a batch"
        )
    places: Tensor = mask.long().argsort(dim=1, stable=True)[:, : mask.shape[1] - most]
    return places


def _decoder(width: int, depth: int, heads: int, outputs: int) -> nn.Sequential:
    layers = [
        nn.TransformerEncoderLayer(
            width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        for _ in range(depth)
    ]
    return nn.Sequential(*layers, nn.LayerNorm(width), nn.Linear(width, outputs))


def _square(side: Any) -> int:
    if isinstance(side, int):
        return side
    sides = set(side)
    if len(sides) != 1:
        raise InputError(f"the ViT has images or patches of {tuple(side)} pixels: give square ones")
    return int(sides.pop())
