"""Which weights are free: constraints and parametrizations, one file each."""

from flatminima.reparam.compander import Companded, WeightCompander, bake_, compand_
from flatminima.reparam.distance import DistanceConstraint, DistancePenalty
from flatminima.reparam.lora import LoRA
from flatminima.reparam.registry import check_reparam, make_reparam, reparam_cards
from flatminima.reparam.slot import Reparam

__all__ = [
    "Companded",
    "DistanceConstraint",
    "DistancePenalty",
    "LoRA",
    "Reparam",
    "WeightCompander",
    "bake_",
    "check_reparam",
    "compand_",
    "make_reparam",
    "reparam_cards",
]
