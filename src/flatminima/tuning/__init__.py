"""Who sets the knobs: hyperparameters learned while training runs."""

from flatminima.tuning.cards import CARDS
from flatminima.tuning.maid import (
    MAID,
    BilevelResult,
    Estimated,
    Hypergradient,
    Regularity,
    inexact_hypergradient,
    minimize_bilevel,
)

__all__ = [
    "CARDS",
    "MAID",
    "BilevelResult",
    "Estimated",
    "Hypergradient",
    "Regularity",
    "inexact_hypergradient",
    "minimize_bilevel",
]
