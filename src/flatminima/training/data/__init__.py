"""Data for a training run: read it, check it, split it, add label noise, encode it for a model.

`load(spec, seed)` gives a `DataSet`; `encode(examples, dataset, encoding)` makes a torch data set
of one of its parts. Torch and the readers are imported when first used, so the command line can
build its flags from `DataSpec` without waiting for them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from flatminima.progress import Progress
from flatminima.training.data.encode import Encoding, Tokenizer, encode
from flatminima.training.data.examples import DataSet, Examples
from flatminima.training.data.load import SOURCES, load
from flatminima.training.data.spec import DataSpec

if TYPE_CHECKING:
    from flatminima.training.data.encoded import Encoded, collate

__all__ = [
    "SOURCES",
    "DataSet",
    "DataSpec",
    "Encoded",
    "Encoding",
    "Examples",
    "Progress",
    "Tokenizer",
    "collate",
    "encode",
    "load",
]


def __getattr__(name: str) -> object:
    if name not in ("Encoded", "collate"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.encoded"), name)
