"""What the models say of themselves."""

from flatminima.cards import Card

CARDS: tuple[Card, ...] = ()
