"""Who sets the knobs: hyperparameters learned while training runs."""

from flatminima.tuning.cards import CARDS

__all__ = ["CARDS"]
