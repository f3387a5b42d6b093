"""The 8x8 digits of scikit-learn at several angles: a domain for each."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flatminima.errors import require
from flatminima.progress import Progress
from flatminima.training.data.examples import Examples, Raw
from flatminima.training.data.spec import DataSpec
from flatminima.training.data.streams import stream

ANGLES = (0, 15, 30, 45, 60, 75)
"""In degrees, counter-clockwise; also the names of the domains."""


def load(spec: DataSpec, seed: int, progress: Progress) -> Raw:
    """All 1797 digits, about 300 at each of six angles, so that no digit is in two domains.

    The seed decides which digit is turned how far, each class alike. Inputs are float32 in [0, 1],
    shape (n, 1, 8, 8), turned about their centre with bilinear interpolation. To be used with
    `test_domain`; without it, the test set is cut from all domains.

    As Rotated MNIST (Ghifary et al., 2015, arXiv 1508.07680), of smaller digits.

    Raises:
        InputError: scikit-learn is not installed.
    """
    progress("turning digits", 0, 1)
    bunch = require("sklearn.datasets", "cli").load_digits()
    images = (bunch.images[:, None] / 16.0).astype(np.float32)
    targets = bunch.target.astype(np.int64)
    numbers = stream(seed, "rotated-digits")
    domains = np.empty(len(targets), dtype=np.int64)
    start = 0
    for label in np.unique(targets):
        own = numbers.permutation(np.flatnonzero(targets == label))
        # Each class goes on where the one before ended, so that the domains are as large.
        domains[own] = (start + np.arange(len(own))) % len(ANGLES)
        start += len(own)
    for place, angle in enumerate(ANGLES):
        images[domains == place] = turned(images[domains == place], angle)
    progress("turning digits", 1, 1)
    return Raw(
        name="rotated-digits",
        kind="image",
        classes=tuple(str(digit) for digit in range(10)),
        splits={"train": Examples(images, targets, domains)},
        validation_fraction=0.0,
        details={"origin": "scikit-learn load_digits", "degrees": list(ANGLES)},
        domains=tuple(str(angle) for angle in ANGLES),
    )


def turned(images: NDArray[np.float32], degrees: float) -> NDArray[np.float32]:
    """Images turned counter-clockwise about their centre; what comes in from outside is 0.

    Args:
        images: Shape (n, c, h, h).
        degrees: How far.
    """
    import torch

    angle = np.deg2rad(degrees)
    cosine, sine = float(np.cos(angle)), float(np.sin(angle))
    # Rows point down, so this looks up each pixel where it was before the turn.
    back = torch.tensor([[cosine, -sine, 0.0], [sine, cosine, 0.0]])
    batch = torch.from_numpy(images)
    grid = torch.nn.functional.affine_grid(
        back.expand(len(batch), 2, 3), list(batch.shape), align_corners=False
    )
    found = torch.nn.functional.grid_sample(batch, grid, align_corners=False)
    moved: NDArray[np.float32] = found.clamp(0, 1).numpy()
    return moved
