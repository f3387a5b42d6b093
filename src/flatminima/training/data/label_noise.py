"""Symmetric label noise."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from flatminima.training.data.examples import Targets


def add_label_noise(
    targets: Targets, rate: float, classes: int, rng: np.random.Generator
) -> tuple[Targets, dict[str, Any]]:
    """Give floor(rate n) targets, chosen without replacement, a uniform label over all K classes.

    A drawn label may be the old one, so the expected part of labels that truly change is
    rate (K - 1) / K; the part that did is in the report.

    Args:
        targets: Class indices, shape (n,); left as they are.
        rate: Part of the labels drawn anew, in [0, 1].
        classes: The number of classes K.
        rng: The source of randomness.

    Returns:
        The noisy targets, int64, shape (n,), and a report: the rate `requested`, the number
        `redrawn`, the number `changed`, and `true_rate`, changed / n.
    """
    # 0.29 * 100 is 28.999999999999996 in binary floating point; the user meant 29.
    redrawn = math.floor(rate * len(targets) + 1e-9)
    chosen = rng.choice(len(targets), size=redrawn, replace=False)
    noisy = targets.copy()
    noisy[chosen] = rng.integers(classes, size=redrawn)
    changed = int((noisy != targets).sum())
    return noisy, {
        "requested": rate,
        "redrawn": redrawn,
        "changed": changed,
        "true_rate": changed / max(len(targets), 1),
    }
