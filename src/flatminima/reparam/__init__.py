"""Which weights are free: constraints and parametrizations, one file each."""

from flatminima.reparam.compander import Companded, WeightCompander, bake_, compand_
from flatminima.reparam.distance import DistanceConstraint, DistancePenalty
from flatminima.reparam.gradient_dropout import gradient_dropout, keep_probability
from flatminima.reparam.lora import LoRA
from flatminima.reparam.mask_file import apply_mask, pack_mask, unpack_mask
from flatminima.reparam.masks import MaskTuning
from flatminima.reparam.r_amt import RAMT
from flatminima.reparam.registry import check_reparam, make_reparam, reparam_cards
from flatminima.reparam.slot import Reparam

__all__ = [
    "RAMT",
    "Companded",
    "DistanceConstraint",
    "DistancePenalty",
    "LoRA",
    "MaskTuning",
    "Reparam",
    "WeightCompander",
    "apply_mask",
    "bake_",
    "check_reparam",
    "compand_",
    "gradient_dropout",
    "keep_probability",
    "make_reparam",
    "pack_mask",
    "reparam_cards",
    "unpack_mask",
]
