"""What the tuners say of themselves."""

from flatminima.cards import Card

CARDS: tuple[Card, ...] = ()
