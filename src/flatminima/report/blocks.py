"""What sections are made of: figures, tables, galleries; words are escaped where they are drawn."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

PALETTE = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#8A7A00",
    "#7F7F7F",
)
"""Told apart by the colour-blind, and seen on white and on black (after Okabe and Ito, 2008)."""

MARKERS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "x", "pentagon")

PATTERNS = ("", "/", "\\", "x", "-", "|", "+", ".")
"""Of bars, which have no markers."""

DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")

DIGITS = 5
"""Significant digits of numbers in figures: more than a screen shows."""


@dataclass(frozen=True)
class Figure:
    """A plot, drawn by plotly in the page.

    Attributes:
        title: Above it.
        caption: Below it: what is drawn, with which errors.
        data: Plotly's traces; their words went through `plain`.
        layout: Plotly's layout, without fonts and colours, which are the page's.
        height: In pixels.
        wide: Whether it takes the whole width.
    """

    title: str
    caption: str
    data: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any] = field(default_factory=dict)
    height: int = 340
    wide: bool = False

    kind = "figure"


@dataclass(frozen=True)
class Cell:
    """A table's cell.

    Attributes:
        text: What it says.
        value: What it is sorted by; None sorts last.
    """

    text: str
    value: float | str | None = None


@dataclass(frozen=True)
class Table:
    """A table whose columns sort.

    Attributes:
        caption: What it is.
        headers: One a column; the first column is the rows' names.
        rows: The cells.
        notes: Below it.
    """

    caption: str
    headers: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()

    kind = "table"


@dataclass(frozen=True)
class Tabs:
    """Views of one thing, of which one is seen at a time.

    Attributes:
        label: What they are views of.
        views: Name to what is shown.
    """

    label: str
    views: Mapping[str, Sequence[Block]]

    kind = "tabs"


@dataclass(frozen=True)
class Sample:
    """A sample of the data, as people see it.

    Attributes:
        text: Its text; "" for an image.
        image: A `data:image/png` address; "" for a text.
        lines: What is to be said of it.
    """

    text: str
    image: str
    lines: Sequence[str]


@dataclass(frozen=True)
class Gallery:
    """Samples side by side.

    Attributes:
        title: Above them.
        caption: What they are.
        samples: In this order.
    """

    title: str
    caption: str
    samples: Sequence[Sample]

    kind = "gallery"


@dataclass(frozen=True)
class Text:
    """Paragraphs.

    Attributes:
        lines: One each.
    """

    lines: Sequence[str]

    kind = "text"


@dataclass(frozen=True)
class Code:
    """Something to copy.

    Attributes:
        title: Above it.
        text: It.
        file: The name it may be saved under; "" for none.
    """

    title: str
    text: str
    file: str = ""

    kind = "code"


Block = Figure | Table | Tabs | Gallery | Text | Code


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        key: Its address in the page.
        title: Above it.
        blocks: What it shows, in this order.
    """

    key: str
    title: str
    blocks: Sequence[Block]


def plain(text: object) -> str:
    """Words for plotly, which reads some tags and entities in all its words."""
    return html.escape(str(text), quote=False)


def colour(index: int) -> str:
    """The colour of the method with this index."""
    return PALETTE[index % len(PALETTE)]


def faint(hex_colour: str, alpha: float) -> str:
    """A colour of the palette, let through."""
    red, green, blue = (int(hex_colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha:g})"


def numbers(values: Iterable[float | None], digits: int = DIGITS) -> list[float | None]:
    """Rounded to what is seen; None where there is no finite number."""
    return [None if v is None or not math.isfinite(v) else float(f"{v:.{digits}g}") for v in values]
