"""One stream of random numbers per purpose, so that one choice does not change the others."""

from __future__ import annotations

import zlib

import numpy as np

from flatminima.errors import InputError


def stream(seed: int, purpose: str) -> np.random.Generator:
    """A generator that depends on `seed` and `purpose` only.

    Raises:
        InputError: the seed is not a whole number of at least 0.
    """
    if not isinstance(seed, int | np.integer) or isinstance(seed, bool) or seed < 0:
        raise InputError(f"seed is {seed!r}: give a whole number of at least 0 (--seed)")
    return np.random.default_rng([int(seed), zlib.crc32(purpose.encode())])
