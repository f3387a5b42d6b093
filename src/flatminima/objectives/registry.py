"""The objectives that have a name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from flatminima.cards import Card
from flatminima.errors import InputError, unknown
from flatminima.objectives.supervised import Objective

Class = TypeVar("Class", bound=type[Any])

ELR_PLUS = ("elr+", "elr-plus", "elrplus")
"""What users call a method of the literature that is a class here, and fills no slot."""

_OBJECTIVES: dict[str, tuple[Card, type[Any]]] = {}


def register(card: Card) -> Callable[[Class], Class]:
    """Enter a class under its card into the list of objectives."""

    def enter(cls: Class) -> Class:
        for name in (card.name, *card.aliases):
            _OBJECTIVES[name] = (card, cls)
        return cls

    return enter


def registered() -> dict[str, tuple[Card, type[Any]]]:
    """Card and class of each objective, by name."""
    return {card.name: (card, cls) for card, cls in _OBJECTIVES.values()}


def objective_cards() -> list[Card]:
    """The cards of all objectives."""
    return [card for card, _ in registered().values()]


def objective_card(name: str) -> Card:
    """The card of an objective, by its name or an alias.

    Raises:
        InputError: there is none of that name.
    """
    return _lookup(name)[0]


def make_objective(name: str, **given: Any) -> Objective:
    """An objective by name.

    Args:
        name: The name on its card, or an alias.
        given: Its options.

    Raises:
        InputError: no such objective, an option that it does not have, or a value out of range.
    """
    card, cls = _lookup(name)
    known = [] if cls.__init__ is object.__init__ else list(inspect.signature(cls).parameters)
    for option in given:
        if option not in known:
            raise unknown(f"option of {name!r}", option, known)
    if card.strength and card.strength not in given:
        parameter = inspect.signature(cls).parameters[card.strength]
        if parameter.default is parameter.empty:
            raise InputError(f"{name!r} needs {card.strength}; start with {card.suggested}")
    found: Objective = cls(**given)
    return found


def _lookup(name: str) -> tuple[Card, type[Any]]:
    if name.lower() in ELR_PLUS:
        raise InputError(
            f"{name!r} is no objective of a run, for it trains two networks with an optimizer "
            "each: use the class flatminima.ELRPlus in a loop of your own, or the objective "
            "elr, which does with one network"
        )
    if name not in _OBJECTIVES:
        raise unknown("objective", name, _OBJECTIVES)
    return _OBJECTIVES[name]
