"""Letters drawn by the fonts of this machine: lower case first, then capitals in other fonts."""

from __future__ import annotations

import functools
import string
from collections.abc import Sequence
from typing import Any

import numpy as np

from flatminima.errors import InputError, require
from flatminima.progress import Progress
from flatminima.training.data import fonts
from flatminima.training.data.examples import Examples, Raw
from flatminima.training.data.spec import DataSpec
from flatminima.training.data.splits import allocate
from flatminima.training.data.streams import stream

PARTS = {"source": 40, "train": 20, "validation": 10, "test": 40}
"""Images of each letter."""

SHARES = (8, 5, 2, 5)
"""How the families of fonts are shared out among the parts."""

FEWEST = 8
SIDE, FINE = 16, 4
SMALLEST, LARGEST = 0.65, 0.85
DEGREES, SHIFT = 10.0, 1.0
"""An image is turned by up to so many degrees and shifted by up to so many pixels."""


def load(spec: DataSpec, seed: int, progress: Progress) -> Raw:
    """Pretrain on 1,040 small letters, train on 520 capitals, choose by 260, test on 1,040.

    Each part has families of fonts to itself (8 : 5 : 2 : 5), so training tells nothing of the
    fonts of the test; the seed deals them out. An image is of a family drawn uniformly, then of one
    of its fonts (weights, slants, widths), the longer side of the letter 65 to 85 % of the image,
    turned by up to 10 degrees and shifted by up to a pixel. Inputs are float32 in [0, 1], ink 1,
    shape (n, 1, 16, 16). Both tasks have 26 classes, a letter under the same index.

    The same machine gives the same data. Another has other fonts, unless both have matplotlib's and
    no more: what was used is in the report.

    Raises:
        InputError: there are fewer than eight families of fonts, or pillow is not installed.
    """
    progress("reading fonts", 0, 1)
    found = fonts.read(fonts.find())
    names = list(found.families)
    if len(names) < FEWEST:
        raise InputError(
            f"glyphs needs {FEWEST} families of fonts with Latin letters, and this machine has "
            f"{len(names)} ({', '.join(names)}): install fonts, or matplotlib, which brings ten "
            "(pip install 'flatminima[plot]'), or choose another data set (--data)"
        )
    progress("reading fonts", 1, 1)
    everywhere = np.full(len(PARTS), len(names))
    counts = allocate(np.array(SHARES), len(names), everywhere)
    order = stream(seed, "glyph fonts").permutation(len(names))
    dealt = dict(zip(PARTS, np.split(order, np.cumsum(counts)[:-1]), strict=True))
    examples, used = {}, {}
    for done, (part, each) in enumerate(PARTS.items()):
        progress("drawing letters", done, len(PARTS))
        families = {names[index]: found.families[names[index]] for index in sorted(dealt[part])}
        used[part] = fonts.described(families)
        letters = string.ascii_lowercase if part == "source" else string.ascii_uppercase
        rng = stream(seed, f"glyphs {part}")
        examples[part] = _examples(letters, each, list(families.values()), rng)
    progress("drawing letters", len(PARTS), len(PARTS))
    source = examples.pop("source")
    return Raw(
        name="glyphs",
        kind="image",
        classes=tuple(string.ascii_uppercase),
        splits=examples,
        source=source,
        details={
            "origin": "letters drawn by the fonts of this machine",
            "source": "lower case, in fonts of their own",
            "fonts": used,
            "left_out": list(found.left_out),
            "pillow": require("PIL", "cli").__version__,
        },
    )


def _examples(
    letters: str, each: int, families: Sequence[Sequence[fonts.Font]], rng: np.random.Generator
) -> Examples:
    drawn = functools.cache(fonts.ink)
    images = np.empty((len(letters) * each, 1, SIDE, SIDE), dtype=np.float32)
    targets = np.repeat(np.arange(len(letters), dtype=np.int64), each)
    for place, target in enumerate(targets):
        members = families[int(rng.integers(len(families)))]
        font = members[int(rng.integers(len(members)))]
        images[place, 0] = _placed(drawn(font.face, letters[target]), rng)
    return Examples(images, targets)


def _placed(ink: Any, rng: np.random.Generator) -> Any:
    """The letter about the middle of an image: drawn finer than the image, then averaged."""
    pillow = require("PIL.Image", "cli")
    fine = SIDE * FINE
    scale = rng.uniform(SMALLEST, LARGEST) * fine / max(ink.size)
    angle = np.deg2rad(rng.uniform(-DEGREES, DEGREES))
    right, down = fine / 2 + FINE * rng.uniform(-SHIFT, SHIFT, size=2)
    # Where a pixel of the image comes from, as pillow asks for it.
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    back = (
        *(cos, sin, ink.width / 2 - cos * right - sin * down),
        *(-sin, cos, ink.height / 2 + sin * right - cos * down),
    )
    image = ink.transform(
        (fine, fine), pillow.Transform.AFFINE, back, resample=pillow.Resampling.BILINEAR
    )
    return np.asarray(image.reduce(FINE), dtype=np.float32) / np.float32(255)
