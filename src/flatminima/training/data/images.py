"""Images: finding the bad ones before a run, and decoding the good ones during it."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flatminima.errors import InputError, require
from flatminima.progress import Progress
from flatminima.training.data.spec import OnBadFile

SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
SHOWN = 5


def sound(
    images: Sequence[Path | bytes],
    names: Sequence[str],
    on_bad_file: OnBadFile,
    progress: Progress,
) -> tuple[NDArray[np.int64], list[dict[str, str]]]:
    """Decode every image once, so that a bad one is found before the training and not during it.

    Args:
        images: Files, or encoded bytes.
        names: How to call each in a report.
        on_bad_file: "stop" at bad images, or "skip" them.
        progress: Called after each image.

    Returns:
        The indices of the images that can be read, and the others as {"file": name, "reason": why}.

    Raises:
        InputError: some cannot be read, and `on_bad_file` is "stop"; or none can.
    """
    require("PIL", "vision")
    skipped: list[dict[str, str]] = []
    good: list[int] = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for index, reason in enumerate(pool.map(fault, images)):
            if reason is None:
                good.append(index)
            else:
                skipped.append({"file": names[index], "reason": reason})
            progress("checking images", index + 1, len(images))
    if skipped and (on_bad_file == "stop" or not good):
        listed = ", ".join(f"{bad['file']} ({bad['reason']})" for bad in skipped[:SHOWN])
        more = f" and {len(skipped) - SHOWN} more" if len(skipped) > SHOWN else ""
        mend = "replace them, or leave them out by --on-bad-file skip" if good else "replace them"
        raise InputError(
            f"{len(skipped)} of {len(images)} images cannot be read: {listed}{more}; {mend}"
        )
    return np.array(good, dtype=np.int64), skipped


def fault(image: Path | bytes) -> str | None:
    """Why an image cannot be decoded, or None where it can."""
    try:
        size = len(image) if isinstance(image, bytes) else image.stat().st_size
        if size == 0:
            return "zero bytes"
        decode(image)
    except FileNotFoundError:
        return "missing"
    except PermissionError:
        return "no permission to read it"
    # Pillow's readers raise what their parsers raise: OSError, SyntaxError, struct.error, ...
    except Exception as error:
        unknown_format = type(error).__name__ == "UnidentifiedImageError"
        return "not an image" if unknown_format else "corrupt: " + _one_line(error)
    return None


def decode(image: Path | bytes) -> Any:
    """The image upright, in RGB, as a PIL image. 16-bit gray is scaled to 8 bits, not clipped."""
    pillow = require("PIL.Image", "vision")
    with pillow.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
        opened.load()
        upright = require("PIL.ImageOps", "vision").exif_transpose(opened)
    if upright.mode.startswith("I;16"):
        upright = pillow.fromarray((np.asarray(upright) / 257.0).round().astype(np.uint8))
    return upright.convert("RGB")


def resize(image: Any, size: int | None) -> Any:
    """Scale the shorter side to `size`, then cut the square in the middle. None: as it is."""
    if size is None:
        return image
    scaled = _shorter_side(image, size)
    left, top = (scaled.width - size) // 2, (scaled.height - size) // 2
    return scaled.crop((left, top, left + size, top + size))


def shrink(image: Any, side: int) -> Any:
    """Scale the shorter side down to `side`; an image that is smaller stays as it is."""
    return image if min(image.size) <= side else _shorter_side(image, side)


def pixels(image: Any) -> NDArray[np.float32]:
    """Float32 in [0, 1], shape (3, h, w)."""
    channels_last = np.asarray(image, dtype=np.float32) / np.float32(255)
    return np.ascontiguousarray(channels_last.transpose(2, 0, 1))


def _shorter_side(image: Any, side: int) -> Any:
    scale = side / min(image.size)
    width, height = (max(side, round(length * scale)) for length in image.size)
    bilinear = require("PIL.Image", "vision").Resampling.BILINEAR
    return image.resize((width, height), bilinear)


def _one_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
