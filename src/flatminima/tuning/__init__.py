"""Who sets the knobs: hyperparameters learned while training runs."""

from flatminima.tuning.cards import CARDS
from flatminima.tuning.maid import (
    MAID,
    BilevelResult,
    Estimated,
    Hypergradient,
    Regularity,
    TunedPenalties,
    inexact_hypergradient,
    minimize_bilevel,
    tune_penalties,
)

__all__ = [
    "CARDS",
    "MAID",
    "BilevelResult",
    "Estimated",
    "Hypergradient",
    "Regularity",
    "TunedPenalties",
    "inexact_hypergradient",
    "minimize_bilevel",
    "tune_penalties",
]
