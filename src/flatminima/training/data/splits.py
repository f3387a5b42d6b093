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


GROUPS = 10
"""Groups of labels that are numbers, at most, each of which a choice takes its share of."""


def strata(targets: NDArray[Any], size: int, classes: Sequence[str]) -> Targets:
    """The groups of which a choice of `size` takes its share: classes; of numbers, tenths by rank.

    Args:
        targets: Class indices, or numbers where there are no classes; shape (n,).
        size: How many are to be chosen.
        classes: Names of the classes; empty for numbers.
    """
    if classes:
        return targets
    samples = len(targets)
    groups = max(1, min(GROUPS, size, samples - size, samples // 2))
    ranks = np.empty(samples, dtype=np.int64)
    ranks[np.argsort(targets, kind="stable")] = np.arange(samples)
    return ranks * groups // max(samples, 1)


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
        if count < 1 + spare and not classes:
            raise InputError(
                f"{count} samples are too few to be split: add samples, or bring the split yourself"
            )
        if count < 1 + spare:
            numbers = all(name.removeprefix("-").isdecimal() for name in classes)
            hint = "; if the labels are numbers to predict, say --task regression"
            raise InputError(
                f"class {classes[label]!r} has too few samples ({count}) to be split: it needs at "
                f"least {1 + spare}; add samples, remove the class, or bring the split yourself"
                f"{hint if numbers else ''}"
            )
    most = counts - spare
    size = int(np.clip(size, len(present), most.sum()))
    chosen = [
        rng.permutation(np.flatnonzero(targets == label))[:taken]
        for label, taken in zip(present, allocate(counts, size, most), strict=True)
    ]
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def cut(
    targets: NDArray[Any], fraction: float, classes: Sequence[str], rng: np.random.Generator
) -> tuple[Indices, Indices]:
    """Divide the examples into (rest, part), the part holding about `fraction` of every class.

    Each class keeps at least one example on both sides. Of targets that are numbers (no classes)
    each tenth by rank has its share.

    Returns:
        Two sorted, disjoint arrays of indices that together are all of them.

    Raises:
        InputError: a class has fewer than two examples.
    """
    size = round(fraction * len(targets))
    part = pick(strata(targets, size, classes), size, classes, rng, spare=1)
    rest = np.setdiff1d(np.arange(len(targets)), part)
    return rest, part


def subsample(
    targets: NDArray[Any], size: int, classes: Sequence[str], rng: np.random.Generator
) -> Indices:
    """Choose exactly `size` training examples, each class in its proportion and at least once.

    Raises:
        InputError: there are fewer than `size` examples, or more classes than `size`.
    """
    present = len(np.unique(targets)) if classes else 1
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
    return pick(strata(targets, size, classes), size, classes, rng, spare=0)
