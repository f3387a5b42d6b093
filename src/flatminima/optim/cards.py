"""What the base optimizers and solvers say of themselves."""

from flatminima.cards import Card

CARDS: tuple[Card, ...] = ()
