"""Masks as a file: one bit for each weight, and what they are masks of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flatminima.errors import InputError, require
from flatminima.files import write_bytes

FORMAT = "flatminima mask 1"


def pack_mask(mask: Tensor) -> Tensor:
    """A boolean tensor as bits, uint8, shape (ceil(n / 8),), the first in the highest bit.

    Raises:
        InputError: it is not boolean.
    """
    if mask.dtype != torch.bool:
        raise InputError(f"a mask must be of bool, not {mask.dtype}")
    return torch.from_numpy(np.packbits(mask.detach().cpu().numpy().ravel()))


def unpack_mask(bits: Tensor, shape: Sequence[int]) -> Tensor:
    """What `pack_mask` made bits of, boolean.

    Args:
        bits: uint8, shape (ceil(n / 8),).
        shape: Of n numbers.

    Raises:
        InputError: bits of another number of weights.
    """
    count = int(np.prod(shape))
    if bits.dtype != torch.uint8 or tuple(bits.shape) != (-(-count // 8),):
        raise InputError(
            f"{tuple(bits.shape)} numbers of {bits.dtype} are no mask of the shape {tuple(shape)}"
        )
    flat = np.unpackbits(bits.cpu().numpy(), count=count).astype(bool)
    return torch.from_numpy(flat).reshape(tuple(shape))


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """The SHA-256 of weights with their names, shapes and dtypes."""
    digest = hashlib.sha256()
    for name, weight in sorted(weights.items()):
        flat = weight.detach().cpu().contiguous().reshape(-1)
        digest.update(json.dumps([name, str(weight.dtype), list(weight.shape)]).encode())
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write_mask(
    path: str | Path, masks: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> None:
    """Write masks as a safetensors file, whole or not at all.

    Args:
        path: The file.
        masks: Boolean, by the names of the weights.
        weights: What they are masks of, unmasked.

    Raises:
        InputError: it cannot be written, or safetensors is not installed.
    """
    safetensors = require("safetensors.torch", "cli")
    said = {
        "shapes": {name: list(mask.shape) for name, mask in masks.items()},
        "dtypes": {name: str(weights[name].dtype) for name in masks},
        "fingerprint": fingerprint(weights),
    }
    bits = {name: pack_mask(mask) for name, mask in masks.items()}
    # One entry: safetensors writes several in any order, and equal masks are to be equal files.
    write_bytes(path, safetensors.save(bits, {FORMAT: json.dumps(said, sort_keys=True)}))


def apply_mask(model: nn.Module, path: str | Path) -> nn.Module:
    """Set the weights to 0 that a mask file switches off, in place.

    Args:
        model: The one that the masks were learned over, with its weights as they were then.
        path: A file by `MaskTuning.save` or of a run with `r-amt`, `mask.safetensors`.

    Returns:
        The model, an ordinary one.

    Raises:
        InputError: the file is missing or no mask file, or its masks are of another model; the
            model is then as it was.
    """
    masks, said = _read(path)
    known = dict(model.named_parameters(remove_duplicate=False))
    other = f"the masks of {path} are of another model: this one "
    for name, mask in masks.items():
        if name not in known:
            raise InputError(f"{other}has no weight {name!r}")
        if known[name].shape != mask.shape:
            own, theirs = tuple(known[name].shape), tuple(mask.shape)
            raise InputError(f"{other}has {name!r} of the shape {own}, not {theirs}")
        if str(known[name].dtype) != said["dtypes"][name]:
            raise InputError(
                f"the masks of {path} were learned over {name!r} in {said['dtypes'][name]}, and "
                f"here it is of {known[name].dtype}: apply them in that, then convert"
            )
    if fingerprint({name: known[name] for name in masks}) != said["fingerprint"]:
        raise InputError(
            f"{other}has weights of those names and shapes with other values: load the model that "
            "the masks were learned over, before any training"
        )
    with torch.no_grad():
        for name, mask in masks.items():
            known[name].mul_(mask.to(known[name]))
    return model


def _read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    safetensors = require("safetensors", "cli")
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            said = (file.metadata() or {}).get(FORMAT)
            bits = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise InputError(f"there is no mask file {path}") from error
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"cannot read the mask file {path}: {error}") from error
    if said is None:
        raise InputError(f"{path} is a safetensors file without masks: give a mask.safetensors")
    try:
        about = json.loads(said)
        of = {name: (about["shapes"][name], about["dtypes"][name]) for name in bits}
        print_of_weights = about["fingerprint"]
    except (ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"{path} does not say what its masks are of: it is damaged, write it anew"
        ) from error
    masks = {name: unpack_mask(bits[name], shape) for name, (shape, _) in of.items()}
    dtypes = {name: dtype for name, (_, dtype) in of.items()}
    return masks, {"dtypes": dtypes, "fingerprint": print_of_weights}
