"""The fonts of this machine that draw the Latin letters, in families told apart by their shapes."""

from __future__ import annotations

import functools
import importlib.util
import os
import string
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mode
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from flatminima.errors import require

LETTERS = string.ascii_uppercase + string.ascii_lowercase
CASE = 26
SUFFIXES = (".otf", ".ttc", ".ttf")
MOST_FILES = 300
DRAWN = 48
"""Pixels of an em, from which letters are scaled down."""

SIDE = 16
READS = 0.25
NEAR = 0.92
"""Families with fonts this alike (correlation of ink, mean over letters) count as one."""

Shapes: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class Font:
    """A font and how it calls itself.

    Attributes:
        family: Its family.
        style: Its style: Regular, Bold, ...
        face: The `PIL.ImageFont.FreeTypeFont`.
    """

    family: str
    style: str
    face: Any


@dataclass(frozen=True)
class Found:
    """What the machine has.

    Attributes:
        families: Name to fonts, in the order of names.
        left_out: The names of fonts that do not draw the letters.
    """

    families: Mapping[str, tuple[Font, ...]]
    left_out: tuple[str, ...]


def find() -> tuple[Path, ...]:
    """Files of fonts: those that matplotlib brings, then those of the usual folders, sorted.

    Of more than `MOST_FILES`, evenly spaced ones.
    """
    brought = importlib.util.find_spec("matplotlib")
    folders = _system_folders()
    if brought is not None and brought.origin is not None:
        folders.insert(0, Path(brought.origin).parent / "mpl-data/fonts/ttf")
    files = [file for folder in folders for file in sorted(_fonts_in(folder))]
    files = list(dict.fromkeys(files))
    return tuple(files[:: -(-len(files) // MOST_FILES) or 1])


@functools.lru_cache(maxsize=1)
def read(files: tuple[Path, ...]) -> Found:
    """Open fonts, leave out what draws no letters, and gather the rest in families.

    Pillow's own font is added. Of fonts that name themselves alike the first is kept. A symbol font
    is known by its shapes: of a letter's, in each case, less than a quarter are nearest to what the
    other families draw for that letter. Families whose fonts nearly coincide count as one, under
    the name of most: many fonts are copies under another name.

    Raises:
        InputError: pillow is not installed.
    """
    image_font = require("PIL.ImageFont", "cli")
    opened: dict[tuple[str, str], Font] = {}
    shapes: dict[tuple[str, str], Shapes] = {}
    left_out: set[str] = set()
    for file in (*files, None):
        try:
            # One layout engine for all machines: the other is not always there.
            face = (
                image_font.load_default(DRAWN)
                if file is None
                else image_font.truetype(file, DRAWN, layout_engine=image_font.Layout.BASIC)
            )
            family, style = (word or "unnamed" for word in face.getname())
            drawn = _shapes(face)
        except (OSError, ValueError):  # no font after all, or one of bitmaps
            continue
        name = (family, style)
        if drawn is None:
            left_out.add(" ".join(name))
        elif name not in opened:
            opened[name], shapes[name] = Font(family, style, face), drawn
    for name in _symbols(shapes):
        del opened[name], shapes[name]
        left_out.add(" ".join(name))
    return Found(_families(opened, shapes), tuple(sorted(left_out)))


def ink(face: Any, letter: str) -> Any:
    """A letter in white on black, as a gray PIL image without margins; None where it is blank."""
    left, top, right, bottom = face.getbbox(letter)
    if right <= left or bottom <= top:
        return None
    image = require("PIL.Image", "cli").new("L", (int(right - left), int(bottom - top)))
    require("PIL.ImageDraw", "cli").Draw(image).text((-left, -top), letter, fill=255, font=face)
    return image


def _system_folders() -> list[Path]:
    home = Path.home()
    if sys.platform == "darwin":
        return [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library/Fonts"]
    if sys.platform == "win32":
        own = Path(os.environ.get("LOCALAPPDATA", home)) / "Microsoft/Windows/Fonts"
        return [Path(os.environ.get("WINDIR", "C:/Windows")) / "Fonts", own]
    shared = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
    folders = [Path(folder) / "fonts" for folder in shared.split(":") if folder]
    own = Path(os.environ.get("XDG_DATA_HOME") or home / ".local/share") / "fonts"
    return [*folders, own, home / ".fonts"]


def _fonts_in(folder: Path) -> list[Path]:
    return [
        Path(inside, name)
        for inside, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(SUFFIXES)
    ]


def _shapes(face: Any) -> Shapes | None:
    """Each letter stretched to one square, mean 0 and norm 1, (52, 256); None if some are blank."""
    box = require("PIL.Image", "cli").Resampling.BOX
    rows = []
    for letter in LETTERS:
        drawn = ink(face, letter)
        if drawn is None:
            return None
        pixels = np.asarray(drawn.resize((SIDE, SIDE), box), dtype=np.float64).ravel()
        pixels -= pixels.mean()
        rows.append(pixels / max(float(np.linalg.norm(pixels)), 1e-12))
    return np.stack(rows)


def _symbols(shapes: Mapping[tuple[str, str], Shapes]) -> list[tuple[str, str]]:
    by_family: dict[str, list[Shapes]] = {}
    for (family, _), drawn in shapes.items():
        by_family.setdefault(family, []).append(drawn)
    means = {family: np.mean(drawn, axis=0) for family, drawn in by_family.items()}
    total = np.sum(list(means.values()), axis=0)
    found = []
    for name, drawn in shapes.items():
        others = total - means[name[0]]
        others /= np.maximum(np.linalg.norm(others, axis=1, keepdims=True), 1e-12)
        for case in (slice(0, CASE), slice(CASE, 2 * CASE)):
            nearest = (drawn[case] @ others[case].T).argmax(axis=1)
            if len(means) > 1 and np.mean(nearest == np.arange(CASE)) < READS:
                found.append(name)
                break
    return found


def _families(
    opened: Mapping[tuple[str, str], Font], shapes: Mapping[tuple[str, str], Shapes]
) -> dict[str, tuple[Font, ...]]:
    names = sorted(opened)
    if not names:
        return {}
    flat = np.stack([shapes[name].ravel() for name in names])
    alike = flat @ flat.T / len(LETTERS)
    first = {family: family for family, _ in names}
    for one, other in zip(*np.nonzero(np.triu(alike >= NEAR, 1)), strict=True):
        kept, merged = sorted((first[names[one][0]], first[names[other][0]]))
        first = {family: kept if at == merged else at for family, at in first.items()}
    gathered: dict[str, list[Font]] = {}
    for name in names:
        gathered.setdefault(first[name[0]], []).append(opened[name])
    commonest = {mode(font.family for font in fonts): tuple(fonts) for fonts in gathered.values()}
    return dict(sorted(commonest.items()))


def described(families: Mapping[str, Sequence[Font]]) -> dict[str, list[str]]:
    """Family to the full names of its fonts."""
    return {
        family: [f"{font.family} {font.style}" for font in members]
        for family, members in families.items()
    }
