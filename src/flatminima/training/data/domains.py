"""Where examples are from: names read, one domain left out to test on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from flatminima.errors import InputError, unknown
from flatminima.training.data.examples import Examples, Inputs, Raw

NAME_DOMAINS = (
    "take rotated-digits or two-bits, which have some, or data of your own: a table with "
    "--domain-column, or a folder of images for each domain with --domain-folders"
)
"""How to come by domains; of other data none can be named."""


def encode_domains(
    columns: Mapping[str, Sequence[object]], where: Mapping[str, str]
) -> tuple[tuple[str, ...], dict[str, NDArray[np.int64]]]:
    """Number the domains that the rows name.

    Args:
        columns: The domain of every row, by split: words or whole numbers.
        where: How to call each split in an error.

    Returns:
        Their names, numbers in order and then words, and the indices of each split.

    Raises:
        InputError: a cell is missing or no name.
    """
    read = {
        split: [_name(value, row, where[split]) for row, value in enumerate(values, start=1)]
        for split, values in columns.items()
    }
    names = sorted({name for values in read.values() for name in values}, key=_order)
    index = {name: place for place, name in enumerate(names)}
    return tuple(names), {
        split: np.array([index[name] for name in values], dtype=np.int64)
        for split, values in read.items()
    }


def leave_out(raw: Raw, name: str) -> Raw:
    """Test on one domain, all of its examples, and train on the others.

    Examples of other domains are to be trained on, whatever split the source has them in, but for
    those of a validation split, which stay there.

    Args:
        raw: Of several domains.
        name: Of the one that is left out.

    Raises:
        InputError: there are no domains, or one alone; none of that name; or it has a class that no
            other domain has.
    """
    if not raw.domains:
        raise InputError(
            f"--test-domain {name} leaves a domain out, and {raw.name} has none: {NAME_DOMAINS}"
        )
    if name not in raw.domains:
        raise unknown("domain (--test-domain)", name, raw.domains)
    left = raw.domains.index(name)
    tested, kept = [], {}
    for split, examples in raw.splits.items():
        assert examples.domains is not None
        out = examples.domains == left
        tested.append(examples.take(np.flatnonzero(out)))
        kept[split] = examples.take(np.flatnonzero(~out))
    train = joined([part for split, part in kept.items() if split != "validation"])
    test = joined(tested)
    if not len(train):
        raise InputError(
            f"{raw.name} has the single domain {name!r}, and to leave it out leaves nothing to "
            "train on: give data of several domains, or leave --test-domain out"
        )
    if raw.classes and len(strange := np.setdiff1d(test.targets, train.targets)):
        raise InputError(
            f"the domain {name!r} has the class {raw.classes[strange[0]]!r}, which no other domain "
            "has, so it cannot be learnt: add examples of it to another, or remove those"
        )
    splits = {"train": train, "test": test}
    if len(kept.get("validation", ())):
        splits["validation"] = kept["validation"]
    return replace(raw, splits=splits, details={**raw.details, "test_domain": name})


def joined(parts: Sequence[Examples]) -> Examples:
    """Examples one after the other."""
    if len(parts) == 1:
        return parts[0]
    inputs: Any = [part.inputs for part in parts]
    arrays = all(isinstance(part, np.ndarray) for part in inputs)
    whole = np.concatenate(inputs) if arrays else [item for part in inputs for item in part]
    domains = [part.domains for part in parts if part.domains is not None]
    return Examples(
        cast(Inputs, whole),
        np.concatenate([part.targets for part in parts]),
        np.concatenate(domains) if len(domains) == len(parts) else None,
    )


def per_domain(examples: Examples, names: Sequence[str]) -> dict[str, int]:
    """How many examples are of each domain."""
    assert examples.domains is not None
    counts = np.bincount(examples.domains, minlength=len(names))
    return {name: int(count) for name, count in zip(names, counts, strict=True)}


def _name(value: object, row: int, where: str) -> str:
    place = f"row {row} of {where}"
    if value is None or (isinstance(value, str) and not value.strip()):
        raise InputError(f"the domain in {place} is missing: fill it in or remove the row")
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if not isinstance(value, str | int):
        raise InputError(
            f"the domain in {place} is {value!r}: give names or whole numbers, or choose another "
            "column (--domain-column)"
        )
    return str(value).strip()


def _order(name: str) -> tuple[int, int, str]:
    number = name.isascii() and name.isdigit()
    return (0, int(name), name) if number else (1, 0, name)
