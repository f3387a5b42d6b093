"""A sum of cosines, on which what the theory of noisy gradients says can be computed."""

from __future__ import annotations

import numpy as np

from flatminima.errors import InputError, unknown
from flatminima.progress import Progress
from flatminima.training.brackets import parse_brackets
from flatminima.training.data.examples import Examples, Raw
from flatminima.training.data.spec import DataSpec
from flatminima.training.data.streams import stream

SETTING = {"d": 20, "terms": 20}


def load(spec: DataSpec, seed: int, progress: Progress) -> Raw:
    r"""The terms of $f(w) = \frac1n \sum_j c_j \cos(a_j^\top w)$.

    An input is $a_j$, float32, shape (n, d), of normal entries with variance 1/d; its target is the
    coefficient $c_j$, normal, scaled such that $\frac1n \sum_j |c_j| \|a_j\|^2 = 1$: the gradient's
    Lipschitz constant is at most 1. Written `cosines(d=20;terms=20)`. There is nothing to test on
    but the function itself, so the validation and test sets are the training set. The report's
    details have `range`, the most by which f, or f under noise, can be above its minimum.

    Raises:
        InputError: a size is no positive whole number.
    """
    sizes = setting_of(spec.data)
    numbers = stream(seed, "cosines")
    shape = (sizes["terms"], sizes["d"])
    terms = (numbers.standard_normal(shape) / np.sqrt(sizes["d"])).astype(np.float32)
    coefficients = numbers.standard_normal(shape[0])
    coefficients /= np.mean(np.abs(coefficients) * np.square(terms).sum(axis=1))
    examples = Examples(terms, coefficients.astype(np.float32))
    return Raw(
        name="cosines",
        kind="measurement",
        classes=(),
        splits={"train": examples, "validation": examples, "test": examples},
        details={"range": float(2 * np.abs(coefficients).mean())},
        task="cosines",
    )


def setting_of(asked: str) -> dict[str, int]:
    """The options in brackets, those that are left out as by default.

    Raises:
        InputError: as `load`.
    """
    _, given = parse_brackets(asked)
    for name, value in given.items():
        if name not in SETTING:
            raise unknown("option of cosines", name, SETTING)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(f"the {name} of cosines is {value!r}: give a positive whole number")
    return {**SETTING, **given}
