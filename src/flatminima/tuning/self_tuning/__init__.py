"""Self-Tuning Networks: hyperparameters tuned in one run, through weights that answer to them."""

from flatminima.tuning.self_tuning.gates import Gated, GatedConv2d, GatedLinear, Response
from flatminima.tuning.self_tuning.gating import bake, gate, gated_layers
from flatminima.tuning.self_tuning.knob import Knob
from flatminima.tuning.self_tuning.knobs import Knobs
from flatminima.tuning.self_tuning.result import SelfTuned
from flatminima.tuning.self_tuning.tuner import KnobObjective, SelfTuning

__all__ = [
    "Gated",
    "GatedConv2d",
    "GatedLinear",
    "Knob",
    "KnobObjective",
    "Knobs",
    "Response",
    "SelfTuned",
    "SelfTuning",
    "bake",
    "gate",
    "gated_layers",
]
