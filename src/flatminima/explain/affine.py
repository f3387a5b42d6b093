"""What an affine step of a pipeline does to its inputs, as a matrix and an offset."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from flatminima.errors import InputError, require
from flatminima.explain.tilting import Floats


def affine_map(step: Any, name: str, count: int) -> tuple[Floats, Floats]:
    """A and c of a fitted step x -> x A + c, found by asking it, and checked on other points.

    Args:
        step: A transformer of scikit-learn.
        name: What messages call it.
        count: How many features it takes, d.

    Returns:
        A of shape (d, k) and c of shape (k,), in the units of the step's outputs.

    Raises:
        InputError: it is not affine, or does not take all numbers.
    """
    names = getattr(step, "feature_names_in_", None)
    as_fitted: Callable[[Floats], Any] = np.asarray
    if names is not None:
        # Columns may be chosen by name, and scikit-learn warns of what has none.
        as_fitted = partial(require("pandas", "tables").DataFrame, columns=names)

    def ask(points: Floats) -> Floats:
        try:
            found = step.transform(as_fitted(points))
        except (TypeError, ValueError) as error:
            raise InputError(
                f"the step {name} does not take all numbers, so it is not affine ({error}): give "
                "the samples as they are behind it, and the last estimator alone"
            ) from error
        dense = found.toarray() if hasattr(found, "toarray") else found
        return np.asarray(dense, dtype=np.float64)

    offset = ask(np.zeros((1, count)))[0]
    matrix = ask(np.eye(count)) - offset
    points = 10.0 ** np.arange(-1, 4)[:, None] * np.random.default_rng(0).normal(size=(5, count))
    expected = points @ matrix + offset
    if not np.allclose(ask(points), expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max()):
        raise InputError(
            f"the step {name} is not affine, so the pipeline is not linear in its inputs: give the "
            "samples as they are behind it, and the last estimator alone"
        )
    return matrix, offset
