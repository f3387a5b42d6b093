"""The objectives that have a name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from flatminima.cards import Card
from flatminima.errors import InputError, unknown
from flatminima.objectives.supervised import Objective

Class = TypeVar("Class", bound=type[Any])

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
    if name not in _OBJECTIVES:
        raise unknown("objective", name, _OBJECTIVES)
    return _OBJECTIVES[name]


def between(name: str, value: Any, low: float, high: float = float("inf")) -> float:
    """A number of a range.

    Raises:
        InputError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        bound = f"at least {low:g}" if high == float("inf") else f"from {low:g} to {high:g}"
        raise InputError(f"{name} is {value!r}: give a number {bound}")
    return float(value)


def below(name: str, value: Any, low: float, high: float = float("inf")) -> float:
    """A number of a range without its upper end.

    Raises:
        InputError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value < high:
        bound = f"of at least {low:g}" if high == float("inf") else f"in [{low:g}, {high:g})"
        raise InputError(f"{name} is {value!r}: give a finite number {bound}")
    return float(value)
