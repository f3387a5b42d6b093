"""What the explanations say of themselves."""

from flatminima.cards import Card

CARDS: tuple[Card, ...] = ()
