"""The diabetes data of scikit-learn: a small regression task."""

from __future__ import annotations

import numpy as np

from flatminima.errors import require
from flatminima.progress import Progress
from flatminima.training.data.examples import Examples, Raw
from flatminima.training.data.spec import DataSpec


def load(spec: DataSpec, seed: int, progress: Progress) -> Raw:
    """Ten measures of 442 patients, and how far the disease came a year later, from 25 to 346.

    Source: Efron et al., Least Angle Regression, 2004.

    Raises:
        InputError: scikit-learn is not installed.
    """
    progress("reading diabetes", 0, 1)
    bunch = require("sklearn.datasets", "cli").load_diabetes(scaled=False)
    progress("reading diabetes", 1, 1)
    return Raw(
        name="diabetes",
        kind="vector",
        classes=(),
        splits={
            "train": Examples(bunch.data.astype(np.float32), bunch.target.astype(np.float32)),
        },
        details={"origin": "scikit-learn load_diabetes"},
        task="regression",
    )
