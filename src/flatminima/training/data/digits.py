"""The 8x8 digits of scikit-learn as a small transfer task: rotated first, then upright."""

from __future__ import annotations

import numpy as np

from flatminima.errors import require
from flatminima.progress import Progress
from flatminima.training.data.examples import Examples, Raw
from flatminima.training.data.spec import DataSpec
from flatminima.training.data.streams import stream

PRETRAINING, TRAINING = 800, 200


def load(spec: DataSpec, seed: int, progress: Progress) -> Raw:
    """Pretrain on 800 digits turned by 90 degrees, train on 200 upright ones, test on 797 others.

    The seed decides which digits go where, so each part has digits of every writer. Inputs are
    float32 in [0, 1], shape (n, 1, 8, 8): the pixels, 0 to 16, divided by 16. By default 20% of the
    training labels are drawn anew and none are set aside for validation.

    Raises:
        InputError: scikit-learn is not installed.
    """
    progress("reading digits", 0, 1)
    bunch = require("sklearn.datasets", "cli").load_digits()
    images = (bunch.images[:, None] / 16.0).astype(np.float32)
    targets = bunch.target.astype(np.int64)
    order = stream(seed, "digits").permutation(len(targets))
    turned, upright, held_out = np.split(order, (PRETRAINING, PRETRAINING + TRAINING))
    progress("reading digits", 1, 1)
    return Raw(
        name="digits",
        kind="image",
        classes=tuple(str(digit) for digit in range(10)),
        splits={
            "train": Examples(images[upright], targets[upright]),
            "test": Examples(images[held_out], targets[held_out]),
        },
        source=Examples(
            np.ascontiguousarray(np.rot90(images[turned], axes=(2, 3))), targets[turned]
        ),
        validation_fraction=0.0,
        label_noise=0.2,
        details={"origin": "scikit-learn load_digits", "pretraining_rotation_degrees": 90},
    )
