"""Two bits: one that causes the label, and one that goes with it in some domains only."""

from __future__ import annotations

import numpy as np

from flatminima.errors import InputError, unknown
from flatminima.progress import Progress
from flatminima.training.brackets import parse_brackets
from flatminima.training.data.domains import joined
from flatminima.training.data.examples import Examples, Raw
from flatminima.training.data.spec import DataSpec
from flatminima.training.data.streams import stream

SETTING: dict[str, float] = {"samples": 1000, "flip": 0.25, "noise": 0.1}
DOMAINS = ("0.2", "0.1", "0.9")
"""How often the second bit is not the label; the last domain is tested on."""


def load(spec: DataSpec, seed: int, progress: Progress) -> Raw:
    r"""Labels of two classes and two bits of each, as of a colored digit its shape and its color.

    The first bit is the label, flipped with probability `flip` in every domain; the second is the
    label flipped with probability 0.2 and 0.1 in the two domains to train on, and 0.9 in the one to
    test on, where it so says the opposite. Inputs are the bits as -1 and +1 plus noise
    $N(0, \mathrm{noise}^2)$, float32, shape (n, 2); `samples` of them in each domain, and as many
    others of the two domains to validate on.

    The best accuracy in all domains is 1 - flip, by the first bit; in training the second promises
    more. Written `two-bits(samples=1000;flip=0.25;noise=0.1)`, which is the default.

    It is the problem of Colored MNIST (Arjovsky et al., 2019, arXiv 1907.02893) without digits.

    Raises:
        InputError: an option that it does not have, or out of its range.
    """
    samples, flip, noise = setting_of(spec.data)
    progress("drawing bits", 0, 1)
    numbers = stream(seed, "two-bits")

    def drawn(place: int) -> Examples:
        labels = numbers.integers(2, size=samples)
        shape = labels ^ (numbers.random(samples) < flip)
        color = labels ^ (numbers.random(samples) < float(DOMAINS[place]))
        bits = 2.0 * np.stack([shape, color], axis=1) - 1
        inputs = bits + noise * numbers.standard_normal(bits.shape)
        where = np.full(samples, place, dtype=np.int64)
        return Examples(inputs.astype(np.float32), labels.astype(np.int64), where)

    splits = {
        "train": joined([drawn(0), drawn(1)]),
        "validation": joined([drawn(0), drawn(1)]),
        "test": drawn(2),
    }
    progress("drawing bits", 1, 1)
    return Raw(
        name="two-bits",
        kind="vector",
        classes=("0", "1"),
        splits=splits,
        details={"samples": samples, "flip": flip, "noise": noise},
        domains=DOMAINS,
    )


def setting_of(asked: str) -> tuple[int, float, float]:
    """Samples, flip and noise, as in brackets.

    Raises:
        InputError: as `load`.
    """
    _, given = parse_brackets(asked)
    chosen = {**SETTING, **given}
    for name, value in chosen.items():
        if name not in SETTING:
            raise unknown("option of two-bits", name, SETTING)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        least, most = (2, 10**7) if name == "samples" else (0, 1 if name == "flip" else 1e3)
        whole = name != "samples" or isinstance(value, int)
        if not number or not whole or not least <= value <= most:
            kind = "a whole number" if name == "samples" else "a number"
            raise InputError(
                f"two-bits's {name} is {value!r}: give {kind} from {least:g} to {most:g}"
            )
    return int(chosen["samples"]), float(chosen["flip"]), float(chosen["noise"])
