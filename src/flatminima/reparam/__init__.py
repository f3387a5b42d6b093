"""Which weights are free: constraints and parametrizations, one file each."""

from flatminima.reparam.distance import DistanceConstraint, DistancePenalty
from flatminima.reparam.registry import make_reparam, reparam_cards
from flatminima.reparam.slot import Reparam

__all__ = ["DistanceConstraint", "DistancePenalty", "Reparam", "make_reparam", "reparam_cards"]
