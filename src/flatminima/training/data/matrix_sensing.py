"""Matrix sensing: a matrix of low rank, known by inner products with random ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flatminima.errors import InputError, unknown
from flatminima.progress import Progress
from flatminima.training.brackets import parse_brackets
from flatminima.training.data.examples import Examples, Raw
from flatminima.training.data.spec import DataSpec
from flatminima.training.data.streams import stream

SETTING = {"d": 100, "rank": 5, "measurements": 2500}


def load(spec: DataSpec, seed: int, progress: Progress) -> Raw:
    r"""Measurements $y_i = \langle A_i, X^* \rangle$ of $X^* = U U^\top$, $U$ of shape (d, rank).

    $A_i = (G_i + G_i^\top) / 2$ with $G_i$ and $U$ of standard normal entries. An input is the
    upper triangle of $A_i$ row by row, off-diagonal entries doubled, so that its product with
    that of a symmetric X is $\langle A_i, X \rangle$; float32, shape
    (n, d (d + 1) / 2). As many fresh measurements are there to test on; their mean squared residual
    over the mean squared target estimates $\|X - X^*\|_F^2 / \|X^*\|_F^2$, which is also what it
    is over all A.

    Written `matrix-sensing(d=40;rank=2;measurements=400)`; the default is 100, 5 and 2500.

    Raises:
        InputError: a size is no positive whole number, or the rank is above d.
    """
    d, rank, count = setting_of(spec.data)
    progress("drawing measurements", 0, 1)
    numbers = stream(seed, "matrix-sensing")
    factor = numbers.standard_normal((d, rank))
    truth = factor @ factor.T
    upper = np.triu_indices(d)

    def measured() -> Examples:
        inputs = np.stack([_measurement(numbers, d, upper) for _ in range(count)])
        targets = inputs.astype(np.float64) @ truth[upper]
        return Examples(inputs, targets.astype(np.float32))

    splits = {"train": measured(), "test": measured()}
    progress("drawing measurements", 1, 1)
    return Raw(
        name="matrix-sensing",
        kind="measurement",
        classes=(),
        splits=splits,
        validation_fraction=0.0,
        details={
            "d": d,
            "rank": rank,
            "nuclear_norm": float(np.trace(truth)),
            "frobenius_norm": float(np.linalg.norm(truth)),
        },
        task="matrix-sensing",
    )


def _measurement(
    numbers: np.random.Generator, d: int, upper: tuple[NDArray[np.intp], ...]
) -> NDArray[np.float32]:
    g = numbers.standard_normal((d, d))
    # <A, X> = sum of A's diagonal times X's, and twice that of the upper triangle.
    doubled = (g + g.T)[upper]
    doubled[upper[0] == upper[1]] /= 2
    return doubled.astype(np.float32)


def setting_of(asked: str) -> tuple[int, int, int]:
    """d, rank and the number of measurements, as in brackets.

    Raises:
        InputError: as `load`.
    """
    _, given = parse_brackets(asked)
    sizes = {**SETTING, **given}
    for name, value in sizes.items():
        if name not in SETTING:
            raise unknown("option of matrix-sensing", name, SETTING)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(f"matrix-sensing's {name} is {value!r}: give a positive whole number")
    if sizes["rank"] > sizes["d"]:
        raise InputError(f"a matrix of {sizes['d']} rows has no rank of {sizes['rank']}")
    return sizes["d"], sizes["rank"], sizes["measurements"]
