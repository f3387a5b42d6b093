"""Features on a common scale."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flatminima.training.data.examples import Examples


def standardize(train: Examples, others: Sequence[Examples]) -> tuple[Examples, list[Examples]]:
    """Shift and scale every feature to mean 0 and standard deviation 1 on the training examples.

    A feature that is constant on the training examples is shifted only.
    """
    features = np.asarray(train.inputs, dtype=np.float64)
    mean = features.mean(axis=0)
    deviation = features.std(axis=0)
    # Rounding gives a constant feature a tiny deviation, which must not be divided by.
    deviation[deviation <= 1e-12 * np.maximum(np.abs(mean), 1e-300)] = 1.0

    def scaled(examples: Examples) -> Examples:
        moved = (np.asarray(examples.inputs, dtype=np.float64) - mean) / deviation
        return Examples(moved.astype(np.float32), examples.targets, examples.domains)

    return scaled(train), [scaled(examples) for examples in others]
