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
from flatminima.tuning.self_tuning import (
    GatedConv2d,
    GatedLinear,
    Knob,
    Knobs,
    SelfTuned,
    SelfTuning,
    bake,
    gate,
)

__all__ = [
    "CARDS",
    "MAID",
    "BilevelResult",
    "Estimated",
    "GatedConv2d",
    "GatedLinear",
    "Hypergradient",
    "Knob",
    "Knobs",
    "Regularity",
    "SelfTuned",
    "SelfTuning",
    "TunedPenalties",
    "bake",
    "gate",
    "inexact_hypergradient",
    "minimize_bilevel",
    "tune_penalties",
]
