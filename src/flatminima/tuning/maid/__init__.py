"""Bilevel descent with certified steps: knobs by the gradient of a validation loss."""

from flatminima.tuning.maid.descent import MAID
from flatminima.tuning.maid.estimate import Estimated
from flatminima.tuning.maid.hypergradient import Hypergradient, inexact_hypergradient
from flatminima.tuning.maid.minimize import minimize_bilevel
from flatminima.tuning.maid.penalties import TunedPenalties, tune_penalties
from flatminima.tuning.maid.regularity import Regularity
from flatminima.tuning.maid.result import BilevelResult, Step
from flatminima.tuning.maid.settings import Settings
from flatminima.tuning.maid.softmax import SoftmaxRegression

__all__ = [
    "MAID",
    "BilevelResult",
    "Estimated",
    "Hypergradient",
    "Regularity",
    "Settings",
    "SoftmaxRegression",
    "Step",
    "TunedPenalties",
    "inexact_hypergradient",
    "minimize_bilevel",
    "tune_penalties",
]
