"""Stratified, seeded choices of examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flatminima.errors import InputError
from flatminima.training.data.examples import Targets

Indices = NDArray[np.int64]

SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
"""What files and folders of each split are usually called."""


def allocate(
    counts: NDArray[np.integer[Any]], size: int, most: NDArray[np.integer[Any]]
) -> Indices:
    """Share `size` among the classes in proportion to `counts`, largest remainders, 1 at least.

    Args:
        counts: Examples per class, shape (K,), all positive.
        size: How many to share out, from K to the sum of `most`.
        most: The most a class can give, shape (K,), all positive.

    Returns:
        The number taken from each class, int64, shape (K,), summing to `size`.
    """
    quota = counts * (size / counts.sum())
    taken: Indices = np.clip(np.floor(quota).astype(np.int64), 1, most)
    # The class furthest below (or above) its quota goes first; ties to the lowest index.
    while (missing := size - int(taken.sum())) != 0:
        step = 1 if missing > 0 else -1
        movable = taken < most if step > 0 else taken > 1
        need = np.where(movable, step * (quota - taken), -np.inf)
        taken[int(np.argmax(need))] += step
    return taken


def pick(
    targets: Targets, size: int, classes: Sequence[str], rng: np.random.Generator, *, spare: int
) -> Indices:
    """Choose `size` examples, each class in its proportion and at least once.

    Args:
        targets: Class indices, shape (n,).
        size: How many to choose; raised to one per class, lowered to what may be taken.
        classes: Names of the classes, for the error.
        rng: The source of randomness.
        spare: How many of each class must be left over.

    Returns:
        Sorted indices into `targets`, int64.

    Raises:
        InputError: a class has too few examples.
    """
    present, counts = np.unique(targets, return_counts=True)
    for label, count in zip(present, counts, strict=True):
        if count < 1 + spare:
            raise InputError(
                f"class {classes[label]!r} has too few samples ({count}) to be split: it needs at "
                f"least {1 + spare}; add samples, remove the class, or bring the split yourself"
            )
    most = counts - spare
    size = int(np.clip(size, len(present), most.sum()))
    chosen = [
        rng.permutation(np.flatnonzero(targets == label))[:taken]
        for label, taken in zip(present, allocate(counts, size, most), strict=True)
    ]
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def cut(
    targets: Targets, fraction: float, classes: Sequence[str], rng: np.random.Generator
) -> tuple[Indices, Indices]:
    """Divide the examples into (rest, part), the part holding about `fraction` of every class.

    Each class keeps at least one example on both sides.

    Returns:
        Two sorted, disjoint arrays of indices that together are all of them.

    Raises:
        InputError: a class has fewer than two examples.
    """
    part = pick(targets, round(fraction * len(targets)), classes, rng, spare=1)
    rest = np.setdiff1d(np.arange(len(targets)), part)
    return rest, part


def subsample(
    targets: Targets, size: int, classes: Sequence[str], rng: np.random.Generator
) -> Indices:
    """Choose exactly `size` training examples, each class in its proportion and at least once.

    Raises:
        InputError: there are fewer than `size` examples, or more classes than `size`.
    """
    present = len(np.unique(targets))
    if size > len(targets):
        raise InputError(
            f"train_size is {size}, but there are only {len(targets)} training examples: "
            "ask for fewer (--train-size), or keep less for validation and test"
        )
    if size < present:
        raise InputError(
            f"train_size is {size}, but there are {present} classes: "
            "give at least one example per class (--train-size)"
        )
    return pick(targets, size, classes, rng, spare=0)
