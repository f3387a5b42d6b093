"""What a method says of itself, and the list of all methods."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from flatminima.cards import Card
from flatminima.errors import InputError, unknown
from flatminima.perturb.options import Options

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from flatminima.perturb.engine import Perturbed

    Method = TypeVar("Method", bound=type[Perturbed])


_METHODS: dict[str, tuple[Card, type[Perturbed]]] = {}


def register(*presets: Card) -> Callable[[Method], Method]:
    """Enter a class, under its own card and those of its presets, into the list of methods."""

    def enter(cls: Method) -> Method:
        for card in (cls.card, *presets):
            for name in (card.name, *card.aliases):
                _METHODS[name] = (card, cls)
        return cls

    return enter


def registered() -> dict[str, tuple[Card, type[Perturbed]]]:
    """Card and class by name: plain training, the methods of noise, then those of sharpness."""
    unique = {card.name: (card, cls) for card, cls in _METHODS.values()}
    order = {"": 0, "sigma": 1}
    return dict(sorted(unique.items(), key=lambda entry: order.get(entry[1][0].strength, 2)))


def cards() -> list[Card]:
    """The cards of all methods, in the order of `registered`."""
    return [card for card, _ in registered().values()]


def card(name: str) -> Card:
    """The card of a method, by its name or an alias.

    Raises:
        InputError: there is none of that name.
    """
    return _lookup(name)[0]


def options(name: str) -> list[str]:
    """The options that a method takes beyond the base optimizer."""
    chosen, cls = _lookup(name)
    return [name for name in _options_of(cls) if name not in (chosen.preset or {})]


def option_names() -> set[str]:
    """Every option and strength of any method."""
    strengths = {card.strength for card, _ in _METHODS.values()} - {""}
    return strengths | {option for _, cls in _METHODS.values() for option in _options_of(cls)}


def refused(name: str) -> Mapping[str, str]:
    """The options of other methods that a method is asked for in vain, each with the reason."""
    return _lookup(name)[1].refused


def foreign_option(cls: type[Perturbed], option: str) -> InputError:
    """An error for an option that a method does not have, with the reason where there is one."""
    if option in cls.refused:
        return InputError(f"{cls.card.name!r} has no option {option!r}: {cls.refused[option]}")
    return unknown(f"option of {cls.card.name!r}", option, _options_of(cls))


def _options_of(cls: type[Perturbed]) -> list[str]:
    names: list[str] = []
    for parameter in list(inspect.signature(cls).parameters.values())[1:]:
        if parameter.kind is parameter.VAR_KEYWORD:
            names += Options.__annotations__
        else:
            names.append(parameter.name)
    return names


def make(name: str, base: Optimizer, **given: Any) -> Perturbed:
    """A method by name, wrapped around a base optimizer.

    Args:
        name: The name on its card, or an alias.
        base: The base optimizer.
        given: Options of the method.

    Raises:
        InputError: no such method, or an option that it does not have.
    """
    chosen, cls = _lookup(name)
    known = options(name)
    for option in given:
        if option in cls.refused:
            raise foreign_option(cls, option)
        if option not in known:
            raise unknown(f"option of {name!r}", option, known)
    if chosen.strength and chosen.strength not in given:
        raise InputError(f"{name!r} needs {chosen.strength}; start with {chosen.suggested}")
    return cls(base, **given, **(chosen.preset or {}))


def _lookup(name: str) -> tuple[Card, type[Perturbed]]:
    if name not in _METHODS:
        raise unknown("method", name, _METHODS)
    return _METHODS[name]
