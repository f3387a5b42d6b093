"""How the weights move: base optimizers that torch does not have."""

from flatminima.optim.block_coordinate import GreedyBCD
from flatminima.optim.cards import CARDS
from flatminima.optim.gradient_normalized import GNS, GNSStep
from flatminima.optim.variational_adam import VariationalAdam

__all__ = ["CARDS", "GNS", "GNSStep", "GreedyBCD", "VariationalAdam"]
