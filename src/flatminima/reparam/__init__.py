"""Which weights are free: constraints and parametrizations, one file each."""

from flatminima.reparam.distance import DistanceConstraint, DistancePenalty
from flatminima.reparam.lora import LoRA
from flatminima.reparam.registry import check_reparam, make_reparam, reparam_cards
from flatminima.reparam.slot import Reparam

__all__ = [
    "DistanceConstraint",
    "DistancePenalty",
    "LoRA",
    "Reparam",
    "check_reparam",
    "make_reparam",
    "reparam_cards",
]
