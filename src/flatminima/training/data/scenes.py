"""Rendered scenes: small pictures of shapes, with captions that say what is where."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flatminima.errors import InputError, unknown
from flatminima.progress import Progress
from flatminima.training.brackets import parse_brackets
from flatminima.training.data.examples import Captioned, Examples, Raw
from flatminima.training.data.spec import DataSpec
from flatminima.training.data.streams import stream

SIDE = 32
"""Pixels."""

TEST = 600
"""Scenes of the test set."""

SHAPES: dict[str, Callable[[NDArray[Any], NDArray[Any]], NDArray[np.bool_]]] = {
    "circle": lambda u, v: u**2 + v**2 < 1,
    "square": lambda u, v: np.maximum(abs(u), abs(v)) < 0.85,
    "triangle": lambda u, v: (v < 0.8) & (2 * abs(u) - v < 1),
    "diamond": lambda u, v: abs(u) + abs(v) < 1.1,
    "cross": lambda u, v: (np.minimum(abs(u), abs(v)) < 0.35) & (np.maximum(abs(u), abs(v)) < 1),
    "bar": lambda u, v: (abs(v) < 0.4) & (abs(u) < 1.1),
}
"""Whether a point is inside, in units of the shape's radius; v points down."""

COLOURS = {
    "red": (0.9, 0.15, 0.15),
    "green": (0.15, 0.75, 0.2),
    "blue": (0.2, 0.3, 0.95),
    "yellow": (0.95, 0.9, 0.2),
    "purple": (0.65, 0.15, 0.8),
    "white": (0.95, 0.95, 0.95),
}
RADII = {"small": 3.5, "large": 6.0}
PLACES = (
    ("at the top left", "at the top", "at the top right"),
    ("on the left", "in the middle", "on the right"),
    ("at the bottom left", "at the bottom", "at the bottom right"),
)
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
"""Where the first object is, from the second."""

STYLES = ("filled", "outlined")
CLASSES = tuple(f"{colour} {shape}" for shape in SHAPES for colour in COLOURS)
PROMPTS = tuple(f"a picture of a {name}" for name in CLASSES)
SETTING = {"images": 1000, "objects": 1, "novel": 2}
OF_CLASSES = {"shots": 4, "novel": 2, "style": "outlined", "source": 2000}


def novel_classes(count: int) -> tuple[int, ...]:
    """Classes whose combination of shape and colour is held out: `count` colours of each shape.

    The i-th shape lacks the colours i to i + count - 1 (modulo 6), so every colour is held out
    as often as every other. They are the same for all seeds.
    """
    colours = len(COLOURS)
    return tuple(
        i * colours + j for i in range(len(SHAPES)) for j in range(colours) if (j - i) % 6 < count
    )


def load(spec: DataSpec, seed: int, progress: Progress) -> Raw:
    """Pictures of one or two shapes with captions: a task of images and texts that fit.

    A shape has one of 6 forms and 6 colours, which make its class, one of 2 sizes and one of 9
    places; its place, size, angle and colour are a little random, and so is the noisy gray behind
    it. Training captions say so in one of three ways, or only "a picture of a red circle", drawn at
    random; test captions in the first way, so that scenes that are described alike have the same
    caption. With `objects=2` the caption names a large shape, of which the class is, and where it
    is from a small one.

    `novel` colours of each shape are never in training, neither alone nor in company; 600 test
    scenes have all classes, whose zero-shot prompts are as that of the red circle.
    Images are float32 in [0, 1], shape (n, 3, 32, 32). Written
    `scenes(images=1000;objects=1;novel=2)`, the default. No scenes are set aside for validation.

    Raises:
        InputError: an option that there is not, or out of its range.
    """
    objects, images, of_shape = setting_of(spec.data)
    novel = novel_classes(of_shape)
    numbers = stream(seed, "scenes")
    progress("drawing scenes", 0, 1)
    base = [c for c in range(len(CLASSES)) if c not in novel]
    train = _captioned(numbers, numbers.choice(base, images), base, objects, training=True)
    everything = list(range(len(CLASSES)))
    classes = numbers.permutation(np.resize(everything, TEST))
    test = _captioned(numbers, classes, everything, objects, training=False)
    progress("drawing scenes", 1, 1)
    return Raw(
        name="scenes",
        kind="captioned",
        classes=CLASSES,
        splits={"train": train, "test": test},
        validation_fraction=0.0,
        details={"objects": objects, "novel": [CLASSES[c] for c in novel]},
        task="contrastive",
        prompts=PROMPTS,
        novel=novel,
    )


def load_classes(spec: DataSpec, seed: int, progress: Progress) -> Raw:
    """A few scenes of each base class, to tune a model that was pretrained on captioned ones.

    The classes are those of `scenes`. There are `shots` training images of each class but the novel
    ones, drawn in the style "outlined" or "filled", and 600 test images of all classes. `source`
    filled scenes of all classes with captions are there to pretrain on: as for models that were
    pretrained on the web, what is novel is so to the tuning alone. Written
    `scene-classes(shots=4;novel=2;style=outlined;source=2000)`, the default.

    Raises:
        InputError: an option that there is not, or out of its range.
    """
    shots, of_shape, source, style = setting_of_classes(spec.data)
    novel, outlined = novel_classes(of_shape), style == "outlined"
    numbers = stream(seed, "scene-classes")
    progress("drawing scenes", 0, 1)
    everything = np.arange(len(CLASSES))

    def drawn(classes: NDArray[np.int64]) -> Examples:
        scenes = [_one(numbers, int(c)) for c in classes]
        pictures = np.stack([_picture(numbers, shapes, outlined) for shapes, _ in scenes])
        return Examples(pictures, classes)

    base = np.setdiff1d(everything, novel)
    splits = {
        "train": drawn(np.repeat(base, shots)),
        "test": drawn(numbers.permutation(np.resize(everything, TEST))),
    }
    pretraining = _captioned(
        numbers, numbers.choice(everything, source), list(everything), 1, training=True
    )
    progress("drawing scenes", 1, 1)
    return Raw(
        name="scene-classes",
        kind="image",
        classes=CLASSES,
        splits=splits,
        source=pretraining,
        validation_fraction=0.0,
        details={"shots": shots, "style": style, "novel": [CLASSES[c] for c in novel]},
        task="base-to-novel" if novel else "classification",
        prompts=PROMPTS,
        novel=novel,
    )


Shape = tuple[int, str, float, float]
"""Class, size, and the middle in pixels, (x, y)."""

Scene = tuple[list[Shape], tuple[str, str, str, str]]
"""What is in it, and four ways to say so, the last of which says less."""


def _captioned(
    numbers: np.random.Generator,
    classes: NDArray[np.int64],
    others: list[int],
    objects: int,
    *,
    training: bool,
) -> Examples:
    """Scenes of these classes; the second object of each is of one of `others`."""
    pictures, texts = [], []
    for main in classes.tolist():
        if objects == 1:
            shapes, said = _one(numbers, main)
        else:
            shapes, said = _two(numbers, main, int(numbers.choice(others)))
        pictures.append(_picture(numbers, shapes))
        texts.append(said[numbers.integers(len(said)) if training else 0])
    return Examples(Captioned(np.stack(pictures), texts), np.asarray(classes, dtype=np.int64))


def _one(numbers: np.random.Generator, main: int) -> Scene:
    size = ("small", "large")[numbers.integers(2)]
    column, row = (int(numbers.integers(3)) for _ in range(2))
    x, y = (8.0 + 8 * cell + numbers.uniform(-1.5, 1.5) for cell in (column, row))
    thing, place = f"{size} {CLASSES[main]}", PLACES[row][column]
    said = (
        f"a {thing} {place}",
        f"{place}, a {thing}",
        f"there is a {thing} {place}",
        PROMPTS[main],
    )
    return [(main, size, x, y)], said


def _two(numbers: np.random.Generator, main: int, second: int) -> Scene:
    relation = list(RELATIONS)[numbers.integers(4)]
    across, down = RELATIONS[relation]
    x, y = (16 + numbers.uniform(-3, 3, 2)).tolist()
    large, small = (x + 6 * across, y + 6 * down), (x - 7 * across, y - 7 * down)
    a, b = f"a {CLASSES[main]}", f"a {CLASSES[second]}"
    said = (
        f"{a} {relation} {b}",
        f"{a} is {relation} {b}",
        f"{relation} {b} there is {a}",
        PROMPTS[main],
    )
    return [(main, "large", *large), (second, "small", *small)], said


GRID = (np.arange(2 * SIDE) + 0.5) / 2
"""The middles of quarters of pixels, which are averaged where a pixel is on an edge."""


def _picture(
    numbers: np.random.Generator, shapes: list[Shape], outlined: bool = False
) -> NDArray[np.float32]:
    picture = np.full((3, SIDE, SIDE), numbers.uniform(0.1, 0.45))
    for class_index, size, x, y in shapes:
        name, colour = divmod(class_index, len(COLOURS))
        inside = list(SHAPES.values())[name]
        radius, angle = RADII[size] * numbers.uniform(0.9, 1.1), np.radians(numbers.uniform(-9, 9))
        right, down = np.meshgrid(GRID - x, GRID - y)
        u = (right * np.cos(angle) + down * np.sin(angle)) / radius
        v = (down * np.cos(angle) - right * np.sin(angle)) / radius
        mask = inside(u, v)
        if outlined:
            mask = mask & ~inside(u / 0.65, v / 0.65)
        cover = mask.reshape(SIDE, 2, SIDE, 2).mean(axis=(1, 3))
        paint = np.array(list(COLOURS.values())[colour]) + numbers.uniform(-0.08, 0.08, 3)
        picture += cover * (paint[:, None, None] - picture)
    picture += 0.06 * numbers.standard_normal(picture.shape)
    return picture.clip(0, 1).astype(np.float32)


def setting_of(asked: str) -> tuple[int, int, int]:
    """Objects, images and novel colours of a shape, as `load` has them in brackets.

    Raises:
        InputError: as `load`.
    """
    options = _options("scenes", asked, SETTING)
    return (
        _whole("scenes", "objects", options, 1, 2),
        _whole("scenes", "images", options, 2, 10**6),
        _whole("scenes", "novel", options, 0, 5),
    )


def setting_of_classes(asked: str) -> tuple[int, int, int, str]:
    """Shots, novel colours of a shape, size of the source, and style, as `load_classes` has them.

    Raises:
        InputError: as `load_classes`.
    """
    options = _options("scene-classes", asked, OF_CLASSES)
    style = str(options["style"])
    if style not in STYLES:
        raise unknown("style of scene-classes", style, STYLES)
    return (
        _whole("scene-classes", "shots", options, 1, 10**5),
        _whole("scene-classes", "novel", options, 0, 5),
        _whole("scene-classes", "source", options, 2, 10**6),
        style,
    )


def _options(name: str, asked: str, known: dict[str, Any]) -> dict[str, Any]:
    _, given = parse_brackets(asked)
    for option in given:
        if option not in known:
            raise unknown(f"option of {name}", option, known)
    return {**known, **given}


def _whole(name: str, option: str, options: dict[str, Any], least: int, most: int) -> int:
    value = options[option]
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InputError(
            f"{name}'s {option} is {value!r}: give a whole number from {least} to {most}"
        )
    return value
