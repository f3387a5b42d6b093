"""The reparametrizations that have a name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from flatminima.cards import Card
from flatminima.errors import InputError, unknown
from flatminima.reparam.slot import Reparam

Class = TypeVar("Class", bound=type[Reparam])

NONE = "none"

_REPARAMS: dict[str, tuple[Card, type[Reparam]]] = {}


def register(card: Card) -> Callable[[Class], Class]:
    """Enter a class under its card into the list of reparametrizations."""

    def enter(cls: Class) -> Class:
        for name in (card.name, *card.aliases):
            _REPARAMS[name] = (card, cls)
        return cls

    return enter


def registered() -> dict[str, tuple[Card, type[Reparam]]]:
    """Card and class of each reparametrization, by name."""
    return {card.name: (card, cls) for card, cls in _REPARAMS.values()}


def reparam_cards() -> list[Card]:
    """The cards of all reparametrizations."""
    return [card for card, _ in registered().values()]


def check_reparam(name: str, **given: Any) -> type[Reparam]:
    """The class of a reparametrization, its options known to be options of it.

    Args:
        name: The name on its card, an alias, or "none".
        given: Its options.

    Raises:
        InputError: no such reparametrization, an option that it does not have, or one missing.
    """
    if name == NONE and not given:
        return Reparam
    if name not in _REPARAMS:
        raise unknown("reparametrization", name, [NONE, *_REPARAMS])
    card, cls = _REPARAMS[name]
    known = inspect.signature(cls).parameters
    for option in given:
        if option not in known or option == "model":
            raise unknown(f"option of {name!r}", option, [key for key in known if key != "model"])
    needed = card.strength and known[card.strength].default is inspect.Parameter.empty
    if needed and card.strength not in given:
        raise InputError(f"{name!r} needs {card.strength}; start with {card.suggested}")
    return cls


def make_reparam(name: str, model: nn.Module, **given: Any) -> Reparam:
    """A reparametrization by name.

    Args:
        name: As in `check_reparam`.
        model: Its weights as training begins; see `Reparam`.
        given: Its options.

    Raises:
        InputError: as `check_reparam`, or a value out of range.
    """
    return check_reparam(name, **given)(model, **given)
